"""`OwnSteps`: units of one parameter, each with an optimizer's counts of its own, stepped as tensors of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Adafactor, Optimizer

from .. import _torch_private as private
from ..errors import UsageError
from ._cells import Along, Cohort, cohort_of, open_cells, part_of, part_of_gradient, put_part, taught_together
from ._slices import local
from ._state import OWN, refuse_inner, untouched_state

# Of Adafactor's state for a matrix, the dimension along which the entries share it.
_FACTORS = {"row_var": -1, "col_var": -2}


@dataclass
class _Units:
    """The units of one parameter.

    Attributes:
        along: What closes them.
        cohorts: The units, by the steps that they took.
        own: The very dict in the optimizer's state that the cohorts were read from.
    """

    along: Along
    blocks: list[Tensor]
    cohorts: list[Cohort] = field(default_factory=list)
    own: dict[str, Any] | None = None


class OwnSteps:
    """Steps the open units of each parameter as tensors of their own, and keeps what they count for each.

    What an optimizer has one of for a parameter, such as its count of steps, its state has for each unit: a tensor that
    is as long as the parameter along the dimensions that count units. Which these are says the key "own_steps", beside
    which units have taken a step. (Numbers and not names in a list: a list of strings does not survive
    `load_state_dict`.)

    Args:
        optimizer: The optimizer.
        along: Of each parameter, what closes its entries.
        tables: Of each group of units, the weights that labels give them: [n, width].
        learning: Those of the parameters that are in the optimizer now.

    Raises:
        UsageError: A unit's step cannot be that of an optimizer of its own.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        along: Mapping[nn.Parameter, Along],
        tables: list[Tensor],
        learning: Collection[nn.Parameter],
    ) -> None:
        refuse_inner(optimizer)
        if isinstance(optimizer, LBFGS):
            raise _cannot(optimizer, "it has one history for all parameters")
        self._optimizer = optimizer
        self._units: dict[nn.Parameter, _Units] = {}
        for parameter, blocks in along.items():
            if private.is_distributed(parameter):
                raise _cannot(optimizer, "a parameter is distributed, and its state would be of this process alone")
            local(parameter)  # refuses tensors whose entries share scales
            self._units[parameter] = _Units(blocks, taught_together(parameter, blocks, tables))
        # Of units whose steps depend on one another it must be known which are in a tensor of their own together:
        # those that are always taught together.
        tried = [self._try_out(parameter) for parameter in learning]
        self._of_whole_tensors = any(tried)
        for parameter in learning:
            self._read(parameter)

    # ------------------------------------------------------------------ a step

    def step(self, parameters: Mapping[nn.Parameter, Tensor], taught: list[Tensor]) -> None:
        """Step what is open of these parameters, as the optimizer would; it must leave them alone itself.

        Args:
            parameters: Those that have a gradient, with it.
            taught: For each group of units, which were taught: bool [width].
        """
        for parameter in parameters:
            self._read(parameter)  # all of them first: of some there may be a complaint
        leaves: dict[nn.Parameter, list[tuple[nn.Parameter, Cohort]]] = {}
        state: dict[nn.Parameter, dict[str, Any]] = {}
        for parameter, gradient in parameters.items():
            for cohort in self._open(parameter, taught):
                leaf = nn.Parameter(part_of(parameter.detach(), cohort.entries), requires_grad=False)
                leaf.grad = part_of_gradient(gradient, cohort.entries)
                state[leaf] = self._state_of(parameter, cohort)
                leaves.setdefault(parameter, []).append((leaf, cohort))
        # Those without state in a step of their own: torch's fused SGD takes only all or none.
        for first in (False, True):
            groups = [
                {
                    **group,
                    "params": [
                        leaf
                        for parameter in group["params"]
                        for leaf, _ in leaves.get(parameter, ())
                        if first != bool(state[leaf])
                    ],
                }
                for group in self._optimizer.param_groups
            ]
            groups = [group for group in groups if group["params"]]
            if groups:
                stand_in = private.stand_in(self._optimizer, groups, state)
                stand_in.step()
                state.update(stand_in.state)  # type: ignore[arg-type]  # it may have put other dicts there
        for parameter, pairs in leaves.items():
            for leaf, cohort in pairs:
                self._write(parameter, cohort, leaf, state[leaf])
            torch.autograd.graph.increment_version(parameter)  # a fused step of a view does not

    def _open(self, parameter: nn.Parameter, taught: list[Tensor]) -> list[Cohort]:
        """The cohorts that are open; one of which a part is open becomes two."""
        units = self._units[parameter]
        is_open = open_cells(parameter, units.along, taught)
        cohorts, found = [], []
        for cohort in units.cohorts:
            inside = cohort.cells & is_open
            if not bool(inside.any()):
                cohorts.append(cohort)
            elif torch.equal(inside, cohort.cells):
                cohorts.append(cohort)
                found.append(cohort)
            elif self._of_whole_tensors:
                raise _cannot(self._optimizer, "units that the same labels may teach were not taught together")
            else:
                found.append(cohort_of(parameter, inside))
                cohorts += [found[-1], cohort_of(parameter, cohort.cells & ~is_open)]
        units.cohorts = cohorts
        return found

    def _state_of(self, parameter: nn.Parameter, cohort: Cohort) -> dict[str, Any]:
        """The state of a tensor of these units alone; empty if they never took a step."""
        state = self._optimizer.state.get(parameter, {})
        own = state.get(OWN)
        if own is None or not bool(own["started"][cohort.cells][0]):
            return {}
        found: dict[str, Any] = {}
        for key, value in state.items():
            if key == OWN:
                continue
            if key not in own:
                found[key] = part_of(value, cohort.entries)
            elif key in _FACTORS and isinstance(self._optimizer, Adafactor):
                found[key] = part_of(value, cohort.entries).narrow(_FACTORS[key], 0, 1).clone()
            else:
                found[key] = _number(value[cohort.cells.to(value.device)][0])
        return found

    def _write(self, parameter: nn.Parameter, cohort: Cohort, leaf: nn.Parameter, state: dict[str, Any]) -> None:
        """Put weights and state of a tensor of these units alone where they belong."""
        units, whole = self._units[parameter], self._optimizer.state[parameter]
        if units.own is None:
            whole[OWN] = units.own = {"started": torch.zeros_like(cohort.cells)}
        own: dict[str, Any] = units.own
        put_part(parameter.detach(), cohort.entries, leaf.detach())
        untouched: dict[str, Tensor] | None = None
        for key, value in state.items():
            kind = _kind(self._optimizer, leaf, key, value)
            if kind == "entries":
                if key not in whole:
                    untouched = self._untouched(parameter) if untouched is None else untouched
                    whole[key] = untouched[key] if key in untouched else torch.zeros_like(parameter, dtype=value.dtype)
                put_part(whole[key], cohort.entries, value)
            elif kind == "factor":
                if key not in own:
                    sizes = zip(cohort.cells.shape, value.shape, strict=True)
                    whole[key] = value.new_zeros([units if units > 1 else size for units, size in sizes])
                    own[key] = 0
                put_part(whole[key], cohort.entries, value.expand(part_of(whole[key], cohort.entries).shape))
            else:
                one = torch.as_tensor(value)
                if key not in own:
                    whole[key] = torch.zeros(cohort.cells.shape, dtype=one.dtype, device=one.device)
                    own[key] = 0
                whole[key].masked_fill_(cohort.cells.to(one.device), one)
        own["started"] |= cohort.cells

    # ------------------------------------------------------------------ state, as the optimizer keeps it

    def _read(self, parameter: nn.Parameter) -> None:
        """Bring the state into the form that has counts for each unit, and find out which counted the same."""
        units = self._units[parameter]
        state: dict[str, Any] = self._optimizer.state.get(parameter, {})
        if units.cohorts and state.get(OWN) is units.own and bool(state) == (units.own is not None):
            return
        shape = open_cells(parameter, units.along, []).shape
        own: dict[str, Any] = {"started": torch.full(shape, bool(state), device="cpu")}
        if state and OWN not in state:
            for key, value in state.items():
                kind = _kind(self._optimizer, parameter, key, value)
                if kind == "factor":
                    raise _cannot(
                        self._optimizer,
                        "it has taken steps already, and what rows and columns share is of the whole parameter: make "
                        "the isolation before the first step",
                    )
                if kind == "one":
                    own[key] = 0
            for key in own.keys() & state.keys():
                state[key] = torch.as_tensor(state[key]).expand(shape).clone()
            state[OWN] = own
        elif state:
            own = state[OWN]
            there = [tuple(value.shape) for value in (own["started"], *(state[key] for key in own if key in state))]
            if there[0] != shape or any(len(other) != len(shape) for other in there):
                raise _cannot(
                    self._optimizer,
                    f"the state that was loaded counts for units of shape {there[0]}, and those of this router have "
                    f"{tuple(shape)}",
                )
            own["started"] = own["started"].to("cpu", torch.bool)  # a checkpoint is loaded in the parameter's dtype
        units.own = own if state else None
        units.cohorts = [cohort_of(parameter, cells) for cells in self._counted_alike(units, own, state)]

    def _counted_alike(self, units: _Units, own: dict[str, Any], state: dict[str, Any]) -> Iterator[Tensor]:
        """The units that have counted the same, as cells."""
        counts = [own["started"].double()]
        counts += [state[key].cpu().double() for key in own if key in state and key not in _FACTORS]
        rows = torch.stack([count.flatten() for count in counts], 1)
        _, cohort = rows.unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
        cohort = cohort.view(own["started"].shape)
        for cells in units.blocks if self._of_whole_tensors else [torch.ones_like(cohort, dtype=torch.bool)]:
            numbers = cohort[cells].unique().tolist()
            if len(numbers) > 1 and self._of_whole_tensors:
                raise _cannot(self._optimizer, "units that the same labels may teach took different steps before")
            yield from (cells & (cohort == number) for number in numbers)

    def join(self) -> None:
        """Put the counts back as the optimizer itself would have them: those of the unit that took the most steps.

        State that cannot be joined, the factors of Adafactor, is dropped, and made anew by the next step.
        """
        for parameter, units in self._units.items():
            state: dict[str, Any] = self._optimizer.state.get(parameter, {})
            own = state.pop(OWN, None)
            units.own, units.cohorts = None, []
            if own is None:
                continue
            if isinstance(self._optimizer, Adafactor) and _FACTORS.keys() & own.keys():
                self._optimizer.state.pop(parameter)
                continue
            most = (state["step"].cpu() if "step" in own else own["started"].double()).flatten().argmax()
            for key in own.keys() & state.keys():
                state[key] = _number(state[key].flatten()[int(most)])

    def _untouched(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        try:
            return untouched_state(self._optimizer, parameter, parameter.detach())
        except UsageError:
            return {}  # units that took no step have no state in any case: this is for when the isolation is removed

    def _try_out(self, parameter: nn.Parameter) -> bool:
        """Step a few rows like a parameter's, and see whether each of them is stepped by itself.

        Returns:
            Whether a row's step depends on the other rows of its tensor.

        Raises:
            UsageError: The optimizer cannot be tried, or counts elsewhere than in the state of each parameter.
        """
        shape = (min(len(parameter), 4), *parameter.shape[1:]) if parameter.ndim else ()
        values = torch.linspace(1, 2, torch.Size(shape).numel(), dtype=parameter.dtype, device=parameter.device)
        values = values.view(shape).clone()
        values[len(values) // 2 :] *= 10
        (whole,) = self._try_step(parameter, [values])
        if not parameter.ndim or len(values) < 2:
            return False
        alone = torch.cat(self._try_step(parameter, list(values.chunk(2))))
        moved, apart = (whole - values).abs().double().norm(), (whole - alone).abs().double().norm()
        return bool(apart > 0.02 * moved)

    def _try_step(self, parameter: nn.Parameter, values: list[Tensor]) -> list[Tensor]:
        """What a first step makes of these values, each a tensor of its own."""
        leaves = [nn.Parameter(each.clone(), requires_grad=False) for each in values]
        [group] = [each for each in self._optimizer.param_groups if any(p is parameter for p in each["params"])]
        group = {**group, "params": leaves}
        if "lr" in group:  # which a schedule may have at 0 now
            group["lr"] = torch.full_like(group["lr"], 0.1) if isinstance(group["lr"], Tensor) else 0.1
        before = {key: value for key, value in group.items() if key != "params"}
        failed: list[Exception] = []
        for sparse in (False, True):
            for leaf in leaves:
                leaf.grad = leaf.detach().to_sparse(1) if sparse and leaf.ndim > 1 else leaf.detach().clone()
            stand_in = private.stand_in(self._optimizer, [group], {})
            attributes = dict(vars(stand_in))
            try:
                stand_in.step()
            except Exception as error:  # such as that it wants sparse gradients
                failed.append(error)
            else:
                break
        else:
            raise _cannot(self._optimizer, f"it cannot step a tensor like a parameter ({failed[0]})") from failed[0]
        moved = [key for key, value in before.items() if value is not group[key] and value != group[key]]
        numbers = {key: value for key, value in vars(stand_in).items() if type(value) in (int, float)}
        moved += [key for key, value in numbers.items() if value != attributes.get(key, value)]
        if moved:
            raise _cannot(self._optimizer, f"it counts for all parameters at once, in {moved[0]!r}")
        for leaf in leaves:
            for key, value in stand_in.state[leaf].items():
                _kind(self._optimizer, leaf, key, value)
        return [leaf.detach() for leaf in leaves]


def _number(value: Tensor) -> Tensor | int:
    """What counts, as the optimizer had it: integers are Python's, as SparseAdam has them."""
    return value.clone() if value.is_floating_point() else int(value)


def _kind(optimizer: Optimizer, parameter: Tensor, key: str, value: Any) -> str:
    """Whether state is of each of a tensor's "entries", "one" for all of them, or a "factor" of Adafactor's.

    Raises:
        UsageError: It is none of these.
    """
    if isinstance(optimizer, Adafactor) and key in _FACTORS:
        return "factor"
    if isinstance(value, Tensor) and type(value) in (Tensor, nn.Parameter):
        if value.shape == parameter.shape:
            return "entries"
        if value.ndim == 0:
            return "one"
    if isinstance(value, int) and not isinstance(value, bool) and key == "step":
        return "one"
    what = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise _cannot(optimizer, f"of its state {key!r}, {what}, it is not known what belongs to a unit")


def _cannot(optimizer: Optimizer, why: str) -> UsageError:
    return UsageError(
        f"{type(optimizer).__name__} cannot count the steps of each unit by itself: {why}. Use own_steps=False, or an "
        "optimizer whose state has the shapes of the parameters and counts of steps, such as AdamW."
    )
