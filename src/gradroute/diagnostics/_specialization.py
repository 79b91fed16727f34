"""`specialization`: what each label's units have learned, measured on held-out data, next to a placebo."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..errors import LabelError, SiteError, UsageError, did_you_mean
from ..router._attachment import AttachedSite, attachment_of
from ..router._router import Router
from ..spec._masks import UNLABELED
from . import _reports as tables
from ._linear_probes import Array, Estimate, Procedure, decode, interval, probe, sklearn
from ._reports import label_name
from .harness._batches import Group, group_by_label, length, take
from .harness._site_probes import Probes
from .harness._untouched import Untouched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Estimate", "Slice", "SpecializationReport", "specialization"]

Step: TypeAlias = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Slice:
    """What one label's units hold, and what all the others do.

    "Alone" is of the units that the label's route may teach, "without" of all the others.

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
            ImportError: matplotlib is missing: ``pip install gradroute[plot]``.
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


def specialization(
    router: Router,
    step: Step,
    batch: Any,
    labels: Tensor,
    *,
    site: str | None = None,
    targets: Tensor | None = None,
    folds: int = 5,
    draws: int = 200,
    seed: int = 0,
) -> SpecializationReport:
    """Measure what each label's units have learned. Give it data that the model was not trained on.

    For each label: how active its units are; whether a linear probe finds it in its own units, and in all the others
    (a *certificate* that it is not there, as far as linear probes go); how much of the targets a linear decoder reads
    from either; and what the loss does on each label when the units of one are off. All of it once more with the labels
    shuffled, since a procedure that finds something there finds nothing elsewhere.

    Units are looked at per example: all dimensions other than batch and units are averaged.

    Args:
        router: The router.
        step: ``step(batch)``, the loss of a batch. It is run in the mode that the model is in: call ``eval()`` first.
        batch: As for `gradroute.audit`.
        labels: Integer labels, one for each example; -1 for unlabeled ones, which are left out.
        site: The name of the site's module; the router's only site by default.
        targets: What a decoder is to explain, [n_examples, ...], such as the images. None: no decoders.
        folds: Of the cross-validation of probes and decoders.
        draws: Of the bootstrap over examples that gives the intervals.
        seed: Of the shuffles, folds and draws.

    Returns:
        The report. The model and random numbers are left as they were.

    Raises:
        ImportError: scikit-learn is missing.
        LabelError: The labels are not integers, one for each example, or there are fewer than two, or one is rarer
            than `folds`.
        SiteError: `site` is none of the router's, or must be named, or did not run.
        UsageError: The router cannot be used here: it was removed, or belongs to another model or thread.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.eye_(model.weight)  # each label's unit has learned its own input
        >>> router = gr.Router(model, {"": gr.RoutingSpec.one_per_label(2)})
        >>> labels = torch.tensor([0, 1]).repeat(20)
        >>> batch = torch.nn.functional.one_hot(labels, 2) + 0.1 * torch.rand(40, 2)
        >>> report = gr.specialization(router, lambda x: model(x).square().mean(), batch, labels)
        >>> report.accuracy.value, report.placebo_accuracy.value < 1
        (1.0, True)

    References:
        Decoders as certificates, and ablation: Cloud et al., 2024 (arXiv:2410.04332), section 4.1. Shuffled labels as a
        control for probes: Hewitt and Liang, 2019 (arXiv:1909.03368).
    """
    sklearn("linear_model")
    attached = _site(router, site)
    if (
        not isinstance(labels, Tensor)
        or labels.ndim != 1
        or labels.dtype.is_floating_point
        or labels.dtype == torch.bool
    ):
        raise LabelError("specialization needs integer labels of shape (n_examples,).")
    groups = [group for group in group_by_label(router, labels)[0] if group.label != UNLABELED]
    if len(groups) < 2 or any(len(group) < folds for group in groups):
        raise LabelError(
            f"specialization compares labels: it needs two or more, each on at least {folds} examples (as many as "
            f"folds); got { ({label_name(group.label): len(group) for group in groups}) }."
        )
    with Untouched(router) as untouched, torch.no_grad():
        activations = _activations(attached, lambda: step(batch), router, len(labels))
        loss, ablated = _losses(router, step, batch, groups, untouched)
    known = np.concatenate([group.examples.numpy() for group in groups if group.examples is not None])
    own = np.concatenate([np.full(len(group), number) for number, group in enumerate(groups)])
    x = activations[known]
    y = None if targets is None else targets.detach().cpu().double().flatten(1).numpy()[known]
    how = Procedure(folds, draws, np.random.default_rng(seed))
    spec = attached.site.spec
    units = [tuple(spec.mask(group.labels[:1])[0].nonzero().flatten().tolist()) for group in groups]  # type: ignore[index]
    alone = [np.array([u for u in mine if u not in spec.shared], dtype=int) for mine in units]
    shuffled = how.generator.permutation(own)
    slices = []
    for number, (group, mine) in enumerate(zip(groups, units, strict=True)):
        inside = np.array(mine, dtype=int)
        outside = np.setdiff1d(np.arange(spec.width), inside)
        of_label = own == number
        explained: list[Estimate | None] = [None, None]
        if y is not None:
            explained = [decode(x[of_label][:, c], y[of_label], how) for c in (inside, outside)]
        slices.append(
            Slice(
                group.label,
                mine,
                probe(x[:, inside], of_label, how),
                probe(x[:, outside], of_label, how),
                explained[0],
                explained[1],
                probe(x[:, inside], shuffled == number, how),
            )
        )
    scores = np.stack([x[:, c].mean(1) if len(c) else np.full(len(x), -np.inf) for c in alone], axis=1)
    guess = scores.argmax(1)
    return SpecializationReport(
        attached.name,
        tuple(group.label for group in groups),
        tuple(len(group) for group in groups),
        tuple(tuple(np.abs(x[own == number]).mean(0).tolist()) for number in range(len(groups))),
        interval((guess == own).astype(float), how),
        interval((guess == shuffled).astype(float), how),
        tuple(slices),
        loss,
        ablated,
    )


