import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common import datasets
from common.errors import ExampleError
from common.sources import DatasetSpec
from mnist_unlearning import cli, experiment
from mnist_unlearning import publish as publishing
from mnist_unlearning.cli import main
from mnist_unlearning.conditions import conditions
from mnist_unlearning.config import Settings
from mnist_unlearning.publish import ASSETS, README, publish, sections
from mnist_unlearning.table import markdown

Arguments = Callable[..., list[str]]
TINY = Settings(hidden=12, reserved=4, epochs=1, batch_size=20, labeled_first=2, relearn_images=1, checkpoints=(0, 2))


@pytest.fixture
def tiny(root: Path, spec: DatasetSpec, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arguments]:
    """Arguments for the synthetic dataset, with `--quick` even quicker."""
    monkeypatch.setitem(datasets.DATASETS, "mnist", spec)
    monkeypatch.setattr(cli, "QUICK", TINY)
    threads = torch.get_num_threads()
    yield lambda *arguments: ["--quick", "--data", str(root), "--workers", "1", *arguments]
    assert torch.get_num_threads() == threads


def test_end_to_end_and_nothing_is_run_twice(
    tmp_path: Path, tiny: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = tiny("--out", str(out), "--seeds", "0", "1")
    main(arguments)
    assert sorted(path.name for path in out.iterdir()) == [
        "fractions.png",
        "relearning.png",
        "results.json",
        "runs",
        "table.md",
    ]
    said = capsys.readouterr().out
    assert "runs: 0 of 24 are in" in said
    assert (out / "table.md").read_text().split("\n\n")[2].strip() in said
    results = json.loads((out / "results.json").read_text())
    names = [row["name"] for row in results["rows"]]
    assert names[:3] == ["unrouted", "filtered-1", "placebo-1"]
    assert "parameters-0.1" in names
    assert all(len(row["forgotten"]) == len(row["relearning"]) == 2 for row in results["rows"])
    assert {"cores", "torch"} == set(results["machine"])
    assert results["judged_on"] == "test"
    runs = {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
    assert len(runs) == 24

    lost = out / "runs" / "filtered-1-seed1.json"
    content = json.loads(lost.read_text())
    lost.unlink()
    main(arguments)
    assert "runs: 23 of 24 are in" in capsys.readouterr().out
    assert json.loads(lost.read_text())["relearning"] == content["relearning"]
    assert {path: path.stat().st_mtime_ns for path in runs if path != lost} == {
        path: when for path, when in runs.items() if path != lost
    }


def test_a_run_of_other_settings_is_replaced(
    tmp_path: Path, tiny: Arguments, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = tiny("--out", str(tmp_path), "--only", "unrouted", "filtered-1")
    main(arguments)
    monkeypatch.setattr(cli, "QUICK", replace(TINY, epochs=2))
    main(arguments)
    main(arguments)
    main([*arguments, "--fresh"])
    main([*arguments, "--validation"])
    main([*arguments, "--digit", "3"])
    said = capsys.readouterr().out
    assert [line.split()[1] for line in said.splitlines() if line.startswith("runs:")] == list("002000")


def test_processes_find_what_one_does(tmp_path: Path, tiny: Arguments) -> None:
    for workers in ("1", "2"):
        out = tmp_path / workers
        main([*tiny("--out", str(out), "--only", "filtered", "parameters-1"), "--workers", workers])
    one, two = (json.loads((tmp_path / workers / "results.json").read_text())["rows"] for workers in "12")
    for row in [*one, *two]:
        for key in ("seconds", "cpu_seconds", "load_average"):
            del row[key]
    assert one == two


def test_the_folder_names_the_choices() -> None:
    assert cli.Command().folder() == Path("runs/mnist_unlearning")
    assert cli.Command(quick=True, digit=3, validation=True).folder() == Path(
        "runs/mnist_unlearning-quick-validation-digit3"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--digit", "10"], "--digit must be in 0 to 9; got 10"),
        (["--workers", "0"], "--workers must be at least 1; got 0"),
        (["--seeds", "-1"], "--seeds must be at least 0; got -1"),
        (["--only", "nonsense"], "there is no row nonsense"),
        (["--out", "file"], "file is a file"),
        (["--docs", "--quick"], "--docs publishes the full table: give it without --quick"),
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


def test_an_interruption_says_how_to_go_on(
    tmp_path: Path, tiny: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(tiny("--out", str(tmp_path)))
    assert stopped.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_the_folder_runs_and_helps() -> None:
    example = Path(__file__).parents[2] / "examples" / "mnist_unlearning"
    done = subprocess.run([sys.executable, example, "--help"], capture_output=True, text=True, check=True)
    assert all(f"--{flag}" in done.stdout for flag in ("quick", "seeds", "digit", "only", "validation", "fresh", "out"))


def test_the_readme_is_what_the_published_results_make_of_it() -> None:
    results = json.loads((ASSETS / "results.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in results["rows"]] == [row.name for row in conditions()]
    assert {row["what"] for row in results["rows"]} == {row.what for row in conditions()}
    assert (results["judged_on"], results["quick"]) == ("test", False)
    readme = README.read_text(encoding="utf-8")
    for content in sections(results).values():
        assert content in readme
    assert all((ASSETS / name).stat().st_size < 200_000 for name in ("fractions.png", "relearning.png"))


def test_publishing_writes_parts_of_the_readme_and_nothing_else(
    tmp_path: Path, tiny: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, readme, assets = tmp_path / "out", tmp_path / "README.md", tmp_path / "assets"
    main(tiny("--out", str(out)))
    results = json.loads((out / "results.json").read_text())
    monkeypatch.setattr(publishing, "README", readme)
    monkeypatch.setattr(publishing, "ASSETS", assets)
    readme.write_text("nothing")
    with pytest.raises(ExampleError, match=r"needs one line .*start:rows"):
        publish(results, out)
    marked = [f"<!-- --8<-- [start:{part}] -->\nold\n<!-- --8<-- [end:{part}] -->" for part in sections(results)]
    readme.write_text("\n".join(["before", *marked, "after"]))
    for _ in range(2):
        publish(results, out)
        text = readme.read_text()
        assert (text.splitlines()[0], text.splitlines()[-1]) == ("before", "after")
        assert "old" not in text
        assert all(content in text for content in sections(results).values())
    published = json.loads((assets / "results.json").read_text())
    assert sections(published) == sections(results)
    assert sorted(path.name for path in assets.iterdir()) == ["fractions.png", "relearning.png", "results.json"]


def test_the_table_has_its_headings_without_a_row() -> None:
    assert markdown([]).startswith("| run | forgotten, % |")
