"""`audit`: where the gradient of each label goes, in a model with a router, under the user's own loss."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from ... import _torch_private as private
from ...errors import UsageError, preview
from ...optim._held_entries import has_other_hooks, is_held
from ...router._attachment import AttachedSite, Labels, attachment_of
from ...router._router import Router
from ...unit_dims import unit_dims
from ..harness._batches import Group, batch_size, group_by_label, length
from ..harness._joined_routers import joined, joined_labels
from ..harness._runs import LossStep, Run, Runs
from ..harness._site_probes import along_units
from ..harness._untouched import Untouched, norm, trainable
from ._bypasses import Leaks
from ._ownership import Known, Ownership
from ._report import AuditReport, Bypass, ParameterGradients, SiteGradients, frozen, split_allowed

__all__ = ["audit"]


def audit(
    router: Router | Sequence[Router],
    step: LossStep,
    batch: Any,
    labels: Labels | Sequence[Labels],
    *,
    allow: Collection[str] = (),
) -> AuditReport:
    """Measure where the gradient of each label goes, and name what a label trains although its route leaves it out.

    The step is run again and again, on the examples of one label at a time, with routing and without it (so that units
    which the spec has silent for a label are off in the one, and on in the other). Model,
    gradients, buffers, mode and random numbers are as before when it returns.

    A *bypass* is a gradient that a label gives to an entry of a parameter which belongs to units off the label's route.
    (`Bypass` lists the paths that it may take.) Experiments find what belongs to which units:

    - *writers*: the entries of parameters that change these units and no others, such as the weight rows and biases of
      the layer that makes a latent;
    - *readers*: the weight columns that read these units and nothing else. A site of level "activations" does not
      protect them; ``Site(spec, on="input", level="parameters")`` on their module does;
    - what meets each unit after the site by an entry of its own: a bias of each unit, a codebook.

    For a label that may teach no unit of a site on a module's output, all that belongs to that module is off its route,
    inner layers too, except for parameters that a module outside of it holds as well.

    What changes or reads units of several labels belongs to all of them, and is no bypass.

    Args:
        router: The router; or several on one model, whose masks are all on while each site is looked at.
        step: ``step(batch)``, the loss of a batch: a scalar tensor with a graph, a mean or a sum over examples. It must
            not call ``backward()``. It may use the router itself.
        batch: What `step` takes: any nest of tuples, lists, dicts and dataclasses, every tensor in it with the batch
            first.
        labels: The labels of the batch, as for ``router(labels)``. A batch need not hold all labels: those that are
            missing are left out. Examples with several labels count by their set of labels.

            With one label per token nobody can say which gradient of a parameter is whose, since the loss of a token
            depends on those around it. So each label is tried on all tokens of the examples in which it occurs. The
            bypasses are the same; the numbers are those of such examples.

            For several routers: one tensor for all of them, if their specs name the same labels; or a list with the
            labels of each, one label for each example. Where these differ, a label of the report is a tuple of them.
        allow: Bypasses that are meant to be: globs over the names of targets, or kinds, such as
            ``("reader", "decoder.0.bias")``. They are listed apart and do not count.

    Returns:
        The report; ``report.clean`` says whether there is no bypass.

    Raises:
        LabelError: The labels do not fit the routers' specs, or the number of routers.
        UsageError: The step returns no scalar with a graph, gradients are not finite, the batch cannot be cut up, or
            several routers are not on one model.

    Note:
        The examples of one label are a batch of their own. Where examples meet, as in a BatchNorm in training mode or
        a contrastive loss, examples of one label meet no others, so norms and shares may differ from those of the whole
        batch; which bypasses there are does not. It costs two forward and backward passes for each label, and about
        eight more for each label at each site.

    Examples:
        >>> import torch, gradroute as gr
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1, bias=False))
        >>> spec = gr.RoutingSpec({"retain": 0, "forget": 1}, 2)
        >>> batch, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
        >>> report = gr.audit(gr.Router(model, {"0": spec}), lambda x: model(x).square().mean(), batch, labels)
        >>> sorted((bypass.label, bypass.target, bypass.kind) for bypass in report.bypasses)
        [('forget', '1.weight', 'reader'), ('retain', '1.weight', 'reader')]

    References:
        What leaks in published code: readers and side losses, see Cloud et al., 2024 (arXiv:2410.04332).
    """
    one = joined(router)
    return audit_knowing(Known(), one, step, batch, joined_labels(one, labels), allow=allow)


def audit_knowing(
    known: Known, router: Router, step: LossStep, batch: Any, labels: Labels, *, allow: Collection[str]
) -> AuditReport:
    """`audit`, with what earlier ones found out about the same router and step, which costs most of their time."""
    attachment_of(router).check_usable()
    if isinstance(allow, str):
        raise UsageError(f"allow must be a collection of globs and kinds; got the string {allow!r}: write [{allow!r}].")
    groups, per_token = group_by_label(router, labels)
    if not groups:
        raise UsageError("the batch holds no example, so there is nothing to audit.")
    with Untouched(router) as untouched:
        size = batch_size(labels)
        size = length(batch) if size is None else size
        runs = Runs(router, step, batch, size, untouched)
        leaks = Leaks(runs, Ownership(runs, labels, known))
        routed, unrouted, found = [], [], list[Bypass]()
        for group in groups:
            run = _explained(runs, group, routed=True)
            found += leaks.of(group, run)
            routed.append(_Measured(router, run))
            unrouted.append(_Measured(router, _explained(runs, group, routed=False)))
    bypasses, allowed = split_allowed(found, tuple(allow))
    taught = [[mask.taught().cpu() for mask in attachment_of(router).masks(group.labels)] for group in groups]
    sites = tuple(
        SiteGradients(
            attached.name,
            attached.site.on,
            attached.site.level,
            tuple(tuple(row[attached.group].tolist()) for row in taught),
            tuple(measured.sites[position] for measured in routed),
            tuple(measured.sites[position] for measured in unrouted),
        )
        for position, attached in enumerate(attachment_of(router).sites)
    )
    parameters = {
        name: ParameterGradients(
            tuple(measured.parameters[name] for measured in routed),
            tuple(measured.parameters[name] for measured in unrouted),
        )
        for name in trainable(router.model)
    }
    return AuditReport(
        tuple(group.label for group in groups),
        tuple(len(group) for group in groups),
        tuple(measured.norm for measured in routed),
        sites,
        frozen(parameters),
        bypasses,
        allowed,
        tuple(_notes(router, known, leaks.silent, size, per_token=per_token)),
    )


class _Measured:
    """The norms of a run, so that its gradients can go."""

    def __init__(self, router: Router, run: Run) -> None:
        self.norm = run.norm
        self.parameters = {name: norm([gradient]) for name, gradient in run.gradients.items()}
        self.sites = [
            _of_parameters(attached, run) if attached.routes_parameters else _of_tensor(attached, tensors)
            for attached, tensors in zip(attachment_of(router).sites, run.at_sites, strict=True)
        ]


def _of_tensor(attached: AttachedSite, gradients: list[Tensor | None]) -> tuple[float, ...]:
    squares = torch.zeros(attached.site.spec.width, dtype=torch.float64)
    for gradient in gradients:
        if gradient is not None:
            squares += along_units(gradient.detach().double().square(), attached.site).flatten(1).sum(1).cpu()
    return tuple(squares.sqrt().tolist())


def _of_parameters(attached: AttachedSite, run: Run) -> tuple[float, ...]:
    """What each unit's own parameters learn; NaN where it is not known which they are."""
    prefix, width = f"{attached.name}." if attached.name else "", attached.site.spec.width
    own = attached.own_parameters()
    if width == 1:
        return (norm(gradient for name, gradient in run.gradients.items() if name in own),)
    squares = torch.zeros(width, dtype=torch.float64)
    dims = unit_dims(attached.module, attached.site.on)
    if not dims:
        return (float("nan"),) * width
    for name, dim in dims.items():
        gradient = run.gradients.get(f"{prefix}{name}") if f"{prefix}{name}" in own else None
        if gradient is not None and gradient.shape[dim] == width:
            dense = gradient.to_dense() if gradient.is_sparse else gradient
            squares += dense.detach().double().square().movedim(dim, 0).reshape(width, -1).sum(1).cpu()
    return tuple(squares.sqrt().tolist())


