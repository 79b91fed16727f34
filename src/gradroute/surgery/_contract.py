"""`contract`: a physically smaller copy of a model, without its ablated units."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from torch import nn
from torch.optim import Optimizer

from ..errors import SiteError, UsageError, preview
from ..router._hooks import drop_orphans
from ..router._router import Router
from ._plan import Heads, Plan
from ._resize import check_optimizer, kept, resize
from ._verify import Example, arguments, compare, in_evaluation, model_of, off, outputs, refuse_silent
from ._whole_modules import WholeModules, take_out
from .graph._exported import Program, first_line
from .graph._propagation import Flow

_HEAD_COUNTS: Final = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_HEAD_WIDTHS: Final = ("split_size", "all_head_size")


class _Kept(Mapping[str, Mapping[int, tuple[int, ...]]]):
    """A mapping that cannot be changed, and whose repr fits a screen."""

    def __init__(self, positions: Mapping[str, Mapping[int, tuple[int, ...]]]) -> None:
        self._positions = {name: MappingProxyType(dict(kept)) for name, kept in positions.items()}

    def __getitem__(self, name: str) -> Mapping[int, tuple[int, ...]]:
        return self._positions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __repr__(self) -> str:
        shown = [
            f"{name}: {', '.join(f'{len(positions)} along {dim}' for dim, positions in kept.items())}"
            for name, kept in itertools.islice(self._positions.items(), 4)
        ]
        more = len(self) - len(shown)
        if not shown:
            return "<nothing smaller>"
        return f"<kept {'; '.join(shown)}{f'; and of {more} more' if more else ''}>"


@dataclass(frozen=True, repr=False)
class Contracted:
    """What `contract` returns: the smaller model, and the optimizer for it.

    Attributes:
        model: The model without the units: a copy that shares no memory with the original, and has no router.
        optimizer: A copy of the optimizer for it, with the state of what is left; None where none was given.
        kept: For each parameter and buffer that got smaller, by its name, and each dimension along which it did: the
            positions that are left. What is kept elsewhere for each weight, such as a moving average, is cut by these.
        gone: The names of the parameters and buffers of modules that were taken out as a whole.

    Examples:
        >>> import torch
        >>> from gradroute import RoutingSpec
        >>> model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1))
        >>> router = Router(model, {"1": RoutingSpec.split({"retain": 4, "forget": 2})})
        >>> contracted = contract(router, "forget", example=torch.randn(32, 3))
        >>> contracted.kept["2.weight"][1]
        (0, 1, 2, 3)
        >>> contracted  # doctest: +ELLIPSIS
        Contracted(model=<Sequential>, optimizer=None, kept=<kept 2.weight: 4 along 1; 0.weight: 4 along 0; ...>)
    """

    model: nn.Module
    optimizer: Optimizer | None
    kept: Mapping[str, Mapping[int, tuple[int, ...]]]
    gone: tuple[str, ...] = ()

    def __repr__(self) -> str:
        optimizer = None if self.optimizer is None else f"<{type(self.optimizer).__name__}>"
        gone = f", gone=<{preview(self.gone, 3)}>" if self.gone else ""
        return f"Contracted(model=<{type(self.model).__name__}>, optimizer={optimizer}, kept={self.kept!r}{gone})"


def contract(router: Router, *labels: Hashable, example: Example, optimizer: Optimizer | None = None) -> Contracted:
    """Copy a model without the units that ``router.ablated(*labels)`` switches off: its weights are smaller.

    The copy computes in evaluation what the ablated model does. This is checked on the example before it is returned.

    To find the weights, the model is exported while the units are off. The units are followed through its operations,
    back to the weights that make them and on to those that read them: through activation functions, batch norms, pools,
    reshapes, gates and whole attention heads. Where an activation function turns 0 into another constant, that goes
    into the bias of the layer that reads it.

    A site of one unit that is all of what a module returns (``Site(..., dim=None)``, or any at level ``"parameters"``)
    takes the module out as a whole: an `Absent` stands in its place, which returns zeros. Of such modules no program is
    needed. A gate that chooses among experts goes on choosing one that is gone, and gets zeros.

    Args:
        router: A router on the model, which stays as it is.
        *labels: The labels whose units are to go.
        example: Arguments of the model: a tensor, a tuple of arguments, or a mapping of arguments by name. The units
            that stay must make a difference on it.
        optimizer: One that trains the model's parameters and no others. It is copied, and its state cut with them. What
            refers to it, such as a schedule of learning rates, goes on referring to the original.

    Returns:
        The smaller model, and the optimizer for it.

    Raises:
        SpecError: No site knows one of the labels.
        SiteError: The units are used in another way: in a residual stream, in the model's output, by a norm over all
            units (a LayerNorm), by an operation that is not known; or they are part of one attention head; or nothing
            would be left; or the units that stay make no difference on the example; or the zeros in place of a whole
            module may be of another shape for another input, or it returns more than they.
        UsageError: Nothing would go, or the optimizer cannot be carried along.

    Examples:
        >>> import torch
        >>> from gradroute import RoutingSpec
        >>> model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1))
        >>> router = Router(model, {"1": RoutingSpec.split({"retain": 4, "forget": 2})})
        >>> contract(router, "forget", example=torch.randn(32, 3)).model
        Sequential(
          (0): Linear(in_features=3, out_features=4, bias=True)
          (1): ReLU()
          (2): Linear(in_features=4, out_features=1, bias=True)
        )

    References:
        Cloud et al., 2024 (arXiv:2410.04332), where the ablated part of an expanded model is thrown away.
    """
    model = model_of(router)
    found_off = off(router, labels)
    whole = WholeModules()
    for attached, keep in found_off:
        if len(keep) == 1:
            whole.add(attached)
    found_off = [(attached, keep) for attached, keep in found_off if len(keep) > 1]
    sites = [(attached.name, attached.site.axis, keep) for attached, keep in found_off]
    if optimizer is not None:
        own = set(model.parameters())
        if any(parameter not in own for group in optimizer.param_groups for parameter in group["params"]):
            raise UsageError("the optimizer trains parameters that are not the model's: contract cannot copy these.")
    args, kwargs = arguments(example)
    if whole.sites:
        with in_evaluation(model, caches=True), router.ablated(*labels), whole.watching():
            outputs(model, args, kwargs)
    absent = whole.absent()
    with in_evaluation(model), router.ablated(*labels):
        expected = outputs(model, args, kwargs)
        plan = Flow(Program(model, args, kwargs, sites, absent)).plan() if sites else Plan()
    for cut in plan.cuts:
        if bool(cut.mask.all()):
            raise SiteError(
                f"all {len(cut.mask)} units of {cut.name!r} along dimension {cut.dim} would be gone, and a layer "
                "needs at least one. ablate_ folds the ablation into the weights without changing a size."
            )
    with in_evaluation(model), router.ablated(*labels):
        refuse_silent([attached for attached, _ in found_off], model, args, kwargs, expected)
    if optimizer is not None:
        names = plan.names | {
            f"{name}.{inner}" for name in absent for inner, _ in model.get_submodule(name).named_parameters()
        }
        check_optimizer(optimizer, [parameter for name, parameter in model.named_parameters() if name in names])
    smaller, carried = copy.deepcopy((model, optimizer))
    drop_orphans(smaller)
    left = _cut(smaller, plan, carried)
    gone = take_out(smaller, absent, carried)
    with in_evaluation(smaller):
        try:
            found = outputs(smaller, args, kwargs)
        except Exception as error:
            why = f"or reaches into {preview(absent, 3)}, which is gone " if absent else ""
            raise SiteError(
                f"the smaller model cannot run: its forward code computes with sizes that are fixed in it {why}"
                f"({type(error).__name__}: {first_line(error)}). ablate_ folds the "
                "ablation into the weights without changing a size."
            ) from error
        compare(expected, found)
    return Contracted(smaller, carried, _Kept({name: kept for name, kept in left.items() if name not in gone}), gone)


def _cut(model: nn.Module, plan: Plan, optimizer: Optimizer | None) -> dict[str, dict[int, tuple[int, ...]]]:
    """Carry out a plan on a model; return what is left along each dimension of what got smaller."""
    modules = list(model.modules())
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    plan.fold(tensors)
    left: dict[str, dict[int, tuple[int, ...]]] = {}
    for cut in plan.cuts:
        resize(tensors[cut.name], kept(cut.mask, cut.dim), cut.dim, modules, optimizer)
        for name, tensor in tensors.items():
            if tensor is tensors[cut.name]:
                left.setdefault(name, {})[cut.dim] = tuple((~cut.mask).nonzero().flatten().tolist())
    for module in {heads.module for heads in plan.heads}:
        _note_heads(model.get_submodule(module), [heads for heads in plan.heads if heads.module == module])
    return left


def _note_heads(attention: nn.Module, found: list[Heads]) -> None:
    """Correct the sizes that attentions keep under their usual names; whether that was all, the example tells."""
    for names, per_head in ((_HEAD_COUNTS, False), (_HEAD_WIDTHS, True)):
        for name in names:
            for heads in found:
                size = heads.size if per_head else 1
                if getattr(attention, name, None) == heads.before * size:
                    setattr(attention, name, (heads.before - heads.gone) * size)
                    break
