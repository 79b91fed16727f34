"""`AuditReport`: what an audit found, as plain numbers, and as tables for people."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import LeakError
from .. import _reports as tables
from .._heatmaps import heatmap, subplots
from .._reports import label_name
from ._graph_paths import Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["AuditReport", "Bypass", "ParameterGradients", "SiteGradients"]


@dataclass(frozen=True)
class Bypass:
    """A place that a label still trains, although its route leaves it out.

    Attributes:
        label: The label; -1 for unlabeled examples, a tuple for examples with several labels.
        target: The qualified name of a parameter, or of a site's module.
        kind: By which path.

            - ``"side loss"``: a term of the loss reads a tensor before it is routed.
            - ``"skip connection"``: an unrouted tensor goes around the site, and meets the routed one after it.
            - ``"auxiliary hook"``: a hook of the user sees the tensor before it is routed.
            - ``"gradient hook"``: a hook of the user changes the gradient after it was masked.
            - ``"tied weight"``: the parameter is used at another place, too.
            - ``"recurrence"``: what writes the units is used step after step, and each step makes every unit of all
              units of the step before.
            - ``"reader"``: weights that read the units learn from examples of other labels.
            - ``"per-unit parameter"``: a parameter with entries for each unit meets them after the site, such as a
              bias or a codebook.
            - ``"shared bias"``: what is added to what the readers read belongs to no unit, and learns from all.
            - ``"silent site"``: the site's module was never called, so nothing was routed there.
            - ``"unknown path"``: the graph does not say.
        share: The norm of the gradient that the label gives to what its route leaves out of the target, as a part of
            the norm of all the gradient that it gives to parameters. For a site, of all that arrives at its tensor.
        advice: What to do about it.
        site: The qualified name of the site that is gone around.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1, bias=False))
        >>> router = gr.Router(model, {"0": gr.RoutingSpec.one_per_label(2)})
        >>> batch, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
        >>> report = gr.audit(router, lambda x: model(x).square().mean(), batch, labels)
        >>> bypass = report.bypasses[0]
        >>> bypass.target, bypass.kind, bypass.site, 0 < bypass.share < 1
        ('1.weight', 'reader', '0', True)
    """

    label: Hashable
    target: str
    kind: Kind
    share: float
    advice: str
    site: str


@dataclass(frozen=True)
class SiteGradients:
    """How much gradient each label gives to each unit of a site.

    Attributes:
        name: The qualified name of the module.
        on: ``"output"`` or ``"input"``.
        level: ``"activations"``: numbers are of the gradient that arrives at the tensor. ``"parameters"``: of what the
            units' own weights learn.
        taught: For each label, which units its route may teach: n_labels rows of width.
        routed: For each label, the norm of the gradient of each unit: n_labels rows of width.
        unrouted: The same, as it would be without routing.

    Examples:
        Each of 2 labels teaches a unit of its own; the gradient of 2 examples of it, 1 each, has the norm √2:

        >>> import torch, gradroute as gr
        >>> model = torch.nn.Linear(3, 2)
        >>> router = gr.Router(model, {"": gr.RoutingSpec.one_per_label(2)})
        >>> batch, labels = torch.ones(4, 3), torch.tensor([0, 0, 1, 1])
        >>> report = gr.audit(router, lambda x: model(x).sum(), batch, labels)
        >>> [site] = report.sites
        >>> site.taught
        ((True, False), (False, True))
        >>> [[round(norm, 3) for norm in row] for row in site.routed]
        [[1.414, 0.0], [0.0, 1.414]]
        >>> [[round(norm, 3) for norm in row] for row in site.unrouted]
        [[1.414, 1.414], [1.414, 1.414]]
    """

    name: str
    on: str
    level: str
    taught: tuple[tuple[bool, ...], ...]
    routed: tuple[tuple[float, ...], ...]
    unrouted: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ParameterGradients:
    """How much gradient each label gives to a parameter.

    Attributes:
        routed: The norm for each label, [n_labels].
        unrouted: The same, as it would be without routing.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Linear(3, 2)
        >>> router = gr.Router(model, {"": gr.RoutingSpec.one_per_label(2)})
        >>> batch, labels = torch.ones(4, 3), torch.tensor([0, 0, 1, 1])
        >>> report = gr.audit(router, lambda x: model(x).sum(), batch, labels)
        >>> bias = report.parameters["bias"]
        >>> bias.routed, [round(norm, 3) for norm in bias.unrouted]
        ((2.0, 2.0), [2.828, 2.828])
    """

    routed: tuple[float, ...]
    unrouted: tuple[float, ...]


@dataclass(frozen=True)
class AuditReport(tables.Report):
    """Where the gradient of each label went.

    `print` shows a table, notebooks too; `to_dict` is JSON-safe; `plot` draws heatmaps.

    Attributes:
        labels: The labels that occur in the batch, -1 (unlabeled) last.
        examples: How many examples of each there are.
        norms: The norm of the whole gradient of each label, as routed.
        sites: The gradient of every unit of every site.
        parameters: The gradient of every parameter that requires one, by its qualified name.
        bypasses: What a label trains, although its route leaves it out, the largest share first.
        allowed: The same for what the caller of the audit allowed.
        notes: What the numbers do not cover.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1, bias=False))
        >>> router = gr.Router(model, {"0": gr.RoutingSpec.one_per_label(2)})
        >>> batch, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
        >>> report = gr.audit(router, lambda x: model(x).square().mean(), batch, labels)
        >>> report.clean, report.labels, report.examples
        (False, (0, 1), (2, 2))
        >>> report.assert_clean()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        gradroute.errors.LeakError: the routing leaks, 2 bypasses:
          '1.weight' by a reader, from ...
    """

    labels: tuple[Hashable, ...]
    examples: tuple[int, ...]
    norms: tuple[float, ...]
    sites: tuple[SiteGradients, ...]
    parameters: Mapping[str, ParameterGradients]
    bypasses: tuple[Bypass, ...]
    allowed: tuple[Bypass, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def clean(self) -> bool:
        """Whether no label trains what its route leaves out, apart from what was allowed."""
        return not self.bypasses

    def assert_clean(self, tolerance: float = 0.0) -> None:
        """Raise if a bypass has a share above the tolerance: for tests and training scripts.

        Raises:
            LeakError: There is one; the message names the largest, and what to do about each kind.
        """
        found = [bypass for bypass in self.bypasses if bypass.share > tolerance]
        if found:
            raise LeakError(f"the routing leaks, {describe(found)}")

    def to_dict(self) -> dict[str, Any]:
        """All of the report in what JSON can carry; labels that are no string or number become strings."""
        return {**tables.jsonable(self), "clean": self.clean}

    def plot(self, *, columns: int = 3) -> Figure:
        """A heatmap for each site: labels by units, as routed; then those of parameters and of bypasses.

        Args:
            columns: How many stand side by side; 1 puts them below each other, for a narrow page.

        Raises:
            UsageError: Fewer than one.
            ImportError: matplotlib is missing: ``pip install matplotlib``.
        """
        return plot_audit(self, columns=columns)

    def _notes(self) -> tuple[str, ...]:
        return self.notes

    def _title(self) -> str:
        if self.clean:
            return f"Audit: clean; labels: {len(self.labels)}, sites: {len(self.sites)}"
        return f"Audit: bypasses: {len(self.bypasses)}"

    def _tables(self) -> list[tables.Table]:
        found = []
        for title, bypasses in (("Bypasses", self.bypasses), ("Allowed", self.allowed)):
            if bypasses:
                rows = [
                    (first.kind, first.target, tables.percent(share), labels)
                    for first, labels, share in _grouped(bypasses)
                ]
                found.append(tables.Table(title, ("kind", "target", "largest share", "labels, largest first"), rows))
        if self.bypasses:
            first_of_kind = {bypass.kind: bypass for bypass in reversed(self.bypasses)}
            advice = [(kind, bypass.advice) for kind, bypass in sorted(first_of_kind.items())]
            found.append(tables.Table("What to do", ("kind", "advice (names are of the largest)"), advice))
        units: list[tuple[Any, ...]] = []
        for number, label in enumerate(self.labels):
            for site in self.sites:
                on, off = _on_and_off(site, number)
                units.append((label_name(label), self.examples[number], site.name or "(model)", site.on, on, off))
        header = ("label", "examples", "site", "end", "gradient on its route", "off its route")
        found.append(tables.Table("Units", header, [tuple(map(tables.cell, row)) for row in units]))
        columns = ("parameter", "share of a label's gradient, mean", "left by routing, mean")
        found.append(tables.Table("Parameters", columns, [self._of_parameter(name) for name in self.parameters]))
        return found

    def _of_parameter(self, name: str) -> tuple[str, str, str]:
        """A row of the table: norms as parts of the label's whole gradient, and of what they are without routing."""
        gradients = self.parameters[name]

        def mean_of(parts: Iterable[float], wholes: Iterable[float]) -> str:
            known = [part / whole for part, whole in zip(parts, wholes, strict=True) if whole > 0]
            return tables.percent(sum(known) / len(known)) if known else "-"

        return name, mean_of(gradients.routed, self.norms), mean_of(gradients.routed, gradients.unrouted)


