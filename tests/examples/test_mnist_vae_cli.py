import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_mnist import synthetic
from quick import without_pictures
from torch import Generator, Tensor

from common.datasets import Dataset
from mnist_vae import evaluate as evaluate_module
from mnist_vae.cli import main
from mnist_vae.config import Config
from mnist_vae.evaluate import elbo, mean_by_label, measure, squared_error
from mnist_vae.model import VAE, build_model
from mnist_vae.train import Trainer

pytestmark = pytest.mark.long

Arguments = Callable[..., list[str]]
REQUIRED = {
    "dataset": str,
    "recipe": str,
    "routing": bool,
    "seed": int,
    "epochs": int,
    "train_seconds": float,
    "argmax_accuracy": float,
    "owned_digits": int,
    "test_sse": float,
    "test_elbo": float,
    "threads": int,
    "versions": dict,
}
FIGURES = ["activations.png", "losses.png", "reconstructions.png", "sweeps.png"]
#: Recipe and choice, and whether a route at the latent is what the model is trained with: then it is audited.
AUDITED = {(): True, ("--no-routing",): False, ("--recipe", "original"): True, ("--recipe", "routed-kl"): False}


def test_a_table_has_a_row_for_each_run(
    tmp_path: Path, command_line: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with without_pictures():
        main(command_line("--out", str(first), "--epochs", "1", "--seed", "5"))
        main(command_line("--out", str(second), "--epochs", "1", "--seed", "6", "--no-routing"))
    capsys.readouterr()
    main(["table", str(first), str(second)])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    heading, _, *rows = cells
    found = json.loads((first / "metrics.json").read_text())
    assert [row[:3] for row in rows] == [["default", "5", "1"], ["default, not routed", "6", "1"]]
    assert rows[0][heading.index("argmax accuracy")] == f"{found['argmax_accuracy']:.2%}"
    right = sum(answer == digit for digit, answers in enumerate(found["slider_seen_as"]) for answer in answers)
    assert rows[0][heading.index("sliders")] == f"{right} of 40"

    with pytest.raises(SystemExit, match="table runs/a runs/b"):
        main(["table"])
    (second / "metrics.json").write_text("{}")
    with pytest.raises(SystemExit, match="lacks 'routing'"):
        main(["table", str(first), str(second)])


@pytest.mark.parametrize("extra", AUDITED)
def test_train_evaluate_report_end_to_end(
    tmp_path: Path, command_line: Arguments, capsys: pytest.CaptureFixture[str], extra: tuple[str, ...]
) -> None:
    out = tmp_path / "run"
    arguments = command_line("--out", str(out), "--epochs", "2", "--seed", "5", *extra)
    main(arguments)
    metrics = json.loads((out / "metrics.json").read_text())
    assert {name: type(metrics[name]) for name in REQUIRED} == REQUIRED
    assert (metrics["seed"], metrics["epochs"], metrics["threads"]) == (5, 2, 1)
    assert metrics["routing"] == ("--no-routing" not in extra)
    assert (metrics["leaks"] is not None) == AUDITED[extra]
    figures = sorted([*FIGURES, *(["audit.png"] if AUDITED[extra] else [])])
    assert sorted(path.name for path in (out / "figures").iterdir()) == figures
    assert all((out / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in figures)
    expected = ["config.json", "figures", "history.json", "metrics.json", "model.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == expected
    said = capsys.readouterr().out
    assert "argmax accuracy" in said
    assert f"and {len(figures)} figures to" in said
    assert all(str(out / "figures" / name) in said for name in figures)

    weights = (out / "model.safetensors").read_bytes()
    with without_pictures():
        main(arguments)
    assert (out / "model.safetensors").read_bytes() == weights
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert "is trained with this config already" in capsys.readouterr().out


def test_the_steps_one_by_one(tmp_path: Path, command_line: Arguments, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run")]
    main(["train", *command_line(*out, "--epochs", "1", "--recipe", "quick")])
    assert not (tmp_path / "run" / "metrics.json").exists()
    with without_pictures():
        main(["evaluate", *command_line(*out)])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["recipe"] == "quick"
    capsys.readouterr()
    main(["report", *out])
    assert "quick" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--out", "nowhere"], "nowhere holds no run"),
        (["report", "--out", "nowhere"], "nowhere has no metrics.json"),
        (["train", "--epochs", "0"], "--epochs must be at least 1; got 0"),
        (["train", "--seed", "-1"], "--seed must be"),
        (["train", "--threads", "0"], "--threads must be at least 1; got 0"),
        (["train", "--out", "file"], "file is a file"),
    ],
)
def test_mistakes_get_one_message_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_evaluating_an_unfinished_run_says_how_to_go_on(
    tmp_path: Path, command_line: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    out = ["--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", interrupted)
        with pytest.raises(SystemExit) as stopped:
            main(command_line(*out, "--epochs", "1"))
    assert stopped.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="not finished"):
        main(["evaluate", *command_line(*out)])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "history.json"])
