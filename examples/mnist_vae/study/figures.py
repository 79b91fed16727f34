"""The pictures of a run. Each function returns a figure; `common.figures.save` writes it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor
from torch.nn import functional as F

from common.datasets import Split
from common.figures import ACCENT, INK, MUTED, SMALL, WARM, WIDTH, plain
from gradroute.diagnostics import AuditReport
from mnist_vae.model import DIGITS, SIDE, VAE


@torch.no_grad()
def reconstructions(model: VAE, split: Split, title: str, per_digit: int = 2) -> Figure:
    """Images of each digit in a column: input above its reconstruction, `per_digit` times."""
    sheet = torch.zeros(2 * per_digit, DIGITS.width, SIDE, SIDE)
    for digit in range(DIGITS.width):
        images = split.images[(split.labels == digit).nonzero().flatten()[:per_digit]].float() / 255
        sheet[0 : 2 * len(images) : 2, digit] = images[:, 0]
        sheet[1 : 2 * len(images) : 2, digit] = model.decode(model.encode_mean(images))[:, 0]
    heading = "Input, and below it what its latent means decode to"
    columns = [str(digit) for digit in range(DIGITS.width)]
    return _contact_sheet(sheet, f"{heading}\n{title}", rows=["input", "decoded"] * per_digit, columns=columns)


@torch.no_grad()
def sweeps(model: VAE, title: str, steps: int = 9, highest: float = 4.0) -> Figure:
    """One row per digit: its dimension from 0 to `highest`, all others at zero."""
    values = torch.linspace(0, highest, steps)
    sheet = model.decode(model.pure(values).flatten(0, 1)).view(DIGITS.width, steps, SIDE, SIDE)
    heading = f"One latent dimension at a time, from 0 to {highest:g}, all others at zero"
    columns = [f"{value:g}" for value in values.tolist()]
    return _contact_sheet(sheet, f"{heading}\n{title}", rows=_dimension_names(), columns=columns)


@torch.no_grad()
def routed_or_not(routed: VAE, unrouted: VAE, heights: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)) -> Figure:
    """One column a dimension, swept downwards with all others at zero: a routed model above its unrouted twin."""
    figure = Figure(figsize=(WIDTH, 4.7), layout="constrained")
    names = [str(dimension) for dimension in range(DIGITS.width)]
    for axes, model, title in zip(
        figure.subplots(2, 1),
        (routed, unrouted),
        (
            "Routed: labels chose which number an image may teach",
            "Not routed: the same model, whose numbers draw what they like",
        ),
        strict=True,
    ):
        sheet = model.decode(model.pure(torch.tensor(heights)).transpose(0, 1).flatten(0, 1))
        _sheet(axes, sheet.view(len(heights), DIGITS.width, SIDE, SIDE), [f"{height:g}" for height in heights], names)
        axes.set_title(title, fontsize=9, color=INK, loc="left", pad=6)
        axes.tick_params(labelsize=SMALL)
    return figure


@torch.no_grad()
def beside(models: Mapping[str, VAE], split: Split, height: float = 3.0) -> Figure:
    """Models below each other: what each dimension draws alone, and what becomes of an image of each digit.

    Args:
        models: By what is said of them.
        split: The first image of each digit is shown.
        height: At what a dimension is that draws alone, with all others at zero.
    """
    first = torch.stack([(split.labels == digit).nonzero()[0, 0] for digit in range(DIGITS.width)])
    images = split.images[first].float() / 255
    sheets = {"An image of each digit": ["input"]} | {name: ["alone", "decoded"] for name in models}
    figure = Figure(figsize=(WIDTH, 1.0 + 1.35 * len(models)), layout="constrained")
    panels = figure.subplots(len(sheets), 1, height_ratios=[len(rows) for rows in sheets.values()])
    for axes, (title, rows) in zip(panels, sheets.items(), strict=True):
        shown = [images[:, 0]]
        if title in models:
            model = models[title]
            alone = model.decode(model.pure(torch.tensor([height]))[:, 0])
            shown = [alone[:, 0], model.decode(model.encode_mean(images))[:, 0]]
        _sheet(axes, torch.stack(shown), rows, [])
        axes.set_title(title, fontsize=9.5, color=INK, loc="left")
    return figure


def activation_matrix(activations: Tensor, title: str) -> Figure:
    """The mean of each latent mean by digit, [digit, dimension]."""
    figure = Figure(figsize=(6.4, 6.2), layout="constrained")
    figure.suptitle(f"Mean activation of each dimension by digit (training set)\n{title}", fontsize=10, color=INK)
    axes = figure.subplots()
    largest = max(activations.abs().max().item(), 1e-6)
    image = axes.imshow(activations.numpy(), cmap="RdBu", vmin=-largest, vmax=largest)
    for digit, row in enumerate(activations.tolist()):
        for dimension, value in enumerate(row):
            colour = "white" if abs(value) > 0.6 * largest else INK if abs(value) > 0.05 * largest else MUTED
            # Adding 0.0 turns a rounded -0.0 into 0.0.
            text = f"{round(value, 1) + 0.0:.1f}"
            axes.text(dimension, digit, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(DIGITS.width), _dimension_names())
    axes.set_yticks(range(DIGITS.width))
    axes.set_xlabel("latent dimension", color=INK)
    axes.set_ylabel("digit", color=INK)
    plain(axes)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, colors=INK)
    return figure


def audit_heatmaps(report: AuditReport, title: str) -> Figure:
    """Of each digit: which dimensions its gradient reaches, which parameters, and which of these around the route."""
    figure = report.plot(columns=1)
    figure.set_size_inches(WIDTH, 9.5)
    figure.suptitle(f"Where the gradient of each digit goes (trained weights)\n{title}", fontsize=9.5, color=INK)
    return figure


def loss_curves(history: dict[str, Any], title: str, *, nats: bool = True) -> Figure:
    """Reconstruction and KL against the images seen, as they came (pale) and smoothed; all of them, on log scales.

    Args:
        history: Of the training, as `mnist_vae.train.train` writes it.
        title: Stands below the heading.
        nats: Whether the loss is a negative ELBO. The original's is none, and its terms have units of their own.
    """
    seen, _, reconstruction, kl = torch.tensor(history["points"]).T
    thousands = (seen / 1000).tolist()
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    heading = f"Training losses per image: means over {history['window']} batches (pale), smoothed"
    figure.suptitle(f"{heading}\n{title}", fontsize=9.5, color=INK)
    units = ("nats", "nats") if nats else ("squared pixel errors", "mean over units, without constants")
    terms = ((reconstruction, "reconstruction", ACCENT), (kl, "KL", WARM))
    panels = figure.subplots(2, 1, sharex=True)
    for axes, (values, name, colour), unit in zip(panels, terms, units, strict=True):
        smooth = _smooth(values, len(values) // 20)
        axes.plot(thousands, values.tolist(), color=colour, linewidth=0.9, alpha=0.3)
        axes.plot(thousands, smooth.tolist(), color=colour, linewidth=1.8)
        axes.set_title(f"{name}, {unit}", fontsize=9.5, color=INK, loc="left")
        axes.set_xlim(left=0)
        if values.min() > 0:
            # The first points are far above all others, and would squeeze them together on a linear scale.
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        plain(axes, grid="y")
    panels[-1].set_xlabel("images seen (thousands)", color=INK)
    return figure


def _smooth(values: Tensor, reach: int) -> Tensor:
    """The mean of each value and its neighbours, up to `reach` on either side."""
    weight = torch.ones(1, 1, 2 * reach + 1)
    total = F.conv1d(values.view(1, 1, -1), weight, padding=reach)
    count = F.conv1d(torch.ones(1, 1, len(values)), weight, padding=reach)
    return (total / count).flatten()


def _contact_sheet(images: Tensor, title: str, *, rows: list[str], columns: list[str]) -> Figure:
    """Images [rows, columns, height, width] side by side, with a thin line around each."""
    figure = Figure(figsize=(0.72 * len(columns) + 1.0, 0.72 * len(rows) + 1.0), layout="constrained")
    figure.suptitle(title, fontsize=10, color=INK)
    _sheet(figure.subplots(), images, rows, columns)
    return figure


def _sheet(axes: Axes, images: Tensor, rows: Sequence[str], columns: Sequence[str]) -> None:
    framed = F.pad(images, (1, 1, 1, 1), value=0.1)
    height, width = framed.shape[-2:]
    sheet = framed.transpose(1, 2).flatten(2, 3).flatten(0, 1)
    axes.imshow(sheet.numpy(), cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([width * (i + 0.5) - 0.5 for i in range(len(columns))], columns)
    axes.set_yticks([height * (i + 0.5) - 0.5 for i in range(len(rows))], rows)
    axes.xaxis.tick_top()
    plain(axes)


def _dimension_names() -> list[str]:
    return [f"z{dimension}" for dimension in range(DIGITS.width)]
