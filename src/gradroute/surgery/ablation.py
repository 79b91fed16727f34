"""`ablate_`: fold an ablation into the weights for good."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.fx import Node

from .. import units
from ..errors import SiteError
from ..router import Router, _SiteHook
from ..sites import argument_names
from . import links
from .flow import Cut, Flow, Plan
from .links import argument, is_tensor, name_of
from .program import Program
from .resize import drawn_like
from .trial import Example, arguments, compare, in_evaluation, model_of, off, outputs

Reinit: TypeAlias = "bool | Callable[[Tensor], object]"


def ablate_(
    router: Router,
    *labels: Hashable,
    example: Example | None = None,
    reinit: Reinit = False,
    generator: torch.Generator | None = None,
) -> None:
    """Switch off the units of these labels for good, by zeros in the weights of the model.

    The units are those that ``router.ablated(*labels)`` switches off: what another label or the shared block may teach
    stays, bit for bit. Afterwards the model computes, in evaluation, what it computed inside that block, and its state
    dict is a plain one of the same keys and shapes.

    Where the site's module itself makes or reads the units (``on="output"`` of a linear layer, a convolution, an
    embedding or a norm; ``on="input"`` of a linear layer or a convolution), its rows and biases, or its columns, become
    zero. For any other site, such as an activation function or a whole block, `example` is needed: the model is
    exported, and the zeros go into the layer that makes the units where only operations with f(0) = 0 follow on it; or
    else into all that make and read them, if these can be found.

    Args:
        router: A router on the model.
        *labels: The labels whose units are to be off.
        example: Arguments of the model: a tensor, a tuple of arguments, or a mapping of arguments by name. Given, the
            outputs on it before and after are compared too.
        reinit: Draws fresh entries in place of zeros, for relearning: at the scale of the rest, which is normal with
            mean and standard deviation of the kept entries of the same parameter; or by a function that fills a tensor
            of the shape of the parameter (with the ablated units alone along their dimension) in place, such as
            ``torch.nn.init.zeros_``. The model then does not compute what the ablated one did.
        generator: Where fresh entries are drawn from.

    Raises:
        SpecError: No site knows one of the labels.
        UsageError: No label was given, or nothing would be switched off.
        SiteError: It cannot be folded exactly; the message says why, and nothing has changed.

    Examples:
        >>> from gradroute import RoutingSpec
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> router = Router(model, {"0": RoutingSpec({"retain": 0, "forget": 1}, 2)})
        >>> ablate_(router, "forget")
        >>> model[0].weight[1], model[0].bias[1]
        (tensor([0., 0., 0.], grad_fn=<SelectBackward0>), tensor(0., grad_fn=<SelectBackward0>))

    References:
        The last step of expand, route, ablate: Cloud et al., 2024 (arXiv:2410.04332). Relearning after ablation as the
        test of it: SGTM (arXiv:2512.05648).
    """
    model = model_of(router)
    router.ablated(*labels)  # raises for what cannot be ablated
    names = {tensor: name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    plan, others = Plan(), []
    for hook, keep in off(router, labels):
        own = _own_entries(model, hook, ~keep)
        if isinstance(own, str):
            if example is None:
                raise SiteError(
                    f"site {hook.name!r}: {own}. Give ablate_(..., example=...), an input of the model by which the "
                    "layers that make and read the units can be found; or move the site to the layer that makes them."
                )
            others.append((hook.name, keep, hook.site.dim))
        else:
            plan.cuts += [Cut(names[tensor], dim, ~keep, reads=hook.site.on == "input") for tensor, dim in own]
    with in_evaluation(model):
        args, kwargs = arguments(example) if example is not None else ((), {})
        with router.ablated(*labels):
            expected = outputs(model, args, kwargs) if example is not None else []
            if others:
                found = _traced(Program(model, args, kwargs, others))
                plan.cuts += found.cuts
                plan.folds += found.folds
        tensors = {name: tensor for tensor, name in names.items()}
        _check_private(model, [tensors[cut.name] for cut in plan.cuts])
        before = {name: tensors[name].detach().clone() for name in _changed(plan)}
        with torch.no_grad():
            _write(tensors, plan, lambda cut: None)
            if example is not None:
                try:
                    compare(expected, outputs(model, args, kwargs))
                except SiteError:
                    for name, values in before.items():
                        tensors[name].copy_(values)
                    raise
            if reinit:
                _write(tensors, Plan(plan.cuts), lambda cut: _fresh(before[cut.name], cut, reinit, generator))


def _own_entries(model: nn.Module, hook: _SiteHook, mask: Tensor) -> list[tuple[Tensor, int]] | str:
    """The entries of the site's own module that are to be zero; or why that is not the same as ablating."""
    module, site = model.get_submodule(hook.name), hook.site
    kind = type(module).__name__
    dims = units.unit_dims(module, site.on)
    linear = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    linear = linear or units.is_conv1d_of_transformers(module)
    if not dims:
        return f"of a {kind} no weights are known that make or read the units of its {site.on} alone"
    if site.on == "input" and not linear:
        return f"a {kind} does more with its input than weigh it, so that no weights of 0 stand for an input of 0"
    first = argument_names(module)[0]
    if site.path and not (site.on == "input" and site.path in ((0,), (first,))):
        return f"index={site.index!r} leads to a part of its {site.on}"
    if site.dim not in _unit_dim(module):
        return f"dim={site.dim} may be another dimension of its {site.on} than that of the units"
    if units.n_units(module, site.on) != len(mask):
        return f"its {site.on} has {units.n_units(module, site.on)} units along another dimension than dim={site.dim}"
    return [(getattr(module, name), dim) for name, dim in dims.items()]


