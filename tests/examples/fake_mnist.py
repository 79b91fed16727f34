"""A dataset small enough to train on within a test."""

import struct

import torch
from torch import Tensor

from common.datasets import Split


def idx_bytes(tensor: Tensor) -> bytes:
    header = struct.pack(f">HBB{tensor.ndim}I", 0, 8, tensor.ndim, *tensor.shape)
    return header + tensor.to(torch.uint8).numpy().tobytes()


def synthetic(count: int, seed: int) -> Split:
    """Ten classes, each a bright square at a place of its own, in noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    images = torch.randint(0, 60, (count, 1, 28, 28), generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 4)
        image[:, 2 + 9 * row : 9 + 9 * row, 1 + 7 * column : 6 + 7 * column] += 180
    return Split(images.to(torch.uint8), labels)
