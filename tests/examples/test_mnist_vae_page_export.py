import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from common import datasets
from common.datasets import Dataset
from common.errors import ExampleError
from common.sources import default_root
from mnist_vae.cli import main
from mnist_vae.config import Config
from mnist_vae.model import build_model
from mnist_vae.page import export
from mnist_vae.page.build import PRETRAINED, PUBLISHED
from mnist_vae.page.demo import CONFIGS
from mnist_vae.page.export import ONNX_FILES, SAMPLE_FILES, TOLERANCE, WEIGHT_FILES, largest_difference, round_matrices
from mnist_vae.page.layers import describe, layers_of
from mnist_vae.run import Run
from mnist_vae.study import animation

pytestmark = pytest.mark.long

Arguments = Callable[..., list[str]]
MEGABYTE = 1e6
#: Nothing of the machine that made a file belongs in it.
TRACES = (b"/home", b"/root", b"/usr", b"/tmp", b".py", b"site-packages", b"Traceback")


def run_onnx(path: Path, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def test_export_from_the_command_line(
    tmp_path: Path, command_line: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    main(["train", *command_line("--out", str(out), "--epochs", "2")])
    main(["export", *command_line("--out", str(out))])
    folder = out / "export"
    assert sorted(path.name for path in folder.iterdir()) == sorted((*WEIGHT_FILES, *ONNX_FILES))
    assert "of PyTorch on 40 test images" in capsys.readouterr().out

    # The weights beside the ONNX files are those in them, and the metrics are theirs.
    model = Run(folder).load_model()
    images = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert largest_difference(folder, model, images) < TOLERANCE
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == 2
    assert not (out / "metrics.json").exists(), "those of the run itself are another command's"

    # Again, elsewhere: the same bytes.
    main(["export", *command_line("--out", str(out), "--to", str(tmp_path / "again"))])
    for name in (*WEIGHT_FILES, *ONNX_FILES):
        content = (folder / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == content, name
        assert not [trace for trace in TRACES if trace in content], name


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ONNX files that the weights of a pretrained model are exported to."""
    folder = tmp_path_factory.mktemp("written")
    export.write_onnx_files(Run(PRETRAINED / "ten").load_model(), folder)
    return folder


def test_interface_of_the_onnx_files(written: Path) -> None:
    model = Run(PRETRAINED / "ten").load_model()
    proto = onnx.load(written / "encoder.onnx")
    assert [(value.name, _shape(value)) for value in proto.graph.input] == [("image", ["N", 1, 28, 28])]
    assert [(value.name, _shape(value)) for value in proto.graph.output] == [("mean", ["N", 10])]
    assert {node.op_type for node in proto.graph.node} >= {"Cast", "Conv", "BatchNormalization", "Gemm"}
    for count in (1, 3, 7):
        batch = torch.rand(count, 1, 28, 28)
        with torch.no_grad():
            expected = model.encode_mean(batch).numpy()
        np.testing.assert_allclose(
            run_onnx(written / "encoder.onnx", image=batch.numpy()), expected, atol=TOLERANCE, rtol=0
        )


def _shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_rounding_is_to_half_precision_and_of_matrices_only() -> None:
    model, before = build_model(Config()), build_model(Config())
    round_matrices(model)
    for (name, rounded), original in zip(model.named_parameters(), before.parameters(), strict=True):
        expected = original.half().float() if original.ndim >= 2 else original
        assert torch.equal(rounded, expected), name
    with torch.no_grad():
        model.decoder[0].weight[0, 0] = 1e6
    with pytest.raises(ExampleError, match="too large for half precision"):
        round_matrices(model)


def test_a_difference_from_pytorch_is_an_error(
    tmp_path: Path, command_line: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    main(["train", *command_line("--out", str(out), "--epochs", "1")])
    monkeypatch.setattr(
        export, "write_onnx_files", lambda *_: None
    )  # takes seconds, and what it writes is not looked at
    monkeypatch.setattr(export, "largest_difference", lambda *_: float("nan"))
    with pytest.raises(SystemExit, match=r"^error: the ONNX files in .* differ from PyTorch by nan"):
        main(["export", *command_line("--out", str(out))])


@pytest.mark.parametrize(("recipe", "per_slider"), [("default", 1), ("original", 1), ("wide", 9)])
def test_the_page_is_told_of_a_model(recipe: str, per_slider: int) -> None:
    model = build_model(Config(recipe=recipe)).eval()
    found = describe(model)
    assert (found["units"], found["per_slider"], found["routed"]) == (10 * per_slider, per_slider, True)
    weights = model.state_dict()
    named = [layer[key] for part in ("encoder", "decoder") for layer in found[part] for key in layer if key == "weight"]
    assert set(named) < set(weights)


def test_a_model_that_the_page_has_no_sliders_for_is_refused() -> None:
    with pytest.raises(ExampleError, match=r"the page shows models with one unit per digit, .* this one has 96 units"):
        describe(build_model(Config(recipe="wide", shared=6)).eval())
    with pytest.raises(ExampleError, match=r"knows no layer such as encoder\.0, a Tanh"):
        layers_of(torch.nn.Sequential(torch.nn.Tanh()), "encoder")


def test_the_sweep_is_a_small_loop(tmp_path: Path) -> None:
    heights = animation.heights()
    assert heights.shape == (animation.FRAMES, 10)
    assert 0 <= heights.min() < 1e-6
    assert heights.max() == pytest.approx(1, abs=1e-3)
    animation.save_sweep(build_model(Config()).eval(), tmp_path / "sweep.gif")
    with Image.open(tmp_path / "sweep.gif") as picture:
        assert picture.n_frames == animation.FRAMES
        assert picture.info["loop"] == 0


def test_the_film_of_a_training_is_small_and_ends_with_the_trained_models(
    tmp_path: Path, command_line: Arguments
) -> None:
    path = tmp_path / "film.gif"
    main(["film", *command_line("--to", str(path), "--epochs", "2")])
    with Image.open(path) as picture:
        assert picture.n_frames >= 2
        first = np.asarray(picture.convert("L"), dtype=float)
        picture.seek(picture.n_frames - 1)
        assert np.abs(np.asarray(picture.convert("L"), dtype=float) - first).max() > 0
    assert path.stat().st_size <= MEGABYTE


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    return datasets.load("mnist", default_root())


NAMES = [shown.name for shown in PUBLISHED]


class TestPretrained:
    """What is committed in ``examples/mnist_vae/pretrained``."""

    def test_files_and_sizes(self) -> None:
        files = {path.relative_to(PRETRAINED).as_posix(): path for path in PRETRAINED.rglob("*") if path.is_file()}
        expected = [f"{name}/{file}" for name in NAMES for file in WEIGHT_FILES]
        assert sorted(files) == sorted([*SAMPLE_FILES, *expected, *(f"ten/{file}" for file in ONNX_FILES)])
        assert sum(path.stat().st_size for path in files.values()) <= 12 * MEGABYTE
        for name in NAMES:
            assert files[f"{name}/model.safetensors"].stat().st_size <= 3 * MEGABYTE

    def test_nothing_of_the_machine_is_in_them(self) -> None:
        for path in PRETRAINED.rglob("*"):
            if path.is_file():
                assert not [trace for trace in TRACES if trace in path.read_bytes()], path

    @pytest.mark.parametrize("name", NAMES)
    def test_was_trained_by_the_command_that_says_so(self, name: str) -> None:
        config = Run(PRETRAINED / name).load_config()
        assert config == CONFIGS[name]
        metrics = json.loads((PRETRAINED / name / "metrics.json").read_text())
        assert (metrics["recipe"], metrics["epochs"], metrics["routing"]) == (
            *(config.recipe, config.epochs, config.routing),
        )

    @pytest.mark.parametrize("name", NAMES)
    def test_matrices_are_stored_in_half_precision(self, name: str) -> None:
        for key, tensor in load_file(PRETRAINED / name / "model.safetensors").items():
            if tensor.is_floating_point():
                assert tensor.dtype == (torch.float16 if tensor.ndim >= 2 else torch.float32), key

    @pytest.mark.parametrize("name", NAMES)
    def test_has_the_accuracy_that_the_metrics_say(self, name: str, mnist: Dataset) -> None:
        model = Run(PRETRAINED / name).load_model()
        with torch.no_grad():
            scores = [model.scores(model.encode_mean(batch.float() / 255)) for batch in mnist.test.images.split(1000)]
        accuracy = (torch.cat(scores).argmax(dim=1) == mnist.test.labels).double().mean().item()
        metrics = json.loads((PRETRAINED / name / "metrics.json").read_text())
        # One image in ten thousand may fall to the other side of a tie.
        assert accuracy == pytest.approx(metrics["argmax_accuracy"], abs=1.5e-4)
        if model.routing:
            assert accuracy >= 0.99
            assert metrics["owned_digits"] == 10
            loudest = [row[-1] for row in metrics["slider_seen_as"]]
            assert loudest == list(range(10))
        else:
            assert accuracy < 0.5, "its numbers are no digits"

    def test_onnx_is_what_its_weights_export_to(self, written: Path, mnist: Dataset) -> None:
        ten = PRETRAINED / "ten"
        images = mnist.test.images[:256].numpy().astype(np.float32) / 255
        codes = run_onnx(ten / "encoder.onnx", image=images)
        np.testing.assert_allclose(run_onnx(written / "encoder.onnx", image=images), codes, atol=1e-5, rtol=0)
        found, kept = (run_onnx(folder / "decoder.onnx", z=codes) for folder in (written, ten))
        np.testing.assert_allclose(found, kept, atol=1e-5, rtol=0)
        assert largest_difference(ten, Run(ten).load_model(), torch.from_numpy(images)) < TOLERANCE

    def test_samples_are_the_first_test_images_of_each_digit(self, mnist: Dataset) -> None:
        listed = json.loads((PRETRAINED / "digits.json").read_text())
        pixels = np.frombuffer((PRETRAINED / "digits.bin").read_bytes(), np.uint8).reshape(-1, 1, 28, 28)
        assert np.bincount(listed["labels"]).tolist() == [10] * 10
        assert torch.equal(torch.from_numpy(pixels.copy()), mnist.test.images[listed["test_index"]])
        assert mnist.test.labels[listed["test_index"]].tolist() == listed["labels"]
