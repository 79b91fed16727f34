"""For property tests of routing in your own architecture: the oracle, `assert_routed`, and hypothesis strategies.

Examples:
    A few lines for a model of one's own:

    >>> import torch
    >>> from hypothesis import given, strategies as st
    >>> from gradroute.testing import assert_routed, label_tensors, specs
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU())
    >>> @given(st.data())
    ... def test_my_model_routes(data):
    ...     spec = data.draw(specs(width=4))
    ...     labels = data.draw(label_tensors(spec, (5,)))
    ...     assert_routed(model, {"0": spec}, torch.randn(5, 8), labels)
    >>> test_my_model_routes()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..errors import NotRoutedError
from ._assertions import assert_routed
from ._oracle import oracle, oracle_mask

if TYPE_CHECKING:
    from ._strategies import indices, label_tensors, routes, specs, tensors

__all__ = [
    "NotRoutedError",
    "assert_routed",
    "indices",
    "label_tensors",
    "oracle",
    "oracle_mask",
    "routes",
    "specs",
    "tensors",
]


def __getattr__(name: str) -> Any:
    """The strategies, which need hypothesis: not before they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}._strategies"), name)
