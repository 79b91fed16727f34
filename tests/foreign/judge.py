"""Each module of a model in turn is a site: what came of it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import gradroute as gr

from . import oracle
from .batches import LABELS, Batch, Foreign
from .layers import layer, unit_dimension
from .oracle import Gradients, Path, Run

LEVELS = ("activations", "parameters")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one module as a site at one level."""

    module: str
    kind: str
    level: str
    #: "held", "refused", "not applicable" or "FAILED"
    result: str
    why: str = ""
    #: Whether it was also seen that with every unit closed the module's own parameters get exactly 0.
    exact: bool = False


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in a module's output the site is, or why it is nowhere."""

    path: Path = ()
    dim: int = -1
    width: int = 0
    #: Why nothing can be routed here; with ``refuses=True`` a router must say so, too.
    nothing: str = ""
    refuses: bool = False
    labels: Tensor = LABELS


def outcomes(foreign: Foreign, only: tuple[str, ...] | None = None) -> Iterator[Outcome]:
    """The outcomes of a model's modules, as many as it says, or of those named, at both levels."""
    model, batch = foreign.make()
    judge = Judge(model, batch, oracle.run(copy.deepcopy(model), batch))
    places = _places(model, batch)
    for name in chosen(model, foreign.most) if only is None else only:
        for level in LEVELS:
            kind, exact = type(model.get_submodule(name)).__name__, False
            try:
                result, why = judge.outcome(name, level, places[name])
                if result == "held":
                    wrong, exact = judge.closed(name, level, places[name])
                    result, why = ("FAILED", wrong) if wrong else (result, why)
            except Exception:
                result, why = "FAILED", traceback.format_exc(limit=-4)
            yield Outcome(name, kind, level, result, why, exact)


