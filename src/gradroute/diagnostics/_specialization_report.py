"""`SpecializationReport`: what each label's units have learned, as plain numbers, and as tables and pictures."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _reports as tables
from ._linear_probes import Estimate
from ._reports import label_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Estimate", "Slice", "SpecializationReport"]


@dataclass(frozen=True)
class Slice:
    """What one label's units hold, and what all the others do.

    A label's units are those that its route may teach. What ends in `_without` is measured on all the others.

    Attributes:
        label: The label.
        units: Its units.
        probe: How often (balanced accuracy, chance is 0.5) a logistic regression on these units alone tells this label
            from the rest, on examples that it was not fitted on.
        probe_without: The same on all the other units: what the route failed to keep out of them.
        decoder: The part of the variance of `targets` that a linear decoder explains from these units alone (R²), on
            examples of this label. None where no targets were given.
        decoder_without: The same from all the other units.
        placebo: `probe` with the labels of all examples shuffled: near 0.5 if the procedure is fair.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.eye_(model.weight)  # each label's unit has learned its own input
        >>> router = gr.Router(model, {"": gr.RoutingSpec.one_per_label(2)})
        >>> labels = torch.tensor([0, 1]).repeat(20)
        >>> batch = torch.nn.functional.one_hot(labels, 2) + 0.1 * torch.rand(40, 2)
        >>> report = gr.specialization(router, lambda x: model(x).square().mean(), batch, labels)
        >>> first = report.slices[0]
        >>> first.label, first.units, first.probe.value
        (0, (0,), 1.0)
    """

    label: Hashable
    units: tuple[int, ...]
    probe: Estimate
    probe_without: Estimate
    decoder: Estimate | None
    decoder_without: Estimate | None
    placebo: Estimate


@dataclass(frozen=True)
class SpecializationReport(tables.Report):
    """What units have learned.

    Attributes:
        site: The qualified name of the site's module.
        labels: The labels in the data, unlabeled examples left out.
        examples: How many examples of each there are.
        activation: For each label, the mean magnitude of each unit: n_labels rows of width.
        accuracy: How often the label whose own units are largest (by the mean of the activation) is the example's.
        placebo_accuracy: The same with the labels shuffled.
        slices: For each label, what its units hold and the others do.
        loss: The loss on each label's examples.
        ablated_loss: The same with the units of one label off: a row for each label that is off. None where
            nothing of a label can be switched off.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.eye_(model.weight)  # each label's unit has learned its own input
        >>> router = gr.Router(model, {"": gr.RoutingSpec.one_per_label(2)})
        >>> labels = torch.tensor([0, 1]).repeat(20)
        >>> batch = torch.nn.functional.one_hot(labels, 2) + 0.1 * torch.rand(40, 2)
        >>> report = gr.specialization(router, lambda x: model(x).square().mean(), batch, labels)
        >>> report.labels, report.examples, len(report.activation), len(report.activation[0])
        ((0, 1), (20, 20), 2, 2)
        >>> [[off < loss for off, loss in zip(row, report.loss)] for row in report.ablated_loss]
        [[True, True], [True, True]]
    """

    site: str
    labels: tuple[Hashable, ...]
    examples: tuple[int, ...]
    activation: tuple[tuple[float, ...], ...]
    accuracy: Estimate
    placebo_accuracy: Estimate
    slices: tuple[Slice, ...]
    loss: tuple[float, ...]
    ablated_loss: tuple[tuple[float, ...] | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of the report in what JSON can carry."""
        return tables.jsonable(self)  # type: ignore[no-any-return]

    def plot(self) -> Figure:
        """Heatmaps: mean activation of each unit by label, and the loss of each label with another's units off.

        Raises:
            ImportError: matplotlib is missing: ``pip install matplotlib``.
        """
        from ._heatmaps import heatmap, subplots  # noqa: PLC0415  # matplotlib is optional

        figure, axes = subplots(2)
        names = [label_name(label) for label in self.labels]
        activation = np.array(self.activation)
        top = float(activation.max(initial=0.0)) or 1.0
        heatmap(axes[0], activation, names, limits=(0.0, top), unit="mean magnitude")
        axes[0].set(title="activation", xlabel="unit", ylabel="label")
        rises = np.array([row if row is not None else self.loss for row in self.ablated_loss]) - np.array(self.loss)
        most = float(np.abs(rises).max(initial=0.0)) or 1.0
        heatmap(axes[1], rises, names, names, limits=(-most, most), cmap="RdBu_r", unit="rise of the loss")
        axes[1].set(title="ablation", xlabel="label of the examples", ylabel="label whose units are off")
        figure.suptitle(self._title(), fontsize=11)
        return figure

    def _title(self) -> str:
        return f"Specialization of {self.site or '(model)'}: accuracy {self.accuracy}, placebo {self.placebo_accuracy}"

    def _tables(self) -> list[tables.Table]:
        rows = []
        for number, part in enumerate(self.slices):
            off = self.ablated_loss[number]
            rise = "-" if off is None else tables.cell(off[number] - self.loss[number])
            others = [off[i] - self.loss[i] for i in range(len(self.labels)) if i != number] if off else []
            decoders = ("-", "-")
            if part.decoder is not None and part.decoder_without is not None:
                decoders = (str(part.decoder), str(part.decoder_without))
            rows.append(
                (
                    label_name(part.label),
                    tables.units(part.units),
                    str(part.probe),
                    str(part.probe_without),
                    str(part.placebo),
                    *decoders,
                    rise,
                    tables.cell(float(np.mean(others))) if others else "-",
                )
            )
        header = (
            *("label", "units", "probe, own units", "probe, all others", "placebo"),
            *("decoder, own units", "decoder, all others", "own loss when off", "other losses when off"),
        )
        return [tables.Table("Slices", header, rows)]