def describe(bypasses: list[Bypass]) -> str:
    """Bypasses in words, one line for each target and path."""
    lines = []
    grouped = _grouped(bypasses)
    for first, labels, share in grouped[:8]:
        lines.append(f"  {first.target!r} by a {first.kind}, from {labels}: {tables.percent(share)}. {first.advice}")
    more = f"\n  ... ({len(grouped) - 8} more)" if len(grouped) > 8 else ""
    return f"{len(bypasses)} bypasses:\n" + "\n".join(lines) + more


def split_allowed(bypasses: list[Bypass], allow: tuple[str, ...]) -> tuple[tuple[Bypass, ...], tuple[Bypass, ...]]:
    """Bypasses that are not allowed, and those that are: by a glob over targets, or by their kind."""

    def is_allowed(bypass: Bypass) -> bool:
        return any(bypass.kind == pattern or fnmatchcase(bypass.target, pattern) for pattern in allow)

    ordered = sorted(bypasses, key=lambda bypass: -bypass.share)
    found = [bypass for bypass in ordered if not is_allowed(bypass)]
    return tuple(found), tuple(bypass for bypass in ordered if is_allowed(bypass))


def frozen(parameters: dict[str, ParameterGradients]) -> Mapping[str, ParameterGradients]:
    """A mapping that nobody can write to."""
    return MappingProxyType(parameters)


