"""What a run is made of: a recipe (model, loss, schedule) and the choices made on the command line."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from common.datasets import DatasetName
from common.errors import ExampleError

RecipeName = Literal["default", "quick", "wide", "original", "original-our-decoder", "routed-kl"]
Labels = Literal["true", "random"]
Unlabeled = Literal["all", "none", "loudest"]


@dataclass(frozen=True)
class Recipe:
    """How to train. A named instance for each in `RECIPES`."""

    model: Literal["conv", "original", "original-our-decoder", "slices", "presence"] = "conv"
    #: Latent units that each digit owns. More than one needs the model "slices" or "presence".
    units: int = 1
    #: Latent units that every digit teaches, after those of the digits. Only in "slices" and "presence".
    shared: int = 0
    #: Weight of the KL; in "presence", of the style units' only.
    kl_weight: float = 1.0
    #: Weight of the presence units' KL, in "presence".
    presence_kl_weight: float = 1.0
    #: Also send the KL's gradient along the route. See `mnist_vae.model` for why this is off.
    route_kl: bool = False
    epochs: int = 15
    batch_size: int = 256
    learning_rate: float = 4e-3
    schedule: Literal["one-cycle", "exponential"] = "one-cycle"
    #: Turn, scale and shift each image a little, at random.
    augment: bool = True


RECIPES: dict[RecipeName, Recipe] = {
    "default": Recipe(),
    "quick": Recipe(epochs=4),
    "wide": Recipe(model="presence", units=9, kl_weight=0.25, presence_kl_weight=0.5, epochs=8),
    "original": Recipe(
        model="original", epochs=100, batch_size=128, learning_rate=1e-3, schedule="exponential", augment=False
    ),
    "original-our-decoder": Recipe(
        model="original-our-decoder",
        epochs=100,
        batch_size=128,
        learning_rate=1e-3,
        schedule="exponential",
        augment=False,
    ),
    "routed-kl": Recipe(route_kl=True),
}


#: What a config may have in place of its recipe's.
OVERRIDABLE = ("model", "units", "shared", "kl_weight", "presence_kl_weight")


@dataclass(frozen=True)
class Config:
    """All that the weights of a run depend on, apart from the machine and its number of threads."""

    dataset: DatasetName = "mnist"
    recipe: RecipeName = "default"
    routing: bool = True
    seed: int = 0
    epochs: int = RECIPES["default"].epochs
    #: Part of the training images whose label is kept; the others are unlabeled.
    label_fraction: float = 1.0
    #: What an unlabeled image may teach; see `mnist_vae.labels`.
    unlabeled: Unlabeled = "all"
    #: Epochs at the start that see labeled images only, each several times.
    labeled_epochs: int = 0
    #: What routes: the digits, or labels drawn by lot.
    labels: Labels = "true"
    #: Epochs after which the routing is removed; None for never.
    routed_epochs: int | None = None
    #: In place of the recipe's own, where given.
    model: Literal["slices", "presence"] | None = None
    units: int | None = None
    shared: int | None = None
    kl_weight: float | None = None
    presence_kl_weight: float | None = None

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ExampleError(f"unknown recipe {self.recipe!r}; choose one of {', '.join(RECIPES)}.")
        if self.epochs < 1:
            raise ExampleError(f"--epochs must be at least 1; got {self.epochs}.")
        if not 0 <= self.seed < 2**31:
            raise ExampleError(f"--seed must be in [0, 2**31); got {self.seed}.")
        if not 0 <= self.label_fraction <= 1:
            raise ExampleError(f"--label-fraction must be in [0, 1]; got {self.label_fraction}.")
        if self.labeled_epochs < 0:
            raise ExampleError(f"--labeled-epochs must be at least 0; got {self.labeled_epochs}.")
        if self.routed_epochs is not None and self.routed_epochs < 0:
            raise ExampleError(f"--routed-epochs must be at least 0; got {self.routed_epochs}.")
        settings = self.settings()
        if settings.units < 1 or min(settings.shared, settings.kl_weight, settings.presence_kl_weight) < 0:
            raise ExampleError(
                "--units must be at least 1, and --shared and the KL weights at least 0; got "
                f"{settings.units}, {settings.shared}, {settings.kl_weight} and {settings.presence_kl_weight}."
            )
        if (settings.units > 1 or settings.shared > 0) and settings.model not in ("slices", "presence"):
            raise ExampleError(
                f"recipe {self.recipe!r} has one unit a digit and none that is shared; for more, give --recipe wide."
            )

    def settings(self) -> Recipe:
        """The recipe, with what the config has in its place."""
        given = {name: getattr(self, name) for name in OVERRIDABLE}
        return replace(RECIPES[self.recipe], **{name: value for name, value in given.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, with the recipe's settings written out: a later change of a recipe must not pass for the same."""
        return {**asdict(self), "settings": asdict(self.settings())}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """From a saved `to_dict`. What it lacks, since it was saved before there was such a choice, is the default."""
        names = {field.name for field in fields(cls)}
        missing = {"dataset", "recipe", "routing", "seed", "epochs"} - values.keys()
        if missing:
            raise ExampleError(f"the saved config lacks {', '.join(sorted(missing))}. Train again with --fresh.")
        return cls(**{name: values[name] for name in names & values.keys()})

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """Say, one phrase each, where a saved `to_dict` differs from this config."""
        mine, theirs = _flat(self.to_dict()), _flat(saved)
        defaults = _flat(Config().to_dict())
        # Saved before there was such a choice: the default, which is what was done then.
        theirs = {**{key: defaults[key] for key in mine.keys() - theirs.keys() if key in defaults}, **theirs}
        # The epochs stand in the config itself, where the command line may have changed them.
        keys = [key for key in [*mine, *(theirs.keys() - mine.keys())] if key != "settings.epochs"]
        return [
            f"{key} {theirs.get(key, 'absent')!r} -> {mine.get(key, 'absent')!r}"
            for key in keys
            if theirs.get(key) != mine.get(key)
        ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