def _explained(runs: Runs, group: Group, *, routed: bool) -> Run:
    try:
        return runs.label(group, routed=routed)
    except Exception as error:
        where = "the whole batch" if group.examples is None else f"the {len(group)} examples of label {group.label!r}"
        error.add_note(f"This was an audit, which runs the step on {where} alone.")
        raise


def _notes(router: Router, known: Known, silent: list[str], size: int | None, *, per_token: bool) -> list[str]:
    notes = []
    if size is None or size < 2:
        notes.append("readers are told by what differs between examples, so none were looked for: give two or more.")
    if per_token:
        notes.append(
            "labels are per token: each label was tried on all tokens of the examples in which it occurs, since the "
            "loss of a token depends on those around it."
        )
    if any(private.is_batch_norm(module) and module.training for module in router.model.modules()):
        notes.append("BatchNorm is in training mode: the statistics of each label's examples were their own.")
    if not known.repeatable:
        notes.append(
            "two runs of the step on one batch differ, so readers could not be looked for: let the step draw its "
            "random numbers from torch, numpy, random or a torch.Generator, and use deterministic algorithms."
        )
    unknown = sorted(known.unknown & trainable(router.model).keys())
    if unknown:
        notes.append(f"it is not known what these read, so no readers were looked for in them: {preview(unknown, 4)}.")
    parametrized = [name for name, module in router.model.named_modules() if parametrize.is_parametrized(module)]
    if parametrized:
        notes.append(f"weights are computed from others here, so readers cannot be told: {preview(parametrized, 4)}.")
    held = [name for name, p in trainable(router.model).items() if is_held(p)]
    if held:
        notes.append(f"entries that a Hold keeps still have no gradient in these numbers: of {preview(held, 4)}.")
    late = [name for name, p in trainable(router.model).items() if has_other_hooks(p)]
    if late:
        notes.append(
            "hooks that run after a gradient is accumulated were left out, since they may step an optimizer; what they "
            f"change is not in these numbers: {preview(late, 4)}."
        )
    notes += [f"site {name!r} never ran." for name in silent]
    return notes
