"""What the page must know of a model to run it: its layers, for ``web/js/engine.js``, and its sliders."""

from typing import Any

import torch
from torch import nn

from common.errors import ExampleError
from mnist_vae.model import BLANK_LOGIT, DIGITS, SIDE, VAE, BlankPage, ChannelsLast, TwoHeads
from mnist_vae.study.wide import LOUDNESS, PresenceVAE

#: What a digit's own dimension says of a boldly drawn one.
BOLD = 4.0
#: Where the sliders end, and for styles on either side: a few images in a hundred are louder, and say more.
HIGHEST, HIGHEST_WITH_STYLE, STYLE = BOLD, 6.0, 5.0

Layer = dict[str, Any]


@torch.no_grad()
def describe(model: VAE) -> dict[str, Any]:
    """What the page must know to run the model, and to make its sliders.

    Of several units a digit the first has the slider: how strongly the digit is there. The others are its style.

    Raises:
        ExampleError: The page cannot run it, or has no sliders for its units.
    """
    units = model.encode_mean(torch.zeros(1, 1, SIDE, SIDE)).shape[1]
    per_slider = units // DIGITS.width
    wide = isinstance(model, PresenceVAE)
    if units != DIGITS.width * per_slider or (per_slider > 1 and not wide):
        raise ExampleError(
            f"the page shows models with one unit per digit, or with a presence and styles (recipe wide, no shared "
            f"units); this one has {units} units."
        )
    return {
        "units": units,
        "sliders": DIGITS.width,
        "per_slider": per_slider,
        "side": SIDE,
        # From zero, at which all decoders clip.
        "highest": HIGHEST_WITH_STYLE if wide else HIGHEST,
        "bold": BOLD,
        "loudness": LOUDNESS if wide else 1.0,  # a slider shows the norm of what is read of its digit, over this
        "style": STYLE,
        "routed": model.routing,
        "encoder": layers_of(model.encoder, "encoder", rows=units),
        "decoder": layers_of(model.decoder, "decoder"),
    }


def layers_of(module: nn.Module, name: str, *, rows: int = 0) -> list[Layer]:
    """The layers of a sequence, each with the names of its weights in the state dict.

    Args:
        module: The sequence.
        name: Its own name in the model.
        rows: How many outputs of the last layer are wanted; 0 for all.

    Raises:
        ExampleError: The page knows no such layer.
    """
    if not isinstance(module, nn.Sequential):
        raise ExampleError(f"the page runs sequences of layers; {name} is a {type(module).__name__}.")
    found = [_layer(layer, f"{name}.{place}", first=place == "0") for place, layer in module.named_children()]
    described = [layer for layer in found if layer]
    if rows:
        described[-1]["rows"] = rows
    return described


def _layer(layer: nn.Module, name: str, *, first: bool) -> Layer | None:
    found: Layer | None = None
    match layer:
        case nn.Conv2d(stride=(stride, _), padding=(int(padding), _), bias=None):
            found = {"layer": "conv", "weight": f"{name}.weight", "stride": stride, "padding": padding}
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            found = {"layer": "norm", "name": name, "epsilon": layer.eps}
        case nn.ReLU():
            found = {"layer": "relu"}
        case nn.Flatten():
            found = {"layer": "flatten"}
        case TwoHeads():
            found = _linear(f"{name}.mean", bias=True)
        case nn.Linear():
            found = _linear(name, bias=layer.bias is not None)
        case BlankPage():
            found = {"layer": "add", "value": BLANK_LOGIT}
        case ChannelsLast() if first:  # how images lie in memory, which is the page's own affair
            pass
        case _:
            raise ExampleError(f"the page knows no layer such as {name}, a {type(layer).__name__}.")
    return found


def _linear(name: str, *, bias: bool) -> Layer:
    return {"layer": "linear", "weight": f"{name}.weight", "bias": f"{name}.bias" if bias else None}
