"""Moving pictures: the sweep, and a training from noise to digits, routed above unrouted."""

import math
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from common.datasets import Split
from common.figures import ACCENT, INK
from common.files import replacing
from mnist_vae.config import Config
from mnist_vae.model import DIGITS, SIDE, VAE
from mnist_vae.train import Trainer

FRAMES = 40
MILLISECONDS = 80
COLUMNS = 5
#: In pixels: a digit's picture, the bar below it, and the space around both.
PICTURE, BAR, GAP = 3 * SIDE, 5, 12
#: In pixels: letters that can be read on a phone, where the picture of a training has six tenths of its width.
LETTERS = 20
PAPER = "#ffffff"
GROOVE = "#e4eaee"
#: Shades of ink: few enough for a small file, and enough for soft edges.
SHADES = 30


@torch.no_grad()
def save_sweep(model: VAE, path: Path, highest: float = 4.0) -> None:
    """Write a GIF that loops without a seam; each dimension has the other nine at zero."""
    values = highest * heights()
    frames = [_frame(model.decode(torch.diag(row))[:, 0], row / highest) for row in values]
    palette = _palette()
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with replacing(path) as temporary:
        flat[0].save(temporary, save_all=True, append_images=flat[1:], duration=MILLISECONDS, loop=0, optimize=True)


def save_training(config: Config, data: Split, path: Path, frames: int = 60, highest: float = 3.0) -> None:
    """Train a model and its unrouted twin, and write a GIF of what each dimension alone draws, from noise on.

    Args:
        config: Of the routed one; the twin's differs in its routing alone.
        data: The training images.
        path: The GIF.
        frames: How many, close together at first, when most happens.
        highest: At what each dimension is, with all others at zero.
    """
    (seen, routed), (_, unrouted) = (
        _film(replace(config, routing=routing), data, frames, highest) for routing in (True, False)
    )
    pages = [_pair(*pictures) for pictures in zip(routed, unrouted, seen, strict=True)]
    palette = _palette()
    flat = [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]
    lasting = [2 * MILLISECONDS] * (len(flat) - 1) + [30 * MILLISECONDS]
    with replacing(path) as temporary:
        flat[0].save(temporary, save_all=True, append_images=flat[1:], duration=lasting, loop=0, optimize=True)


def _film(config: Config, data: Split, frames: int, highest: float) -> tuple[list[int], list[Tensor]]:
    """The images that were seen until each frame, and what the ten dimensions draw then, [10, H, W]."""
    trainer, pictures, seen = Trainer(config, data), list[Tensor](), list[int]()
    last = trainer.steps_per_epoch * config.epochs - 1
    wanted = {round(last * (frame / (frames - 1)) ** 2) for frame in range(frames)}

    @torch.no_grad()
    def look(step: int) -> None:
        if step in wanted:
            trainer.model.eval()
            pictures.append(trainer.model.decode(trainer.model.pure(torch.tensor([highest]))[:, 0])[:, 0])
            trainer.model.train()
            seen.append((step + 1) * trainer.batch_size)

    trainer.watch = look
    with tqdm(total=last + 1, unit="step", disable=None) as bar:
        while trainer.epoch < config.epochs:
            trainer.train_epoch(bar)
    return seen, pictures


def _pair(routed: Tensor, unrouted: Tensor, seen: int) -> Image.Image:
    cell, line, font = 2 * SIDE + GAP // 2, LETTERS + 8, ImageFont.load_default(LETTERS)
    page = Image.new("RGB", (DIGITS.width * cell + GAP, 2 * (cell + line) + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(page)
    for row, (images, name) in enumerate(((routed, "routed"), (unrouted, "not routed"))):
        top = GAP + row * (cell + line + GAP // 2)
        draw.text((GAP, top), name if row else f"{name} - {seen:,} images seen", fill=INK, font=font)
        for column, image in enumerate(images):
            ink = Image.fromarray((image * 255).round().to(torch.uint8).numpy())
            place = GAP + column * cell, top + line
            page.paste(INK, place, ink.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC))
    return page


def heights() -> Tensor:
    """How high each dimension is in each frame, in [0, 1], [frame, dimension]: a wave that runs through them."""
    rows = []
    for frame in range(FRAMES):
        phases = (frame / FRAMES - dimension / DIGITS.width for dimension in range(DIGITS.width))
        rows.append([math.sin(math.pi * phase) ** 2 for phase in phases])
    return torch.tensor(rows)


def _frame(images: Tensor, fractions: Tensor) -> Image.Image:
    cell = PICTURE + GAP
    rows = math.ceil(len(images) / COLUMNS)
    page = Image.new("RGB", (COLUMNS * cell + GAP, rows * (cell + BAR + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(page)
    for index, (image, fraction) in enumerate(zip(images, fractions.tolist(), strict=True)):
        left = GAP + index % COLUMNS * cell
        top = GAP + index // COLUMNS * (cell + BAR + GAP)
        ink = Image.fromarray((image * 255).round().to(torch.uint8).numpy())
        page.paste(INK, (left, top), ink.resize((PICTURE, PICTURE), Image.Resampling.BICUBIC))
        bar = top + PICTURE + GAP // 2
        draw.rectangle((left, bar, left + PICTURE - 1, bar + BAR - 1), fill=GROOVE)
        width = round(fraction * PICTURE)
        if width:
            draw.rectangle((left, bar, left + width - 1, bar + BAR - 1), fill=ACCENT)
    return page


def _palette() -> Image.Image:
    """The same colours for all frames, so that nothing flickers."""
    paper, ink = ImageColor.getrgb(PAPER), ImageColor.getrgb(INK)
    values = [*ImageColor.getrgb(GROOVE), *ImageColor.getrgb(ACCENT)]
    for shade in range(SHADES):
        part = shade / (SHADES - 1)
        values += [round((1 - part) * light + part * dark) for light, dark in zip(paper, ink, strict=True)]
    palette = Image.new("P", (1, 1))
    palette.putpalette(values)
    return palette
