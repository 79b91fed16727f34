"""Models that others wrote, tiny and with random weights, in the settings that they come with, and a batch for each.

They are in training mode, as made: with dropout, running statistics, and caches of keys and values.
"""

from __future__ import annotations

from . import of_timm, of_torchvision, of_transformers
from .batches import Foreign

MODELS: dict[str, Foreign] = {
    one.name: one for library in (of_transformers, of_torchvision, of_timm) for one in library.models()
}