def _site(router: Router, site: str | None) -> AttachedSite:
    attachment_of(router).check_usable()
    sites = [attached for attached in attachment_of(router).sites if site is None or attached.name == site]
    if not sites:
        raise SiteError(f"{site!r} is no site of this router. {did_you_mean(site, router.sites)}")
    if site is None and len(router.sites) > 1:
        raise SiteError(f"the router has {len(router.sites)} sites: say which, site={sites[0].name!r}.")
    return sites[0]


def _activations(attached: AttachedSite, run: Callable[[], Any], router: Router, size: int) -> Array:
    """The units of each example, [n_examples, width]."""
    found: list[Tensor] = []

    def keep(other: AttachedSite, x: Tensor) -> Tensor:
        if other is attached:
            found.append(x.detach())
        return x

    with Probes(router, keep):
        run()
    if not found:
        raise SiteError(f"site {attached.name!r} did not run in this step.")
    x = found[0].movedim(attached.site.dim, -1).double()
    if len(x) != size:
        raise SiteError(f"site {attached.name!r} has {len(x)} examples first, and there are {size} labels.")
    return x.reshape(size, -1, x.shape[-1]).mean(1).cpu().numpy()


def _losses(
    router: Router, step: Step, batch: Any, groups: list[Group], untouched: Untouched
) -> tuple[tuple[float, ...], tuple[tuple[float, ...] | None, ...]]:
    """The loss on each label's examples, and with the units of each label off."""

    def losses() -> tuple[float, ...]:
        values = []
        for group in groups:
            untouched.rewind()
            values.append(float(step(take(batch, group.examples, length(batch)))))
        return tuple(values)

    whole = losses()
    ablated: list[tuple[float, ...] | None] = []
    for group in groups:
        try:
            block = router.ablated(group.label)
        except UsageError:  # others teach all of its units
            ablated.append(None)
            continue
        with block:
            ablated.append(losses())
    return whole, tuple(ablated)
