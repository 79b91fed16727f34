import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from fake_mnist import synthetic
from quick import quick_evaluation, without_pictures

from common.datasets import Dataset
from common.errors import ExampleError
from mnist_vae.cli import main
from mnist_vae.config import Config
from mnist_vae.study import compare as compare_module
from mnist_vae.study.compare import COLUMNS, SHORT, Control, chosen, compare, controls, markdown, summaries
from mnist_vae.study.tradeoff import tradeoff
from mnist_vae.train import Trainer

DATA = Dataset(synthetic(60, seed=0), synthetic(30, seed=1))
ROWS = [
    Control("routed", "as it is", Config(epochs=1)),
    Control("plain", "not routed", Config(epochs=1, routing=False)),
]


@pytest.fixture(autouse=True)
def no_pictures() -> Iterator[None]:
    with without_pictures():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both rows, trained and evaluated with two seeds."""
    folder = tmp_path_factory.mktemp("finished")
    with quick_evaluation(), without_pictures():
        compare(ROWS, [0, 1], DATA, folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of what is finished, to be changed."""
    return shutil.copytree(finished, tmp_path / "copy")


def no_training(*_: object) -> None:
    raise AssertionError("trained again")


def no_evaluation(*_: object) -> None:
    raise AssertionError("evaluated again")


def test_what_is_finished_is_neither_trained_nor_evaluated_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = summaries(ROWS, folder)
    assert [row["seeds"] for row in first] == [[0, 1], [0, 1]]
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{name}-seed{seed}" for name in ("plain", "routed") for seed in (0, 1)
    ]
    monkeypatch.setattr(Trainer, "train_epoch", no_training)
    monkeypatch.setattr(compare_module, "evaluate", no_evaluation)
    compare(ROWS, [0, 1], DATA, folder)
    assert summaries(ROWS, folder) == first
    with pytest.raises(AssertionError, match="trained again"):
        compare(ROWS, [2], DATA, folder)


def test_trained_but_not_evaluated_is_only_evaluated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = summaries(ROWS[:1], folder)
    for seed in (0, 1):
        (folder / f"routed-seed{seed}" / "metrics.json").unlink()
    monkeypatch.setattr(Trainer, "train_epoch", no_training)
    assert summaries(ROWS[:1], folder) == []
    compare(ROWS[:1], [0, 1], DATA, folder)
    assert summaries(ROWS[:1], folder) == first


def test_a_row_with_another_config_is_trained_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "train_epoch", no_training)
    with pytest.raises(AssertionError, match="trained again"):
        compare([Control("routed", "longer", Config(epochs=2))], [0], DATA, folder)


def test_the_table_has_what_is_finished_of_these_rows_and_nothing_else(folder: Path) -> None:
    shutil.rmtree(folder / "plain-seed1")
    assert [(row["name"], row["seeds"]) for row in summaries(ROWS, folder)] == [("routed", [0, 1]), ("plain", [0])]
    assert [row["name"] for row in summaries(ROWS[1:], folder)] == ["plain"]
    longer = Control("routed", "longer", Config(epochs=2))
    assert summaries([longer], folder) == [], "runs of another config are not the row's"


def changed(first: Config, second: Config) -> set[str]:
    return {field.name for field in fields(Config) if getattr(first, field.name) != getattr(second, field.name)}


def test_each_control_changes_what_it_says_and_nothing_else() -> None:
    rows = {row.name: row.config for row in controls("mnist", "quick", None, original_epochs=40)}
    assert {name: changed(rows["routed"], config) for name, config in rows.items()} == {
        "routed": set(),
        "unrouted": {"routing"},
        "placebo": {"labels"},
        "half-way": {"routed_epochs"},
        "original": {"recipe", "epochs"},
        "original-short": {"recipe", "epochs"},
        "original-our-decoder": {"recipe", "epochs"},
        "labels-0.5": {"label_fraction"},
        "labels-0.1": {"label_fraction"},
        "labels-0.01": {"label_fraction"},
        "labels-0.5-loudest": {"label_fraction", "unlabeled", "labeled_epochs"},
        "labels-0.1-loudest": {"label_fraction", "unlabeled", "labeled_epochs"},
        "labels-0.01-loudest": {"label_fraction", "unlabeled", "labeled_epochs"},
        "labels-0.5-only": {"label_fraction", "labeled_epochs"},
        "labels-0.1-only": {"label_fraction", "labeled_epochs"},
        "labels-0.01-only": {"label_fraction", "labeled_epochs"},
    }
    assert rows["half-way"].routed_epochs == 2
    assert {rows[name].epochs for name in rows if "original" not in name} == {4}
    assert rows["original"].epochs == 40
    assert rows["original-short"].epochs == rows["original-our-decoder"].epochs == SHORT < 40
    whole, part = (controls("mnist", "quick", None, *epochs)[4] for epochs in ((), (40,)))
    assert (whole.what, part.what) == ("original recipe, 100 epochs", "original recipe, 40 of its 100 epochs")


def test_the_same_settings_on_every_data_set() -> None:
    for mnist, fashion in zip(controls("mnist", "quick", 2, 3), controls("fashion-mnist", "quick", 2, 3), strict=True):
        assert changed(mnist.config, fashion.config) == {"dataset"}
        assert mnist.config.settings() == fashion.config.settings()


def test_tradeoff_changes_one_setting_at_a_time() -> None:
    rows = {row.name: row.config for row in tradeoff("mnist", 2)}
    assert len(rows) == len(tradeoff("mnist", 2)), "a name each"
    for name, config in rows.items():
        if name.startswith(("units-", "kl-", "shared-", "wide")):
            assert len(changed(rows["wide"], config)) == (name != "wide"), name
    assert {config.epochs for config in rows.values()} == {2}


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    assert chosen(ROWS, ["plain"]) == ROWS[1:]
    assert chosen(ROWS, []) == ROWS
    with pytest.raises(ExampleError, match="there is no row nothing; choose from routed, plain"):
        chosen(ROWS, ["nothing"])


def test_the_table_shows_mean_and_range_or_one_value() -> None:
    row = {"name": "a", "seeds": [4, 5], **{key: [1.0, 1.0] for key in COLUMNS}}
    row |= {"argmax_accuracy": [0.9, 1.0], "test_sse": [10.01, 10.02]}
    heading, rule, line = markdown([row]).splitlines()
    assert len(heading) == len(rule) == len(line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["a", "2", "95.00% (90.00% to 100.00%)", "100.00%", "100.00%", "1", "10.0", "100.0%"]


def test_from_the_command_line(
    tmp_path: Path, command_line: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, few = ["--out", str(tmp_path / "out")], ["--seeds", "0", "--epochs", "1"]
    main(["compare", *command_line(*out, *few, "--only", "routed", "labels-0.1", "labels-0.1-loudest")])
    assert "| labels-0.1-loudest" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert written == {"compare.json", "compare.md", "compare.png", "compare_labels.png"}
    summary = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["name"] for row in summary] == ["routed", "labels-0.1", "labels-0.1-loudest"]
    assert "| routed" in (tmp_path / "out" / "compare.md").read_text()

    main(["compare", *command_line(*out, *few, "--only", "placebo")])
    summary = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["name"] for row in summary] == ["routed", "placebo", "labels-0.1", "labels-0.1-loudest"]

    out = ["--out", str(tmp_path / "curve")]
    main(["tradeoff", *command_line(*out, *few, "--only", "wide", "units-2", "slices-2", "twin", "shared-6")])
    assert (tmp_path / "curve" / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="error: there is no row nothing"):
        main(["compare", *command_line(*out, "--only", "nothing")])
