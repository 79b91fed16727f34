"""`ablate_`: fold an ablation into the weights for good."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import SiteError
from ..router._router import Router
from ._plan import Cut
from ._resize import drawn_like
from ._verify import Example, arguments, compare, in_evaluation, model_of, off, outputs
from ._weight_reads import code_besides_layers, refused_elsewhere
from ._zeros import Zeros

Reinit: TypeAlias = "bool | Callable[[Tensor], object]"
"""Whether what is ablated is drawn anew, or the function that draws it, in place."""


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

    A site of one unit that is all of what a module returns (``Site(..., dim=None)``, or any at level ``"parameters"``)
    takes the module as a whole: all its parameters become zero, if nothing else reads them and zeros in them make
    zeros of any input. A gate that chooses among experts goes on choosing one that is gone.

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
        >>> from torch import nn
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
    found = Zeros(model)
    for site, keep in off(router, labels):
        why = found.add(site, keep)
        if why and example is None:
            raise SiteError(
                f"site {site.name!r}: {why}. Give ablate_(..., example=...), an input of the model by which the "
                "layers that make and read the units can be found; or move the site to the layer that makes them."
            )
    if example is None and (doubt := code_besides_layers(model)):
        raise SiteError(
            f"ablate_ needs an example here, to see that nothing but the layers of the sites reads their weights: "
            f"{doubt}. Give ablate_(..., example=...), an input of the model."
        )
    with in_evaluation(model):
        args, kwargs = arguments(example) if example is not None else ((), {})
        if found.whole.sites:
            with router.ablated(*labels), found.whole.watching():
                outputs(model, args, kwargs)
        found.add_whole_modules()
        with router.ablated(*labels):
            with refused_elsewhere(found.weights):
                expected = outputs(model, args, kwargs) if example is not None else []
            found.follow(args, kwargs)
        plan = found.plan
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


def _fresh(before: Tensor, cut: Cut, reinit: Reinit, generator: torch.Generator | None) -> Tensor:
    if not before.ndim:
        return drawn_like(before, before.shape, generator)
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
        if not tensor.ndim:
            tensor.copy_(torch.as_tensor(values))
        elif isinstance(values, Tensor):
            tensor.index_copy_(cut.dim, positions, values)
        else:
            tensor.index_fill_(cut.dim, positions, values)
