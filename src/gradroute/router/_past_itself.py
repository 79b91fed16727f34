"""Modules that read a parameter of their own past its name, where no other tensor can stand in for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import UsageError, preview


class Looks:
    """Looks at what a module reads: walking a graph takes time, so not in each pass.

    What a module reads may change from pass to pass, with its settings or with what comes in. So of the passes that
    route the same parameters it is the first that is looked at, and then each power of two: what starts late is found
    before as many passes again have gone by. What is found is looked for in the next pass, too.
    """

    def __init__(self) -> None:
        self._passes: dict[tuple[str, ...], int] = {}

    def check(
        self,
        module: nn.Module,
        learning: Mapping[str, Tensor],
        routed: Collection[str],
        outputs: list[Tensor],
        ends: Iterable[Tensor],
    ) -> None:
        """Refuse outputs whose graph leads to what the module learns by, and not to what stood in for it.

        Args:
            module: The module.
            learning: What it learned by before it ran.
            routed: The names of what of that learns by route.
            outputs: What it returned.
            ends: What its graph ends at: the stand-ins, and what it was handed.

        Raises:
            UsageError: It does; or the module has made a parameter in this run, for which nothing stood in.
        """
        names = tuple(routed)
        number = self._passes.get(names, 0) + 1
        if number & (number - 1) == 0:
            made = [name for name, p in module.named_parameters() if p.requires_grad and name not in learning]
            if made:
                raise UsageError(
                    f"{type(module).__name__} has made parameters in its forward pass ({preview(made, 3)}), which "
                    "level='parameters' could not route in it. Run it once before, under torch.no_grad()."
                )
            if _reaches(outputs, {id(learning[name]) for name in names}, ends):
                raise past_itself(module)
        self._passes[names] = number


def _reaches(outputs: list[Tensor], targets: set[int], ends: Iterable[Tensor]) -> bool:
    return leads_to(outputs, lambda node: id(getattr(node, "variable", None)) in targets, {x.grad_fn for x in ends})


def leads_to(outputs: list[Tensor], is_it: Callable[[Any], bool], ends: Iterable[Any]) -> bool:
    """Whether the graph of some tensors leads to a node, on a way that does not go through these others."""
    known: set[Any] = set(ends)
    to_visit = [y.grad_fn for y in outputs if y.grad_fn is not None]
    while to_visit:
        node = to_visit.pop()
        if node in known:
            continue
        known.add(node)
        if is_it(node):
            return True
        to_visit += [inner for inner, _ in node.next_functions if inner is not None]
    return False


def holds_itself(module: nn.Module) -> bool:
    """Whether a list, tuple, dict or plain attribute of a module holds a parameter of its own: it may be read there.

    For code that is transformed or compiled, in which there is no graph to look at.
    """
    own = {id(parameter) for parameter in module.parameters()}
    for inner in module.modules():
        # Recurrent layers keep theirs in a list of their own, and up to date.
        names = [key for key in inner.__dict__ if not (isinstance(inner, nn.RNNBase) and key == "_flat_weights")]
        plain = [inner.__dict__[key] for key in names if key not in ("_parameters", "_modules", "_buffers")]
        if any(id(tensor) in own for tensor in _held(plain)):
            return True
    return False


def _held(nest: Any) -> Iterator[Tensor]:
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, (list, tuple, dict)):
        for inner in nest.values() if isinstance(nest, dict) else nest:
            yield from _held(inner)


def past_itself(module: nn.Module, reads: str = "reads") -> UsageError:
    """The error."""
    return UsageError(
        f"{type(module).__name__} {reads} a parameter of its own by another reference than the one it "
        "is registered under, such as a list of parameters, so that level='parameters' cannot stand in for it. "
        "Read it as an attribute, self.weight, or put sites on the layers inside of it."
    )
