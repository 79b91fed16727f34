"""For property tests of routing in your own architecture: the oracle, `assert_routed`, and hypothesis strategies.

Examples:
    Five lines for a model of one's own (hypothesis is needed for the strategies alone)::

        @given(st.data())
        def test_my_model_routes(data):
            spec = data.draw(specs(width=16))
            labels = data.draw(label_tensors(spec, (8,)))
            assert_routed(MyModel(), {"encoder.fc": spec}, torch.randn(8, 32), labels)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import RoutingError
from .masks import UNLABELED
from .oracle import Reference
from .router import Labels, Router, Sites
from .spec import Route, RoutingSpec

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["assert_routed", "label_tensors", "oracle", "oracle_mask", "routes", "specs", "tensors"]


class NotRoutedError(RoutingError, AssertionError):
    """The gradients of a routed model are not those of the oracle."""


def oracle_mask(spec: RoutingSpec, labels: Tensor) -> Tensor:
    """``spec.mask(labels)``, from the definition and one entry at a time: float32 ``[..., width]``.

    >>> oracle_mask(RoutingSpec.one_per_label(2), torch.tensor([1, -1]))
    tensor([[0., 1.],
            [1., 1.]])
    """

    def row(label: Any) -> list[float]:
        rule = spec.unlabeled if label == UNLABELED else spec.routes[label]
        units = range(spec.width)
        if not isinstance(rule, Route):
            return [{"all": 1.0, "none": 0.0, "shared": float(unit in spec.shared)}[rule] for unit in units]
        own = rule.units(spec.width)
        return [rule.weight if unit in own else 1.0 if unit in spec.shared else rule.elsewhere for unit in units]

    if labels.dtype != torch.bool and not labels.is_floating_point():
        names = [x if x == UNLABELED or spec.integer_keys else spec.labels[x] for x in labels.reshape(-1).tolist()]
        return torch.tensor([row(name) for name in names]).reshape(*labels.shape, spec.width)
    rows = []
    for entry in labels.reshape(-1, labels.shape[-1]).tolist():
        if labels.dtype == torch.bool:
            chosen = [row(label) for label, on in zip(spec.labels, entry, strict=True) if on] or [row(UNLABELED)]
            rows.append(
                [max(weights, key=lambda weight: (abs(weight), weight)) for weights in zip(*chosen, strict=True)]
            )
        else:
            parts = [[amount * x for x in row(label)] for amount, label in zip(entry, spec.labels, strict=True)]
            rows.append([sum(weights) for weights in zip(*parts, strict=True)])
    return torch.tensor(rows, dtype=torch.float32).reshape(*labels.shape[:-1], spec.width)


def oracle(x: Tensor, labels: Tensor, spec: RoutingSpec, *, dim: int = -1) -> Tensor:
    """What `gradroute.route` means, in operations that autograd knows: for finite x.

    >>> x = torch.ones(1, 2, requires_grad=True)
    >>> oracle(x, torch.tensor([0]), RoutingSpec.one_per_label(2)).sum().backward()
    >>> x.grad
    tensor([[1., 0.]])
    """
    mask = oracle_mask(spec, labels)
    mask = mask.reshape(*mask.shape[:-1], *[1] * (x.ndim - mask.ndim), mask.shape[-1]).movedim(-1, dim)
    mask = mask.to(x.device, x.dtype)
    # The value of the first term is x, and its gradient 0; the second is the other way round.
    return torch.where(mask == 1, x, torch.where(mask == 0, x.detach(), x.detach() + mask * (x - x.detach())))


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

    Held to be true are two things. The loss with routing is bit for bit the loss without. The gradient of every
    parameter is that of the oracle, which is written in operations that autograd knows, and exactly 0 where the
    oracle's is.

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

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3))
        >>> assert_routed(model, {"0": RoutingSpec.one_per_label(2)}, torch.randn(4, 3))
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
        losses.append(loss(plain, batch))
        torch.manual_seed(seed)
        with router(labels):
            losses.append(loss(routed, batch))
            torch.autograd.backward(losses[-1])
        torch.manual_seed(seed)
        with Reference(reference, router, labels, oracle_mask):
            torch.autograd.backward(loss(reference, batch))
    if not torch.equal(losses[0], losses[1]):
        raise NotRoutedError(f"routing changed the loss from {losses[0].item()} to {losses[1].item()}.")
    expected = dict(reference.named_parameters())
    for name, parameter in routed.named_parameters():
        _compare(name, parameter.grad, expected[name].grad, rtol, atol)


def _compare(name: str, actual: Tensor | None, expected: Tensor | None, rtol: float, atol: float) -> None:
    if expected is None or not bool(expected.any()):
        if actual is not None and bool(actual.any()):
            raise NotRoutedError(f"{name!r} has a gradient, and should have none.")
        return
    if actual is None:
        raise NotRoutedError(f"{name!r} has no gradient, and should have one.")
    actual, expected = (g.to_dense() if g.is_sparse else g for g in (actual, expected))
    leaked = int((actual[expected == 0] != 0).sum())
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
    for pattern, spec in router._groups:
        keys = torch.cat([spec.encode(list(spec.labels)), torch.tensor([UNLABELED])])
        drawn[pattern] = keys[torch.randint(len(keys), (size,))]
    same = not router._disagreeing
    return next(iter(drawn.values())) if same else drawn


# ------------------------------------------------------------------ hypothesis


def _hypothesis() -> Any:
    try:
        import hypothesis.strategies as st  # noqa: PLC0415  # optional
    except ImportError as error:
        raise ImportError("gradroute.testing's strategies need hypothesis: pip install hypothesis.") from error
    return st


def routes(width: int, *, hard: bool = False) -> SearchStrategy[Route]:
    """Routes over `width` units, of weights from -2 to 2, exact in every dtype; 1 and 0 where `hard`."""
    st = _hypothesis()
    units = st.lists(st.integers(0, width - 1), unique=True, max_size=width)
    weights = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0])
    return st.builds(Route, units) if hard else st.builds(Route, units, weights, weights)  # type: ignore[no-any-return]


def specs(width: int | None = None, *, hard: bool = False, max_labels: int = 4) -> SearchStrategy[RoutingSpec]:
    """Specs of any kind: integer or string labels, shared units, any rule for unlabeled data.

    Args:
        width: The number of units; 1 to 6 by default.
        hard: Only weights 1 and 0.
        max_labels: The most labels.

    Raises:
        ImportError: hypothesis is missing.
    """
    st = _hypothesis()

    @st.composite  # type: ignore[untyped-decorator]
    def made(draw: Any) -> RoutingSpec:
        n = width if width is not None else draw(st.integers(1, 6))
        name = draw(st.sampled_from([st.integers(0, 50), st.text(min_size=1, max_size=4)]))
        names = draw(st.lists(name, min_size=1, max_size=max_labels, unique=True))
        return RoutingSpec(
            {label: draw(routes(n, hard=hard)) for label in names},
            n,
            shared=draw(st.lists(st.integers(0, n - 1), unique=True, max_size=n)),
            unlabeled=draw(st.sampled_from(["all", "none", "shared"]) | routes(n, hard=hard)),
        )

    return made()  # type: ignore[no-any-return]


def label_tensors(spec: RoutingSpec, shape: tuple[int, ...], *, kind: str | None = None) -> SearchStrategy[Tensor]:
    """Labels for a spec, of a leading shape: ``"integer"``, ``"multi-hot"`` or ``"mixture"``; any of them by default.

    Raises:
        ImportError: hypothesis is missing.
    """
    st = _hypothesis()
    size = int(torch.Size(shape).numel())
    n = len(spec.labels)
    keys = [UNLABELED, *spec.encode(list(spec.labels)).tolist()]
    integer = st.lists(st.sampled_from(keys), min_size=size, max_size=size).map(
        lambda values: torch.tensor(values, dtype=torch.int64).reshape(shape)
    )

    def rows(entries: Any, dtype: torch.dtype) -> Any:
        row = st.lists(entries, min_size=n, max_size=n)
        table = st.lists(row, min_size=size, max_size=size)
        return table.map(lambda values: torch.tensor(values, dtype=dtype).reshape(*shape, n))

    kinds = {
        "integer": integer,
        "multi-hot": rows(st.booleans(), torch.bool),
        "mixture": rows(st.sampled_from([0.0, 0.25, 0.5, 1.0]), torch.float32),
    }
    return kinds[kind] if kind else st.one_of(*kinds.values())  # type: ignore[no-any-return]


def tensors(shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32) -> SearchStrategy[Tensor]:
    """Tensors of normal numbers, by a seed that hypothesis draws.

    Raises:
        ImportError: hypothesis is missing.
    """
    st = _hypothesis()

    def made(seed: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)

    return st.integers(0, 2**31 - 1).map(made)  # type: ignore[no-any-return]