def _grouped(bypasses: tuple[Bypass, ...] | list[Bypass]) -> list[tuple[Bypass, str, float]]:
    """Bypasses by target and kind, each with its labels and the largest share among them."""
    groups: dict[tuple[str, str], list[Bypass]] = {}
    for bypass in bypasses:
        groups.setdefault((bypass.target, bypass.kind), []).append(bypass)
    found = []
    for members in groups.values():
        labels = [label_name(member.label) for member in members]
        shown = ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
        found.append((members[0], shown, max(member.share for member in members)))
    return found


def _on_and_off(site: SiteGradients, number: int) -> tuple[float, float]:
    pairs = list(zip(site.routed[number], site.taught[number], strict=True))
    on, off = ([value**2 for value, taught in pairs if taught is wanted] for wanted in (True, False))
    return sum(on) ** 0.5, sum(off) ** 0.5


_MAX_SITES = 6


def plot_audit(report: AuditReport, *, columns: int = 3) -> Figure:
    """Heatmaps of an audit: of each site, labels by units; of parameters and of bypasses, by labels.

    At a site: the gradient of each unit as a part of the label's at that site, with a cross where one reaches a unit
    off the route. Of a parameter: as a part of all gradient of the label. Beyond 100 labels or parameters, and 200
    units, neighbours are averaged; beyond 6 sites, the ones with the most gradient off their routes are shown.

    Raises:
        UsageError: ``columns`` is below 1.
        ImportError: matplotlib is missing.
    """
    sites = sorted(report.sites, key=_off_route, reverse=True)[:_MAX_SITES]
    shown = [site for site in report.sites if site in sites]
    labels = [label_name(label) for label in report.labels]
    figure, axes = subplots(len(shown) + bool(report.parameters) + bool(report.bypasses), columns=columns)
    rest = iter(axes)
    for site, axis in zip(shown, rest, strict=False):
        values = np.nan_to_num(np.array(site.routed, dtype=float))
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        parts = np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)
        heatmap(axis, parts, labels, off_route=~np.array(site.taught) & (parts > 0), unit="part of the gradient here")
        axis.set(title=f"site {site.name or '(model)'}, {site.on}", xlabel="unit", ylabel="label")
    if report.parameters:
        values = np.array([gradients.routed for gradients in report.parameters.values()], dtype=float)
        norms = np.array(report.norms)
        parts = np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)
        axis = axes[len(shown)]
        heatmap(axis, parts, list(report.parameters), labels, unit="part of the label's gradient")
        axis.set(title="parameters", xlabel="label")
    if report.bypasses:
        targets = list(dict.fromkeys((bypass.target, bypass.kind) for bypass in report.bypasses))
        shares = np.zeros((len(targets), len(labels)))
        for bypass in report.bypasses:
            shares[targets.index((bypass.target, bypass.kind)), report.labels.index(bypass.label)] = bypass.share
        rows = [f"{target} ({kind})" for target, kind in targets]
        heatmap(axes[-1], shares, rows, labels, limits=(0.0, float(shares.max())), unit="share")
        axes[-1].set(title="bypasses", xlabel="label")
    figure.suptitle(report._title(), fontsize=11)
    return figure


def _off_route(site: Any) -> float:
    off = ~np.array(site.taught)
    return float(np.nan_to_num(np.array(site.routed))[off].sum())
