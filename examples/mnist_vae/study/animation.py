"""The sweep as a moving picture: ten dimensions, each rising to its highest and falling back, one after another."""

import math
from pathlib import Path

import torch
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from common.figures import ACCENT, INK
from common.files import replacing
from mnist_vae.model import DIGITS, SIDE, VAE

FRAMES = 40
MILLISECONDS = 80
COLUMNS = 5
#: In pixels: a digit's picture, the bar below it, and the space around both.
PICTURE, BAR, GAP = 3 * SIDE, 5, 12
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
