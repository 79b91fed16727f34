"""Two ways to train one model, compared by what each parameter learns."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], *, but: tuple[str, ...] = ()) -> None:
    """All gradients are the same to rounding in double precision, and not all 0; those of `but` are not the same."""
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        if name.endswith(but):
            assert not torch.allclose(gradient, other[name]), name
        else:
            torch.testing.assert_close(
                gradient, other[name], rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
            )
    assert any(bool(gradient.any()) for gradient in one.values())
