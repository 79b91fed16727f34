"""Models of timm: its own small ones, which it tests itself with, and others with few and narrow layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from .batches import Foreign, images


def models() -> Iterator[Foreign]:
    for name, (size, settings, most) in _MODELS.items():
        yield Foreign(f"timm {name}", "timm", _maker(name, settings), images(size), most)


def _maker(name: str, settings: dict[str, Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=7, **settings)

    return make


_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
_SWIN = {"img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2), "window_size": 4}

#: The size of the images, the settings, and how many of its modules are sites.
_MODELS: dict[str, tuple[int, dict[str, Any], int | None]] = {
    "test_byobnet": (32, {}, None),
    "test_convnext": (32, {}, None),
    "test_efficientnet": (32, {}, None),
    "test_efficientnet_evos": (32, {}, None),
    "test_efficientnet_gn": (32, {}, None),
    "test_efficientnet_ln": (32, {}, None),
    "test_mambaout": (32, {}, None),
    "test_nfnet": (32, {}, None),
    "test_resnet": (32, {}, None),
    "test_vit": (160, {}, 60),
    "test_vit_relpos": (160, {}, 30),
    "test_coatnet": (160, {}, 30),
    "deit_tiny_distilled_patch16_224": (16, _VIT, None),
    "beit_base_patch16_224": (16, _VIT, None),
    "eva02_tiny_patch14_224": (16, _VIT, None),
    "swin_tiny_patch4_window7_224": (32, _SWIN, None),
    "swinv2_tiny_window8_256": (32, _SWIN, None),
    "xcit_nano_12_p16_224": (32, {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2, "cls_attn_layers": 1}, None),
    "cait_xxs24_224": (32, {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}, None),
    "levit_128s": (64, {"img_size": 64, "embed_dim": (8, 16, 16), "num_heads": (1, 2, 2), "depth": (1, 1, 1), "key_dim": 4}, None),
    "davit_tiny": (32, {"depths": (1, 1), "embed_dims": (8, 16), "num_heads": (1, 2), "window_size": 4}, None),
    "edgenext_xx_small": (32, {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, None),
    "visformer_tiny": (32, {"img_size": 32, "embed_dim": 16, "depth": (1, 1, 1), "num_heads": 2, "init_channels": 8}, None),
    "twins_svt_small": (32, {"img_size": 32, "embed_dims": (8, 8, 16, 16), "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2), "wss": (2, 2, 2, 2)}, None),
    "sequencer2d_s": (32, {"img_size": 32, "layers": (1, 1), "patch_sizes": (4, 1), "embed_dims": (8, 16), "hidden_sizes": (4, 8), "mlp_ratios": (2.0, 2.0)}, None),
    "hiera_tiny_224": (32, {"img_size": (32, 32), "embed_dim": 8, "num_heads": 1, "stages": (1, 1), "q_pool": 1, "mask_unit_size": (4, 4)}, None),
}  # fmt: skip