def chosen(model: nn.Module, most: int | None) -> list[str]:
    """The names of at most so many modules (or as many as there are classes): one of every class, the rest spread evenly."""
    names = [name for name, _ in model.named_modules()]
    if most is None or most >= len(names):
        return names
    first = {type(module): name for name, module in reversed(list(model.named_modules()))}
    taken = set(first.values())
    others = [name for name in names if name not in taken]
    more = max(most - len(taken), 0)
    taken |= {others[i * len(others) // more] for i in range(more)}
    return [name for name in names if name in taken]


# ---------------------------------------------------------------------- where


def _places(model: nn.Module, batch: Batch) -> dict[str, Place]:
    """The first floating tensor of each module's output, by the module's name, as one run finds it."""
    twin = copy.deepcopy(model)
    calls: dict[str, list[Any]] = {name: [] for name, _ in twin.named_modules()}
    for name, module in twin.named_modules():
        keep = lambda module, args, output, name=name: calls[name].append(_first(output))  # noqa: E731
        module.register_forward_hook(keep)
    oracle.run(twin, batch)
    return {name: _place(twin.get_submodule(name), found) for name, found in calls.items()}


def _first(output: Any) -> tuple[Path, torch.Size, bool] | None:
    return next(((path, y.shape, y.requires_grad) for path, y in oracle.tensors(output)), None)


def _place(module: nn.Module, calls: list[Any]) -> Place:
    if not calls:
        return Place(nothing="never called")
    if None in calls:
        return Place(nothing="returns no floating tensor")
    paths, shapes, learning = zip(*calls, strict=True)
    if not any(learning):
        return Place(nothing="computes nothing that learns")
    path, shape = paths[0], shapes[0]
    dim = unit_dimension(module, len(shape))
    rows = {one[0] if len(one) > 1 else 0 for one in shapes}
    each = min(rows) // len(LABELS)
    if len(rows) > 1 or rows != {each * len(LABELS)} or not each:
        return Place(path, dim, shape[dim] if shape else 0, "batch is not the first dimension", refuses=True)
    if len(set(paths)) > 1 or len({one[dim] for one in shapes}) > 1:
        return Place(nothing="returns other shapes from call to call")
    # Tokens or windows in one dimension with the examples: a label for each.
    return Place(path, dim, shape[dim], labels=LABELS.repeat_interleave(each))


def _site(place: Place, level: str, *, closed: bool = False) -> gr.Site:
    index = place.path if len(place.path) > 1 else place.path[0] if place.path else None
    if closed:
        spec = gr.RoutingSpec({label: gr.Route([]) for label in range(2)}, place.width)
        return gr.Site(spec, level=level, dim=place.dim, index=index)
    weights = oracle.unit_weights(place.width)
    routes = {}
    for label, row in enumerate(weights):
        used = row.nonzero().flatten().tolist()
        # A weight of its own for every unit is more than one route may say: what both may teach is shared.
        own = [unit for unit in used if unit % 4 != 2]
        routes[label] = gr.Route(own, weight=float(row[own[0]]) if own else 1.0)
    spec = gr.RoutingSpec(routes, place.width, shared=[unit for unit in range(place.width) if unit % 4 == 2])
    return gr.Site(spec, level=level, dim=place.dim, index=index)


# ---------------------------------------------------------------------- what came of it


@dataclasses.dataclass(frozen=True)
class Judge:
    """A model, a batch for it, and what its plain run left."""

    model: nn.Module
    batch: Batch
    plain: Run

    def outcome(self, name: str, level: str, place: Place) -> tuple[str, str]:
        """What comes of one module at one level, and why."""
        if place.nothing and not (place.refuses and place.width):
            return "not applicable", place.nothing
        bare = level == "parameters" and next(self.model.get_submodule(name).parameters(), None) is None
        nothing = place.nothing or ("has no parameters" if bare else "")
        twin = copy.deepcopy(self.model)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                router = gr.Router(twin, {name: _site(place, level)})
                routed = oracle.run(twin, self.batch, functools.partial(router, place.labels))
            except gr.RoutingError as error:
                return ("not applicable", nothing) if nothing else ("refused", str(error))
            except RuntimeError as error:
                # By PyTorch: of a tensor that its caller still holds the routed one is a view.
                if "is a view and is being modified inplace" not in str(error):
                    raise
                return "refused", str(error)
        said = [f"warned: {one.message}" for one in warned if issubclass(one.category, gr.UnroutedWarning)]
        if nothing:
            return "FAILED", f"no error, though: {nothing}"
        return self._compared(routed, oracle.Spot(name, place.path, place.dim, place.labels), level, said)

    def closed(self, name: str, level: str, place: Place) -> tuple[str, bool]:
        """With every unit closed for all: what of the module learns though it must not, and whether all of its own is exactly 0."""
        twin = copy.deepcopy(self.model)
        router = gr.Router(twin, {name: _site(place, level, closed=True)})
        found = oracle.run(twin, self.batch, functools.partial(router, place.labels)).gradients
        uses = _uses(self.model)
        own = {
            uses[id(p)][0]: p for p in self.model.get_submodule(name).parameters() if p.requires_grad and id(p) in uses
        }
        learning = [key for key in own if key in found and bool(found[key].any())]
        if not learning:
            return "", any(key in self.plain.gradients for key in own)
        # They may: by another of the module's outputs, or by another use of them. The oracle knows.
        spot = oracle.Spot(name, place.path, place.dim, place.labels, closed=True)
        expected = _at(level)(self.model, spot, functools.partial(oracle.run, batch=self.batch))
        wrong = [
            f"{key} learns by {float(found[key].abs().max()):.2g} though every unit is closed"
            for key in learning
            if _learns(found[key], expected.get(key), self.plain.gradients[key]) and not self._noise(spot, key)
        ]
        return "; ".join(wrong[:4]), False

    def _compared(self, routed: Run, spot: oracle.Spot, level: str, said: list[str]) -> tuple[str, str]:
        expected = _at(level)(self.model, spot, functools.partial(oracle.run, batch=self.batch))
        wrong = said + _differences(self.plain, routed, expected)
        wrong += self._not_silent(spot, routed.gradients, expected)
        if wrong:
            return "FAILED", "; ".join(wrong[:4])
        if not _unlike(self.plain.gradients, expected):
            return "not applicable", "teaches nothing by which routing could be seen"
        return "held", ""

    def _not_silent(self, spot: oracle.Spot, found: Gradients, expected: Gradients) -> list[str]:
        """Entries of the site's own layer that no label may teach, and that are not exactly 0."""
        module = self.model.get_submodule(spot.module)
        known, uses, wrong = layer(module), _uses(self.model), []
        if known is None:
            return []
        for key, p in module.named_parameters(recurse=False):
            name, dim = uses[id(p)][0], known.parameters[key]
            if name not in found:
                continue
            silent = (oracle.unit_weights(p.shape[dim]) == 0).all(0).nonzero().flatten()
            entries = [
                None if grads.get(name) is None else grads[name].index_select(dim, silent)
                for grads in (found, expected, self.plain.gradients)
            ]
            if silent.numel() and _learns(*entries) and not self._noise(spot, name, dim, silent):
                wrong.append(f"{name} learns at units that nobody may teach")
        return wrong

    def _noise(self, spot: oracle.Spot, name: str, *rows: Any) -> bool:
        """Whether these entries are reached by something else than the site's tensor, though all that comes there may cancel out."""
        grad = oracle.at_activations(self.model, spot, functools.partial(oracle.run, batch=self.batch)).get(name)
        return grad is not None and bool((grad.index_select(*rows) if rows else grad).any())


def _differences(plain: Run, routed: Run, expected: Gradients) -> list[str]:
    wrong = []
    same = len(plain.outputs) == len(routed.outputs)
    if not same or not all(torch.equal(a, b) for a, b in zip(plain.outputs, routed.outputs, strict=True)):
        wrong.append("outputs are not bit-identical")
    wrong += [f"buffer {n}" for n, b in plain.buffers.items() if not torch.equal(b, routed.buffers[n])]
    return wrong + [f"gradient of {text}" for text in _unlike(expected, routed.gradients)]


def _unlike(expected: Gradients, found: Gradients) -> list[str]:
    """Gradients that differ by more than single precision, in which some models compute a part of theirs."""
    largest = max((float(g.abs().max()) for g in expected.values() if g.numel()), default=0.0)
    wrong = []
    for name in sorted({*expected, *found}):
        one, other = expected.get(name), found.get(name)
        given = one if one is not None else other
        assert given is not None
        one, other = (torch.zeros_like(given) if g is None else g for g in (one, other))
        if one.numel() == 0:
            continue
        apart, size = float((one - other).abs().max()), float(one.abs().max())
        if not apart <= 1e-5 * size + 1e-7 * largest:
            wrong.append(f"{name}: {apart:.2g} apart, of {size:.2g}")
    return wrong


def _at(level: str) -> Callable[..., Gradients]:
    return oracle.at_activations if level == "activations" else oracle.at_parameters


def _uses(model: nn.Module) -> dict[int, list[str]]:
    """The names of every parameter, by its id: more than one where it is tied."""
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    return names


def _learns(found: Tensor, expected: Tensor | None, plain: Tensor) -> bool:
    """Whether entries learn that the oracle leaves at 0: they may where they are used outside of the module, too."""
    may = float(expected.abs().max()) if expected is not None and expected.numel() else 0.0
    # What the oracle of level "parameters" subtracts leaves a rest.
    return bool(found.any()) and may <= 1e-10 * float(plain.abs().max())
