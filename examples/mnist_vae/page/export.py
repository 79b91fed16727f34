"""A trained model as weights that the page runs, and as two ONNX files for anyone without PyTorch.

The matrices are rounded to half precision, which halves the files; everything else, and all arithmetic, stays in single
precision. The model is rounded first and measured afterwards, so that the ONNX files, the weights beside them and the
numbers in ``metrics.json`` speak of one and the same model.
"""

from pathlib import Path

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
SAMPLES_PER_DIGIT = 10
WEIGHT_FILES = ("model.safetensors", "config.json", "metrics.json")
ONNX_FILES = ("encoder.onnx", "decoder.onnx")
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


def export(run: Run, data: Dataset, folder: Path, *, onnx: bool = True) -> None:
    """Write `WEIGHT_FILES` and `ONNX_FILES` into ``folder``, and check the ONNX files against PyTorch.

    Args:
        run: Whose model.
        data: What it is measured on.
        folder: Created if need be.
        onnx: Also write the ONNX files, which the page does not need.

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
    with replacing(folder / "model.safetensors") as temporary:
        temporary.write_bytes(to_bytes(_compact(model)))
    if not onnx:
        return
    write_onnx_files(model, folder)
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


def write_onnx_files(model: VAE, folder: Path) -> None:
    """Write the two ONNX files; the same bytes each time from the same versions of the exporter."""
    # Two blank pages: the exporter reads nothing off the examples but their shapes.
    images = torch.zeros(2, 1, SIDE, SIDE)
    with torch.no_grad():
        codes = model.encode_mean(images)
    write_onnx(Encoder(model), folder / "encoder.onnx", image=images, output="mean")
    write_onnx(Decoder(model), folder / "decoder.onnx", z=codes, output="image")


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


def write_samples(test: Split, folder: Path) -> None:
    """The first test images of each digit, as they come: none is picked by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [(test.labels == digit).nonzero().flatten()[:SAMPLES_PER_DIGIT] for digit in range(10)]
    index = torch.cat(chosen).sort().values
    with replacing(folder / "digits.bin") as temporary:
        temporary.write_bytes(test.images[index].contiguous().numpy().tobytes())
    write_json(folder / "digits.json", {"labels": test.labels[index].tolist(), "test_index": index.tolist()})
