"""What the units buy: accuracy against reconstruction as units per digit, KL weight and shared units change."""

from dataclasses import replace

from common.datasets import DatasetName
from mnist_vae.config import Config
from mnist_vae.study.compare import Control

UNITS = (1, 2, 5, 13)
SLICES = (2, 4)
KL_WEIGHTS = (1.0, 0.1)
SHARED = (6,)
#: The recipe and what it is held against.
WIDE_ROWS = ("twin", "twin-kl-0.25", "wide", "wide-unrouted")


def tradeoff(dataset: DatasetName, epochs: int) -> list[Control]:
    """The rows of the curve, each with one thing changed from the recipe `wide`; the twin has no routing."""
    wide = Config(dataset, "wide", epochs=epochs)
    settings = wide.settings()
    twin = Config(dataset, "default", routing=False, epochs=epochs)
    rows = [
        Control("twin", "unrouted, ten units in all", twin),
        Control(
            f"twin-kl-{settings.kl_weight:g}",
            f"the same, KL weight {settings.kl_weight:g}",
            replace(twin, kl_weight=settings.kl_weight),
        ),
        Control("wide", f"{settings.units} units a digit, KL weight {settings.kl_weight:g}", wide),
        Control("wide-unrouted", "the same without routing", replace(wide, routing=False)),
    ]
    rows += [Control(f"units-{n}", f"units a digit: {n}", replace(wide, units=n)) for n in UNITS if n != settings.units]
    rows += [
        Control(f"kl-{weight:g}", f"KL weight {weight:g}", replace(wide, kl_weight=weight))
        for weight in KL_WEIGHTS
        if weight != settings.kl_weight
    ]
    rows += [Control(f"shared-{n}", f"and {n} shared style units", replace(wide, shared=n)) for n in SHARED]
    rows += [
        Control(
            f"slices-{n}",
            f"{n} units a digit, no presence unit, KL weight 1",
            replace(wide, model="slices", units=n, kl_weight=1.0),
        )
        for n in SLICES
    ]
    return rows
