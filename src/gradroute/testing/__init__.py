"""For property tests of routing in your own architecture: the oracle, `assert_routed`, and hypothesis strategies.

Examples:
    Five lines for a model of one's own::

        @given(st.data())
        def test_my_model_routes(data):
            spec = data.draw(specs(width=16))
            labels = data.draw(label_tensors(spec, (8,)))
            assert_routed(MyModel(), {"encoder.fc": spec}, torch.randn(8, 32), labels)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..errors import NotRoutedError
from .assertions import assert_routed
from .oracle import oracle, oracle_mask

if TYPE_CHECKING:
    from .strategies import indices, label_tensors, routes, specs, tensors

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
    return getattr(importlib.import_module(f"{__name__}.strategies"), name)
