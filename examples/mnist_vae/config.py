"""What a run is made of: a recipe (model, loss, schedule) and the choices made on the command line."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from mnist_vae.errors import ExampleError

DatasetName = Literal["mnist", "fashion-mnist", "kmnist"]
RecipeName = Literal["default", "quick", "original", "routed-kl"]


@dataclass(frozen=True)
class Recipe:
    """How to train. A named instance for each in `RECIPES`."""

    model: Literal["conv", "original"] = "conv"
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
    "original": Recipe(
        model="original", epochs=100, batch_size=128, learning_rate=1e-3, schedule="exponential", augment=False
    ),
    "routed-kl": Recipe(route_kl=True),
}


@dataclass(frozen=True)
class Config:
    """All that the weights of a run depend on, apart from the machine and its number of threads."""

    dataset: DatasetName = "mnist"
    recipe: RecipeName = "default"
    routing: bool = True
    seed: int = 0
    epochs: int = RECIPES["default"].epochs

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ExampleError(f"unknown recipe {self.recipe!r}; choose one of {', '.join(RECIPES)}.")
        if self.epochs < 1:
            raise ExampleError(f"--epochs must be at least 1; got {self.epochs}.")
        if not 0 <= self.seed < 2**31:
            raise ExampleError(f"--seed must be in [0, 2**31); got {self.seed}.")

    def settings(self) -> Recipe:
        return RECIPES[self.recipe]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, with the recipe's settings written out: a later change of a recipe must not pass for the same."""
        return {**asdict(self), "settings": asdict(self.settings())}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        names = {field.name for field in fields(cls)}
        missing = names - values.keys()
        if missing:
            raise ExampleError(f"the saved config lacks {', '.join(sorted(missing))}. Train again with --fresh.")
        return cls(**{name: values[name] for name in names})

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """Say, one phrase each, where a saved `to_dict` differs from this config."""
        mine, theirs = _flat(self.to_dict()), _flat(saved)
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
