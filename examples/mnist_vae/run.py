"""A run's folder: what lies where in it, and whether it is finished."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from common.errors import ExampleError
from common.files import read_json, replacing
from mnist_vae.config import Config
from mnist_vae.model import VAE, build_model


@dataclass(frozen=True)
class Run:
    """Paths of one run. The weights exist if and only if its training is finished."""

    folder: Path

    def __post_init__(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ExampleError(f"--out {self.folder} is a file; give a folder for the run.")

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def checkpoint(self) -> Path:
        """What training goes on from after an interruption."""
        return self.folder / "checkpoint.pt"

    @property
    def history(self) -> Path:
        return self.folder / "history.json"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def figures(self) -> Path:
        return self.folder / "figures"

    def files(self) -> list[Path]:
        """What the run has written so far."""
        paths = [self.config, self.weights, self.checkpoint, self.history, self.metrics]
        return [path for path in paths if path.is_file()] + sorted(self.figures.glob("*.png"))

    def clear(self) -> None:
        """Delete the run's own files, and nothing else that lies in the folder."""
        # In this order, so that whatever is left by an interruption cannot pass for a part of another run.
        for path in [self.weights, self.checkpoint, *self.files()]:
            path.unlink(missing_ok=True)

    def save_weights(self, model: VAE) -> None:
        tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
        with replacing(self.weights) as temporary:
            temporary.write_bytes(to_bytes(tensors))

    def load_config(self) -> Config:
        if not self.config.is_file():
            raise ExampleError(
                f"{self.folder} holds no run (there is no {self.config.name}). Run `train` with the same --out first."
            )
        return Config.from_dict(read_json(self.config))

    def load_model(self) -> VAE:
        """The trained model, in evaluation mode."""
        config = self.load_config()
        if not self.weights.is_file():
            raise ExampleError(
                f"the run in {self.folder} is not finished (there is no {self.weights.name}). Run `train` again: "
                "it goes on from its last complete epoch."
            )
        model = build_model(config)
        try:
            model.load_state_dict(load_file(self.weights))
        except (SafetensorError, RuntimeError) as error:
            raise ExampleError(
                f"{self.weights} does not hold the weights of this model ({error}). Train anew with --fresh."
            ) from error
        return model.eval()
