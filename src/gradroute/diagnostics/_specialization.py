"""`specialization`: what each label's units have learned, measured on held-out data, next to a placebo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..errors import LabelError, SiteError, UsageError, did_you_mean
from ..router._attachment import AttachedSite, attachment_of
from ..router._router import Router
from ..spec._masks import UNLABELED
from ._linear_probes import Array, Estimate, Procedure, decode, interval, probe, sklearn
from ._reports import label_name
from ._specialization_report import Slice, SpecializationReport
from .harness._batches import Group, group_by_label, length, take
from .harness._site_probes import Probes
from .harness._untouched import Untouched

__all__ = ["specialization"]

Step: TypeAlias = Callable[[Any], Tensor]


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
    """Measure what each label's units have learned, on data that the model was not trained on.

    For each label it measures how active the label's units are; how well a linear probe tells the label from others by
    its own units, and by all other units (a *certificate* that they do not hold the label, as far as linear probes
    can see); how much of the targets a linear decoder reads from either; and how the loss on each label changes when
    the units of one label are off. Probes are fitted once more to shuffled labels: what they find there is what this
    procedure finds where there is nothing to find.

    A unit has one value for each example: the mean over all dimensions other than batch and units. The model runs
    without labels, so that no unit is silent.

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
