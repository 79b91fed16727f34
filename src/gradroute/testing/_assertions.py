"""`assert_routed`: holds a routed model against the oracle."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NotRoutedError, RoutingError
from ..router._attachment import Labels, attachment_of
from ..router._router import Router, Sites
from ..spec._masks import UNLABELED
from ._oracle import closed_entries
from ._reference import Reference


def assert_routed(
    model: nn.Module,
    sites: Sites,
    batch: Any,
    labels: Labels | None = None,
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Assert that a router on a model does what routing means: on copies, so that the model stays as it is.

    Two things must hold. The loss with routing is bit for bit the loss without, or the loss with the silent units off
    where the specs have some. The gradient of every parameter is that of the oracle, which is written in operations
    that autograd knows: exactly 0 in the entries that the masks close for all examples of the batch, and within the
    tolerance in all others.

    Args:
        model: The model. It is copied, and so are its hooks.
        sites: As for `gradroute.Router`.
        batch: What the model takes: a tensor, a tuple of arguments, or a dict of them by name.
        labels: As for ``router(labels)``. By default drawn at random for each example, some unlabeled.
        loss: ``loss(model, batch)``, a scalar. By default the sum of the squares of all floating tensors in the output.
        rtol: The relative tolerance of gradients.
        atol: The absolute one.

    Raises:
        NotRoutedError: One of the two does not hold; it says for which parameter.
        RoutingError: The sites, the batch or the labels do not fit the model, or it gives no tensor to make a loss of.

    Examples:
        >>> import gradroute as gr
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3))
        >>> assert_routed(model, {"0": gr.RoutingSpec.one_per_label(2)}, torch.randn(4, 3))
    """
    loss = loss or _sum_of_squares
    plain, routed, reference = (copy.deepcopy(model) for _ in range(3))
    for copied in (plain, routed, reference):
        copied.zero_grad()
    router = Router(routed, sites)
    if labels is None:
        labels = _drawn_labels(router, batch)
    with torch.random.fork_rng():
        seed = torch.initial_seed()
        losses = []
        torch.manual_seed(seed)
        with Reference(plain, router, labels, forward_only=True):
            losses.append(loss(plain, batch))
        torch.manual_seed(seed)
        with router(labels):
            losses.append(loss(routed, batch))
            torch.autograd.backward(losses[-1])
        torch.manual_seed(seed)
        with Reference(reference, router, labels):
            by_formula = loss(reference, batch)
            torch.autograd.backward(by_formula, retain_graph=True)
            closed = closed_entries(by_formula, reference)
    if not torch.equal(losses[0], losses[1]):
        raise NotRoutedError(f"routing changed the loss from {losses[0].item()} to {losses[1].item()}.")
    expected = dict(reference.named_parameters())
    for name, parameter in routed.named_parameters():
        _compare(name, parameter.grad, expected[name].grad, closed[name], rtol=rtol, atol=atol)


def _compare(
    name: str, actual: Tensor | None, expected: Tensor | None, closed: Tensor | None, *, rtol: float, atol: float
) -> None:
    if actual is None:
        if expected is not None and bool(expected.any()):
            raise NotRoutedError(f"{name!r} has no gradient, and should have one.")
        return
    actual = actual.to_dense()
    expected = torch.zeros_like(actual) if expected is None else expected.to_dense()
    # An operation that lets no NaN through would close what is open, so a gradient that is there counts for more.
    closed = (expected == 0) if closed is None else closed & (expected == 0)
    leaked = int((actual[closed] != 0).sum())
    if leaked and bool(closed.all()):
        raise NotRoutedError(f"{name!r} has a gradient, and should have none.")
    if leaked:
        raise NotRoutedError(f"{name!r} has a gradient in {leaked} entries in which its route leaves none.")
    if not torch.allclose(actual, expected, rtol=rtol, atol=atol):
        most = float((actual - expected).abs().max())
        raise NotRoutedError(f"the gradient of {name!r} differs from the oracle's by up to {most:.3g}.")


def _sum_of_squares(model: nn.Module, batch: Any) -> Tensor:
    if isinstance(batch, Mapping):
        output = model(**batch)
    else:
        output = model(*batch) if isinstance(batch, tuple) else model(batch)
    found = [t.square().sum() for t in _tensors(output) if t.is_floating_point() and t.requires_grad]
    if not found:
        raise RoutingError("the model's output holds no floating tensor with a graph: give loss=.")
    return torch.stack(found).sum()


def _tensors(nest: Any) -> Iterable[Tensor]:
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, Mapping):
        yield from (tensor for value in nest.values() for tensor in _tensors(value))
    elif isinstance(nest, tuple | list):
        yield from (tensor for value in nest for tensor in _tensors(value))


def _drawn_labels(router: Router, batch: Any) -> Labels:
    size = next((len(tensor) for tensor in _tensors(batch) if tensor.ndim), None)
    if size is None:
        raise RoutingError("the batch holds no tensor, so its size is not known: give labels.")
    drawn: dict[str, Tensor] = {}
    for pattern, spec in attachment_of(router).groups:
        keys = torch.cat([spec.encode(list(spec.labels)), torch.tensor([UNLABELED])])
        drawn[pattern] = keys[torch.randint(len(keys), (size,))]
    return drawn