def _unit_dim(module: nn.Module) -> tuple[int, ...]:
    """The values of `dim` that can only mean the units: counted from the back, or behind the batch."""
    for n, kinds in enumerate(
        [(nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d)], start=1
    ):
        if isinstance(module, kinds):
            return (1, -1 - n)
    return (1,) if isinstance(module, nn.GroupNorm) else (-1,)


def _traced(program: Program) -> Plan:
    """What to change for sites whose own modules do not hold the weights."""
    plan = Plan()
    for seed in list(program.seeds):
        made = _made_by(program, seed)
        if made is not None:
            plan.cuts += made
            del program.seeds[seed]
    if program.seeds:
        found = Flow(program).plan()
        plan.cuts += [cut for cut in found.cuts if not _is_statistic(cut.name)]
        plan.folds += found.folds
    return plan


def _made_by(program: Program, seed: Node) -> list[Cut] | None:
    """The entries that make the units of a site, where zeros there make every one of its units exactly 0."""
    node = argument(seed, 1)
    dim, keep = program.seeds[seed]
    mask = ~keep
    while sum(user.meta.get("val") is not None for user in node.users) == 1:
        name = name_of(node)
        if name in links.LINEAR | {"embedding", "batch_norm"}:
            return _rows(program, node, dim, mask)
        tensors = [operand for operand in node.all_input_nodes if is_tensor(operand)]
        if (
            len(tensors) != 1
            or name not in links.POINTWISE | links.VIEWS | {"permute", "transpose"}
            or not _keeps_zero(node)
        ):
            return None
        try:
            found = [edge.back(dim, mask) for edge in links.edges(node) if edge.b is node]
        except SiteError:
            return None
        if not found or found[0] is None:
            return None
        (dim, mask), node = found[0], tensors[0]
    return None


def _rows(program: Program, node: Node, dim: int, mask: Tensor) -> list[Cut] | None:
    """The weight rows and biases of one operation that make some of its units; None where they are no parameters."""
    cuts = []
    for edge in links.edges(node):
        normed = name_of(node) == "batch_norm" and edge.a is argument(node, 0)
        back = edge.back(dim, mask) if edge.b is node and not normed else None
        if back is not None:
            name = program.names.get(edge.a.name)
            if name is None or len(edge.a.users) > 1:
                return None
            if not _is_statistic(name):
                cuts.append(Cut(name, *back, reads=False))
    return cuts or None


def _keeps_zero(node: Node) -> bool:
    if name_of(node) not in links.POINTWISE or name_of(node) in links.IDENTITIES:
        return True
    zero = torch.fx.map_arg(node.args, lambda operand: torch.zeros(1))
    return bool((node.target(*zero, **node.kwargs) == 0).all())  # type: ignore[operator]


def _is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var"))


def _check_private(model: nn.Module, tensors: list[Tensor]) -> None:
    for tensor in tensors:
        owners = [
            f"{name}.{key}" if name else key
            for name, module in model.named_modules()
            for key, held in module._parameters.items()
            if held is tensor
        ]
        if len(owners) > 1:
            raise SiteError(
                f"the units' weights are tied: {' and '.join(map(repr, owners))} are one tensor, so zeros for the one "
                "would change the other too. Untie them first, by a copy of the parameter."
            )


def _changed(plan: Plan) -> set[str]:
    return {cut.name for cut in plan.cuts} | {fold.bias for fold in plan.folds}


def _write(tensors: dict[str, Tensor], plan: Plan, fresh: Callable[[Cut], Tensor | None]) -> None:
    """Fold the constants of a plan into biases, and write fresh entries, or zeros, into what it cuts."""
    for fold in plan.folds:
        add_constant(tensors[fold.weight], fold.dim, tensors[fold.bias], fold.values)
    for cut in plan.cuts:
        tensor, values = tensors[cut.name], fresh(cut)
        positions = cut.mask.nonzero().flatten().to(tensor.device)
        if values is None:
            tensor.index_fill_(cut.dim, positions, 0)
        else:
            tensor.index_copy_(cut.dim, positions, values)


def add_constant(weight: Tensor, dim: int, bias: Tensor, values: Tensor) -> None:
    """Add to a bias, in place, what the weight makes of inputs that are constant."""
    read = weight.detach().movedim(dim, 0).flatten(2) if weight.ndim > 2 else weight.detach().movedim(dim, 0)
    read = read.sum(2) if weight.ndim > 2 else read
    bias.add_(values.to(weight.device, weight.dtype) @ read)


def _fresh(before: Tensor, cut: Cut, reinit: Reinit, generator: torch.Generator | None) -> Tensor:
    gone, kept = (part.nonzero().flatten().to(before.device) for part in (cut.mask, ~cut.mask))
    shape = [len(gone) if d == cut.dim else size for d, size in enumerate(before.shape)]
    if callable(reinit):
        values = torch.zeros(shape, device=before.device, dtype=before.dtype)
        reinit(values)
        return values
    # Where nothing is kept, what was there before is the only scale there is.
    rest = before.index_select(cut.dim, kept) if len(kept) else before
    return drawn_like(rest, shape, generator)
