"""`ablate_`: fold an ablation into the weights for good."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.fx import Node

from .. import _torch_private as private
from .. import unit_dims as units
from ..errors import SiteError
from ..router._attachment import AttachedSite
from ..router._hooks import hooks_before, is_of_a_router
from ..router._nested import argument_names
from ..router._parameter_level import OwnForward
from ..router._router import Router
from ._plan import Cut, Plan
from ._resize import check_writable, drawn_like
from ._verify import Example, arguments, compare, in_evaluation, model_of, off, outputs
from ._weight_reads import code_besides_layers, refused_elsewhere
from .graph import _axis_rules as links
from .graph._exported import IDENTITIES, Program, argument, is_tensor, name_of
from .graph._propagation import Flow

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
    zero, after it was seen that nothing else reads these weights. A model of nothing but layers of torch.nn in
    `nn.Sequential`s needs no `example` for that. In any other, code of its own could read a weight without calling the
    layer; a pass on the example shows whether it does.

    For any other site, such as an activation function or a whole block, `example` is needed too. The model is exported,
    and the zeros go into the layer that makes the units where only operations with f(0) = 0 follow on it; or else into
    all that make and read them, if these can be found.

    Args:
        router: A router on the model. It stays attached.
        *labels: The labels whose units are to be off.
        example: Arguments of the model: a tensor, a tuple of arguments, or a mapping of arguments by name. Given, the
            outputs on it before and after are compared too. It must take the path through the model's code that other
            inputs take.
        reinit: Draws fresh entries in place of zeros, for relearning: at the scale of the rest, which is normal with
            mean and standard deviation of the kept entries of the same parameter; or by a function that fills, in
            place, a tensor of the shape of a weight with the ablated units alone along their dimension, such as
            ``torch.nn.init.kaiming_uniform_`` (biases and norms are then drawn at the scale of the rest). The model
            then does not compute what the ablated one did.
        generator: Where fresh entries are drawn from.

    Raises:
        SpecError: No site knows one of the labels.
        UsageError: No label was given, nothing would be switched off, or a block of the router is open.
        SiteError: It cannot be folded exactly; the message says why, and nothing has changed.

    Note:
        A site on what makes the units leaves the columns that read them as training made them, multiplied by zeros from
        now on; sites on both ends clear both. The zeros are weights like others: labels of the same routes, or the
        momentum and averages of an optimizer that goes on, fill them again.

    Examples:
        >>> from gradroute import RoutingSpec
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> router = Router(model, {"0": RoutingSpec({"retain": 0, "forget": 1}, 2)})
        >>> ablate_(router, "forget")
        >>> model[0].weight[1].tolist(), model[0].bias[1].item()
        ([0.0, 0.0, 0.0], 0.0)

    References:
        The last step of expand, route, ablate: Cloud et al., 2024 (arXiv:2410.04332). Relearning after ablation as the
        test of it: SGTM (arXiv:2512.05648).
    """
    model = model_of(router)
    names = {tensor: name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    plan, others = Plan(), []
    weights: dict[Tensor, AttachedSite] = {}
    for site, keep in off(router, labels):
        own = _own_entries(site, ~keep)
        if not isinstance(own, str):
            _check_private(model, [tensor for tensor, _ in own])
            plan.cuts += [Cut(names[tensor], dim, ~keep) for tensor, dim in own]
            weights |= {tensor: site for tensor, _ in own}
        elif example is not None:
            others.append((site.name, site.site.dim, keep))
        else:
            raise SiteError(
                f"site {site.name!r}: {own}. Give ablate_(..., example=...), an input of the model by which the "
                "layers that make and read the units can be found; or move the site to the layer that makes them."
            )
    if example is None and (doubt := code_besides_layers(model)):
        raise SiteError(
            f"ablate_ needs an example here, to see that nothing but the layers of the sites reads their weights: "
            f"{doubt}. Give ablate_(..., example=...), an input of the model."
        )
    with in_evaluation(model):
        args, kwargs = arguments(example) if example is not None else ((), {})
        with router.ablated(*labels):
            with refused_elsewhere(weights):
                expected = outputs(model, args, kwargs) if example is not None else []
            if others:
                _find_others(Program(model, args, kwargs, others), plan)
        tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        fresh = {cut: _fresh(tensors[cut.name], cut, reinit, generator) for cut in plan.cuts if reinit}
        before = {name: tensors[name].detach().clone() for name in plan.names}
        try:
            plan.fold(tensors)
            for cut in plan.cuts:
                _write(tensors[cut.name], cut, 0)
            if example is not None:
                compare(expected, outputs(model, args, kwargs))
        except BaseException:
            for name, values in before.items():
                tensors[name].detach().copy_(values)
            raise
        for cut, values in fresh.items():
            _write(tensors[cut.name], cut, values)


def _own_entries(attached: AttachedSite, mask: Tensor) -> list[tuple[Tensor, int]] | str:
    """The entries of the site's own module that are to be zero; or why that is not the same as ablating."""
    module, site = attached.module, attached.site
    kind, why = type(module).__name__, ""
    dims = units.unit_dims(module, site.on)
    linear = isinstance(module, (nn.Linear, *units.CONVOLUTIONS, *units.TRANSPOSED_CONVOLUTIONS))
    first = tuple(argument_names(module)[:1])
    if not dims:
        why = f"of a {kind} no weights are known that make or read the units of its {site.on} alone"
    elif site.on == "input" and not linear and not units.is_conv1d_of_transformers(module):
        why = f"a {kind} does more with its input than weigh it, so that no weights of 0 stand for an input of 0"
    elif getattr(module, "max_norm", None) is not None:
        why = f"a {kind} with max_norm scales each unit by the norm of all"
    elif site.path and not (site.on == "input" and site.path in ((0,), first)):
        why = f"index={site.index!r} leads to a part of its {site.on}"
    elif site.dim not in units.channel_dims(module):
        why = f"dim={site.dim} may be another dimension of its {site.on} than that of the units"
    elif units.n_units(module, site.on) != len(mask):
        why = f"its {site.on} has {units.n_units(module, site.on)} units along another dimension than dim={site.dim}"
    elif _is_edited_besides(attached):
        why = f"another hook or forward method may edit its {site.on} between the weights and the site"
    if why or dims is None:
        return why
    for name in dims:
        check_writable(module, name)
    return [(getattr(module, name), dim) for name, dim in dims.items()]


def _is_edited_besides(attached: AttachedSite) -> bool:
    """Whether somebody else's code runs between a site's hook and the forward pass of the module's class."""
    if not isinstance(vars(attached.module).get("forward"), OwnForward | None):
        return True
    return not all(is_of_a_router(other) for other in hooks_before(attached))


def _check_private(model: nn.Module, tensors: list[Tensor]) -> None:
    for tensor in tensors:
        owners = [
            f"{name}.{key}" if name else key
            for name, module in model.named_modules()
            for key, held in private.own_tensors(module).items()
            if held is tensor
        ]
        if len(owners) > 1:
            raise SiteError(
                f"the units' weights are tied: {' and '.join(map(repr, owners))} are one tensor, so zeros for the one "
                "would change the other too. Untie them first, by a copy of the parameter."
            )


def _find_others(program: Program, plan: Plan) -> None:
    """Add what is to change for sites whose own modules do not hold the weights."""
    for seed in list(program.seeds):
        made = _made_by(program, seed)
        if made:
            plan.cuts += made
            del program.seeds[seed]
    if program.seeds:
        found = Flow(program).plan()
        # Zeros where the units are made and where they are read: what is between, such as a norm's mean, may stay.
        plan.cuts += [cut for cut in found.cuts if cut.name not in program.buffers]
        plan.folds += found.folds


def _made_by(program: Program, seed: Node) -> list[Cut]:
    """The entries that make the units of a site, where zeros there make every one of its units exactly 0; or none."""
    node = argument(seed, 1)
    dim, keep = program.seeds[seed]
    mask = ~keep
    while sum(user.meta.get("val") is not None for user in node.users) == 1:
        if name_of(node) in _MAKERS:
            return _rows(program, node, dim, mask)
        tensors = [operand for operand in node.all_input_nodes if is_tensor(operand)]
        if len(tensors) != 1 or not _keeps_zero(node):
            break
        try:
            found = [edge.back(dim, mask) for edge in links.edges(node) if edge.b is node]
        except SiteError:
            break
        if not found or found[0] is None:
            break
        (dim, mask), node = found[0], tensors[0]
    return []


# For each operation that makes units: the argument, and its dimension, that is to be 0 for them to be.
_MAKERS = {
    **{name: ((linear.weight, linear.makes), (linear.bias, 0)) for name, linear in links.LINEAR.items()},
    "embedding": ((0, 1),),
    "batch_norm": ((1, 0), (2, 0)),
}


def _rows(program: Program, node: Node, dim: int, mask: Tensor) -> list[Cut]:
    """The weight rows and biases of one operation that make some of its units; none where they are no parameters."""
    channel = 1 if name_of(node) == "batch_norm" else links.channel_of(node)
    operands = [(argument(node, position), own) for position, own in _MAKERS[name_of(node)]]
    cuts = []
    for operand, own in operands if dim == channel else ():
        if operand is None and name_of(node) != "batch_norm":
            continue  # a layer without a bias
        name = None if operand is None else program.names.get(operand.name)
        if name is None or len(operand.users) > 1 or operand.meta["val"].shape[own] != len(mask):
            return []
        cuts.append(Cut(name, own, mask))
    return cuts


def _keeps_zero(node: Node) -> bool:
    """Whether an operation on one tensor makes 0 of 0, and treats each entry by itself or only moves it."""
    if name_of(node) in IDENTITIES | links.VIEWS | links.TRANSPOSES:
        return True
    if name_of(node) not in links.POINTWISE:
        return False
    zero = torch.fx.map_arg(node.args, lambda operand: torch.zeros(1))
    return bool((node.target(*zero, **node.kwargs) == 0).all())  # type: ignore[operator]


def _fresh(before: Tensor, cut: Cut, reinit: Reinit, generator: torch.Generator | None) -> Tensor:
    gone, kept = (part.nonzero().flatten().to(before.device) for part in (cut.mask, ~cut.mask))
    shape = [len(gone) if d == cut.dim else size for d, size in enumerate(before.shape)]
    if callable(reinit) and before.ndim > 1:
        values = torch.zeros(shape, device=before.device, dtype=before.dtype)
        reinit(values)
        return values
    # Where nothing is kept, what was there before is the only scale there is.
    rest = before.index_select(cut.dim, kept) if len(kept) else before
    return drawn_like(rest, shape, generator)


def _write(tensor: Tensor, cut: Cut, values: Tensor | int) -> None:
    positions = cut.mask.nonzero().flatten().to(tensor.device)
    with torch.no_grad():
        if isinstance(values, Tensor):
            tensor.index_copy_(cut.dim, positions, values)
        else:
            tensor.index_fill_(cut.dim, positions, values)
