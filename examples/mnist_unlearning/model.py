"""The classifier, its reserved block, and what of it learns by route."""

import torch
from torch import Generator, nn

import gradroute as gr
from gradroute.surgery import ablate_, add_units_
from mnist_unlearning.config import Condition, Settings

PIXELS, DIGITS = 28 * 28, 10
HIDDEN, OUTPUT = "0", "2"


def build(settings: Settings, seed: int) -> nn.Sequential:
    """A network of one hidden layer, expanded by the block: its last `reserved` hidden units.

    The output layer has no bias. A bias belongs to no unit: it learns from all images, and stays when the block goes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(PIXELS, settings.hidden), nn.ReLU(), nn.Linear(settings.hidden, DIGITS, bias=False)
        )
    add_units_(model[0], model[2], settings.reserved, between=[model[1]], generator=Generator().manual_seed(seed))
    return model


def split_of(settings: Settings, *, silent: bool = False) -> gr.RoutingSpec:
    """Base and block. With ``silent=True`` the block is off for images labeled "retain"."""
    sizes = {"retain": settings.hidden, "forget": settings.reserved}
    return gr.RoutingSpec.split(sizes, silent={"retain": "forget"} if silent else None)


def attach(model: nn.Module, settings: Settings, condition: Condition) -> gr.Router:
    """Route: "retain" teaches the base, "forget" the block, unlabeled images both.

    At level "activations" the hidden layer alone learns by route, and every image teaches the whole output layer. At
    level "parameters" an image labeled "forget" does not teach the output layer to read the base, either. Where the
    base learns without the block, the block is silent for those images that are routed as "retain".
    """
    spec = split_of(settings, silent=condition.retain == "ablated")
    if condition.level == "parameters":
        return gr.Router(
            model,
            {
                HIDDEN: gr.Site(spec, level="parameters"),
                OUTPUT: gr.Site(spec, on="input", level="parameters"),
            },
        )
    # An unrouted twin has the router for its ablation, and all its images are unlabeled.
    return gr.Router(model, {HIDDEN: spec})


def remove_block(model: nn.Module, settings: Settings, *, fresh: Generator | None = None) -> None:
    """Fold the ablation into the weights at both ends of the block: what writes it and what reads it.

    Args:
        model: Without a router.
        settings: They say which units the block is.
        fresh: Draw new weights in place of zeros. Where all weights of a unit are zero no gradient reaches it, and so
            relearning could not use it.
    """
    spec = split_of(settings)
    router = gr.Router(model, {HIDDEN: spec, OUTPUT: gr.Site(spec, on="input")})
    ablate_(router, "forget", reinit=fresh is not None, generator=fresh)
    router.remove()
