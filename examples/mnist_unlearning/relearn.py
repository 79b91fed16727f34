"""How fast fine-tuning brings the forgotten digit back."""

from itertools import pairwise
from typing import Any

import torch
from torch import Generator, nn
from torch.nn import functional as F

from mnist_unlearning.config import Settings
from mnist_unlearning.images import Parts, pixels
from mnist_unlearning.measure import measures


def relearning_curve(model: nn.Module, data: Parts, settings: Settings, seed: int) -> dict[str, list[Any]]:
    """Fine-tune all weights on a few held-out images of each digit; accuracies after the steps of the settings.

    The digit is a tenth of what it sees, so that it has to be learned beside the others and not in place of them.
    """
    generator = Generator().manual_seed(seed)
    few = data.few_of_each(settings.relearn_images)
    images, digits = pixels(few.images), few.labels
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.relearn_rate, fused=True)
    found = []
    for step in range(max(settings.checkpoints) + 1):
        if step in settings.checkpoints:
            found.append(measures(model, data.judge, settings.digit))
        batch = torch.randint(len(digits), (settings.relearn_batch_size,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), digits[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {"steps": list(settings.checkpoints), **{key: [at[key] for at in found] for key in ("forgotten", "kept")}}


def steps_to(curve: dict[str, list[Any]], level: float) -> float:
    """After how many steps the curve first reaches an accuracy, on straight lines between measurements; or infinity."""
    points = list(zip(curve["steps"], curve["forgotten"], strict=True))
    if points[0][1] >= level:
        return 0.0
    for (before, low), (after, high) in pairwise(points):
        if high >= level:
            return float(before + (after - before) * (level - low) / (high - low))
    return float("inf")
