"""A trained model as two ONNX files and the weights they hold, for the browser and for anyone without PyTorch.

The matrices are rounded to half precision, which halves the files; everything else, and all arithmetic, stays in single
precision. The model is rounded first and measured afterwards, so that the ONNX files, the weights beside them and the
numbers in ``metrics.json`` speak of one and the same model.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from common.datasets import Dataset, Split
from common.errors import ExampleError
from common.files import read_json, replacing, write_json
from mnist_vae.evaluate import examine
from mnist_vae.model import SIDE, VAE
from mnist_vae.page.onnx_files import write_onnx
from mnist_vae.run import Run

#: Largest difference from PyTorch, in any output, and the number of test images that it is looked for on.
TOLERANCE = 1e-4
CHECKED_IMAGES = 256
#: Where the sliders end: what a digit's own dimension says of a boldly drawn one.
HIGHEST = 4.0
SAMPLES_PER_DIGIT = 10
#: The packages that decide what is in the ONNX files.
EXPORTERS = ("torch", "onnx", "onnxscript")
FILES = ("encoder.onnx", "decoder.onnx", "model.safetensors", "config.json", "metrics.json", "model.json")
SAMPLE_FILES = ("digits.bin", "digits.json")


class Encoder(nn.Module):
    """Image [N, 1, 28, 28] to the mean [N, units]."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model.encode_mean(image)


class Decoder(nn.Module):
    """Latent z [N, units] to the image [N, 1, 28, 28]."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        return self.model.decode(z)


def export(run: Run, data: Dataset, folder: Path) -> None:
    """Write `FILES` and `SAMPLE_FILES` into ``folder``, and check the ONNX files against PyTorch.

    Raises:
        ExampleError: An output differs by more than `TOLERANCE`, or a weight is too large for half precision.
    """
    config, model = run.load_config(), run.load_model()
    round_matrices(model)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config.to_dict())
    # Of the rounded model, by the same code that measures every run.
    evaluation = examine(model, config, read_json(run.history), data)
    write_json(folder / "metrics.json", evaluation.metrics)
    write_model(model, folder)
    _write_samples(data.test, folder)
    images = data.test.images[:CHECKED_IMAGES].float() / 255
    difference = largest_difference(folder, model, images)
    if not difference <= TOLERANCE:
        raise ExampleError(
            f"the ONNX files in {folder} differ from PyTorch by {difference:.1e} on {len(images)} test images; at most "
            f"{TOLERANCE:g} is allowed. Another version of torch or onnxscript may export this model better."
        )
    size = sum((folder / name).stat().st_size for name in ("encoder.onnx", "decoder.onnx")) / 1e6
    print(
        f"export: wrote {folder}, ONNX files of {size:.2f} MB, "
        f"within {difference:.1e} of PyTorch on {len(images)} test images"
    )


def write_model(model: VAE, folder: Path) -> None:
    """Write the weights, the two ONNX files and what the page must know of the model; the same bytes each time."""
    with replacing(folder / "model.safetensors") as temporary:
        temporary.write_bytes(to_bytes(_compact(model)))
    # Two blank pages: the exporter reads nothing off the examples but their shapes.
    images = torch.zeros(2, 1, SIDE, SIDE)
    with torch.no_grad():
        codes = model.encode_mean(images)
    write_onnx(Encoder(model), folder / "encoder.onnx", image=images, output="mean")
    write_onnx(Decoder(model), folder / "decoder.onnx", z=codes, output="image")
    write_json(folder / "model.json", describe(model, codes.shape[1]))


@torch.no_grad()
def round_matrices(model: nn.Module) -> None:
    """Round, in place, each parameter of two or more dimensions to the nearest half-precision number."""
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            rounded = parameter.half().float()
            if not rounded.isfinite().all():
                raise ExampleError(f"the weights {name} are too large for half precision: the training has diverged.")
            parameter.copy_(rounded)


@torch.no_grad()
def describe(model: VAE, units: int) -> dict[str, Any]:
    """What the page must know to make its sliders."""
    # Asked of the model rather than read from its recipe: a decoder that clips at zero has no negative direction.
    blank = model.decode(torch.zeros(units, units))
    two_sided = not torch.equal(model.decode(-HIGHEST * torch.eye(units)), blank)
    return {
        "units": units,
        "side": SIDE,
        "lowest": -HIGHEST if two_sided else 0.0,
        "highest": HIGHEST,
        "two_sided": two_sided,
        "checked_images": CHECKED_IMAGES,
        "tolerance": TOLERANCE,
        # With these, the files come out the same to the byte. A build's own suffix, as of "+cpu", plays no part.
        "exported_with": {name: importlib.metadata.version(name).split("+")[0] for name in EXPORTERS},
    }


@torch.no_grad()
def largest_difference(folder: Path, model: VAE, images: Tensor) -> float:
    """Between PyTorch and the ONNX files, over both models' outputs, for the images at once and for one alone."""
    # Imported here since it is needed for this alone.
    import onnxruntime  # type: ignore[import-untyped]  # noqa: PLC0415

    sessions = [
        onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        for name in ("encoder.onnx", "decoder.onnx")
    ]
    worst = 0.0
    for batch in (images, images[:1]):
        mean = model.encode_mean(batch)
        found_mean = sessions[0].run(["mean"], {"image": batch.numpy()})[0]
        found_image = sessions[1].run(["image"], {"z": mean.numpy()})[0]
        for found, expected in ((found_mean, mean), (found_image, model.decode(mean))):
            # Not Python's max, which would let a NaN pass.
            worst = float(np.maximum(worst, np.abs(found - expected.numpy()).max()))
    return worst


def _compact(model: VAE) -> dict[str, Tensor]:
    """The state dict with the rounded matrices in half precision, which loses nothing."""
    return {
        name: (tensor.half() if tensor.is_floating_point() and tensor.ndim >= 2 else tensor).detach().contiguous()
        for name, tensor in model.state_dict().items()
    }


def _write_samples(test: Split, folder: Path) -> None:
    """The first test images of each digit, as they come: none is picked by hand."""
    chosen = [(test.labels == digit).nonzero().flatten()[:SAMPLES_PER_DIGIT] for digit in range(10)]
    index = torch.cat(chosen).sort().values
    with replacing(folder / "digits.bin") as temporary:
        temporary.write_bytes(test.images[index].contiguous().numpy().tobytes())
    write_json(folder / "digits.json", {"labels": test.labels[index].tolist(), "test_index": index.tolist()})
