"""Models of transformers with small configurations, of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from .batches import Foreign
from .transformers_senses import SENSES
from .transformers_text import DECODERS, ENCODERS, PAIRS


def models() -> Iterator[Foreign]:
    for model, config, batch, settings, *most in (*DECODERS, *ENCODERS, *PAIRS, *SENSES):
        yield Foreign(model, "transformers", _maker(model, config, settings), batch, *most)


def _maker(model: str, config: str, settings: dict[str, Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        made = getattr(transformers, model)(getattr(transformers, config)(**settings))
        for module in made.modules():
            if hasattr(module, "_requires_grad"):
                # Models of sound make their input require a gradient, which only leaves can; ours is none.
                module._requires_grad = False
        return made

    return make