def test_a_damaged_run_is_named(tmp_path: Path, command_line: Arguments, name: str) -> None:
    out = ["--out", str(tmp_path / "run")]
    main(["train", *command_line(*out, "--epochs", "1")])
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(SystemExit, match=rf"^error: .*{name}.*--fresh"):
        main(["evaluate", *command_line(*out)])


def test_the_folder_runs_and_helps() -> None:
    example = Path(__file__).parents[2] / "examples" / "mnist_vae"
    done = subprocess.run([sys.executable, example, "--help"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in ("all", "train", "evaluate", "report"))


@pytest.mark.parametrize("command", ["all", "train"])
def test_help_lists_every_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    flags = ("seed", "epochs", "out", "recipe", "no-routing", "dataset", "threads", "fresh", "data")
    assert all(f"--{flag}" in said for flag in flags)


class Scripted(VAE):
    """Says for each image what the test wants it to say: the digit is written in the first pixel."""

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        digit = (images[:, 0, 0, 0] * 255).round().long()
        return 3 * torch.nn.functional.one_hot(digit, 10).float(), torch.zeros(len(images), 10)


def test_accuracy_and_ownership_are_what_they_say() -> None:
    split = synthetic(200, seed=0)
    written = split.labels.clone()
    written[split.labels == 4] = 9  # digit 4 speaks on dimension 9, so 20 of 200 images are wrong and 4 owns nothing
    split.images[:, 0, 0, 0] = written.to(torch.uint8)
    template = build_model(Config())
    results = measure(Scripted(template.encoder, template.decoder), Dataset(split, split))
    assert results.argmax_accuracy == pytest.approx(0.9)
    assert results.owned_digits == 9
    assert results.activations[4, 9] == results.activations[9, 9] == 3
    assert results.activations[4, 4] == 0


def test_mean_by_label_leaves_absent_digits_at_zero() -> None:
    means = torch.tensor([[1.0] * 10, [3.0] * 10, [5.0] * 10])
    by_label = mean_by_label(means, torch.tensor([2, 2, 0]))
    assert by_label[:, 0].tolist() == [5, 0, 2, 0, 0, 0, 0, 0, 0, 0]


def test_elbo_and_squared_error_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    split, model = synthetic(40, seed=0), build_model(Config()).eval()
    with torch.no_grad():
        model.encoder[-1].weight.mul_(50)  # or else the KL is too small to be seen in the sum
    images = split.images.float() / 255
    with torch.no_grad():
        loss = model.losses(images, split.labels, Generator().manual_seed(0)).total.item()
        means = model.encode_mean(images)
        error = (model.decode(means) - images).square().flatten(1).sum(1).mean().item()
    assert elbo(model, split) == pytest.approx(-loss, rel=1e-6)
    assert squared_error(model, split, means) == pytest.approx(error, rel=1e-5)
    monkeypatch.setattr(evaluate_module, "BATCH", 16)
    assert squared_error(model, split, means) == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("recipe", ["default", "original"])
def test_elbo_is_finite_for_every_recipe(recipe: str) -> None:
    model = build_model(Config(recipe=recipe)).eval()
    assert -2000 < elbo(model, synthetic(20, seed=0)) < 0
