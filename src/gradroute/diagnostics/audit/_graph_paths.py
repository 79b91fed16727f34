"""`Paths`: by which way round a site the gradient of a loss reached a parameter, read off the graph of the loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from ... import _torch_private as private

Kind: TypeAlias = Literal[
    "side loss",
    "skip connection",
    "auxiliary hook",
    "gradient hook",
    "tied weight",
    "recurrence",
    "reader",
    "per-unit parameter",
    "shared bias",
    "silent site",
    "unknown path",
]
"""What kind of bypass it is."""

_ROUTES = ("_RouteBatchBackward", "_RouteSmallBackward", "RouteMaskBackward", "ReplacingRouteMaskBackward")
# What a loss is put together with: weighted sums, means, and their reshaping.
_OF_LOSSES = (
    *("Add", "Sub", "Rsub", "Mul", "Div", "Mean", "Sum", "Neg", "Stack", "Cat"),
    *("View", "Squeeze", "Unsqueeze", "Reshape", "Select", "ToCopy"),
)
# What a weight passes through on its way to an operation that uses it.
_OF_WEIGHTS = ("T", "Transpose", "Permute", "View", "ToCopy", "Alias", "AccumulateGrad", "Unsqueeze", "Reshape")

Edge: TypeAlias = "tuple[Node, int]"


class Paths:
    """The graph of one loss, routed, and where its paths leave and meet the route of one site.

    *Upstream* of the site is all that its tensor was made of. A gradient that goes *around* the site enters upstream by
    another edge than the site's route. Two things tell what kind of path that is: the node at which it enters (a weight
    that is used twice; a tensor that a hook of the user saw), and where it parts from the routed path: at the loss, or
    after it.

    Args:
        loss: The loss.
        sites: The edges at which the gradients of the site's tensors arrive.
        forks: The edges of tensors that hooks of the user saw.
    """

    def __init__(self, loss: Tensor, sites: Iterable[GradientEdge], forks: Iterable[GradientEdge]) -> None:
        self._forks = {(edge.node, edge.output_nr) for edge in forks}
        edges = list(sites)
        root = loss.grad_fn
        assert root is not None
        self._consumers: dict[Node, list[tuple[Node, int]]] = {}
        self._order = nodes([root])
        for node in self._order:
            for inner, number in node.next_functions:
                if inner is not None:
                    self._consumers.setdefault(inner, []).append((node, number))
        self._upstream = nodes(edge.node for edge in edges)
        routes = {
            node
            for edge in edges
            for node, number in self._consumers.get(edge.node, ())
            if _is_route(node) and number == edge.output_nr
        }
        self._downstream = self._above(routes)
        self._around = [
            (consumer, (node, number))
            for node in self._upstream
            for consumer, number in self._consumers.get(node, ())
            if consumer not in self._upstream and not _is_route(consumer)
        ]
        self._of_loss = self._loss_region(root)

    def kinds(self, target: nn.Parameter | GradientEdge) -> list[Kind]:
        """How the gradient goes around the site to a parameter, or to the site's own tensor; the surest first."""
        if isinstance(target, GradientEdge):
            wanted = {target.node}
        else:
            wanted = {node for node in self._order if getattr(node, "variable", None) is target}
        found: list[Kind] = []
        for consumer, fork in self._around:
            if wanted & nodes([fork[0]]).keys():
                found.append(self._kind(consumer, fork, is_weight=not isinstance(target, GradientEdge)))
        found += [self._beside(node) for node in wanted if node not in self._upstream]
        order: tuple[Kind, ...] = ("auxiliary hook", "tied weight", "skip connection", "side loss")
        return [kind for kind in order if kind in found] or ["unknown path"]

    def _kind(self, consumer: Node, fork: Edge, *, is_weight: bool) -> Kind:
        if is_weight and _is_bare_weight(fork[0]):
            return "tied weight"
        if fork in self._forks:
            return "auxiliary hook"
        return self._beside(consumer)

    def _beside(self, node: Node) -> Kind:
        """What a path is that begins at a node of which nothing at the site is made."""
        return "side loss" if all(self._is_loss(met) for met in self._meets(node)) else "skip connection"

    def _meets(self, start: Node) -> list[Node]:
        """Where the ways from a node to the loss first meet what comes after the site."""
        met, queue, seen = [], [start], {start}
        while queue:
            node = queue.pop()
            if node in self._downstream:
                met.append(node)
                continue
            for consumer, _ in self._consumers.get(node, ()):
                if consumer not in seen:
                    seen.add(consumer)
                    queue.append(consumer)
        return met

    def _is_loss(self, node: Node) -> bool:
        """Whether a node makes a loss, or a loss for each example, and no activation."""
        shape = private.shape_of_node(node)
        if shape is None or len(shape) == 0 or all(size == 1 for size in shape):
            return True
        return len(shape) == 1 and node in self._of_loss

    def _above(self, nodes: Iterable[Node]) -> set[Node]:
        above = set(nodes)
        queue = list(above)
        while queue:
            for consumer, _ in self._consumers.get(queue.pop(), ()):
                if consumer not in above:
                    above.add(consumer)
                    queue.append(consumer)
        return above

    def _loss_region(self, root: Node) -> set[Node]:
        region, queue = {root}, [root]
        while queue:
            node = queue.pop()
            if not node.name().startswith(_OF_LOSSES):
                continue
            for inner, _ in node.next_functions:
                if inner is not None and inner not in region:
                    region.add(inner)
                    queue.append(inner)
        return region


def nodes(starts: Iterable[Node]) -> dict[Node, None]:
    """All nodes of the graph from some nodes on, towards the parameters."""
    found = dict.fromkeys(starts)
    queue = list(found)
    while queue:
        for inner, _ in queue.pop().next_functions:
            if inner is not None and inner not in found:
                found[inner] = None
                queue.append(inner)
    return found


def _is_route(node: Node) -> bool:
    return node.name().startswith(_ROUTES)


def _is_bare_weight(node: Node) -> bool:
    """Whether a node only hands on a parameter."""
    while True:
        name = node.name().rpartition("::")[2]
        if name == "AccumulateGrad":
            return True
        inner = [following for following, _ in node.next_functions if following is not None]
        if len(inner) != 1 or name.removesuffix(name[name.find("Backward") :]) not in _OF_WEIGHTS:
            return False
        node = inner[0]
