import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_text import modules
from hypothesis import given
from hypothesis import strategies as st
from saved_runs import saved_runs
from test_language_train import TINY
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import readme
from language import cli, measure
from language.cli import main
from language.config import AT_EACH_SHARE, BY_LABELS, CONDITIONS, LITTLE, PERFECT, ROUTED, TWIN
from language.show import page, terminal
from language.table import COLUMNS, made, markdown, sections, summarise

pytestmark = pytest.mark.long

Arguments = Callable[..., list[str]]
README = readme.EXAMPLES / "language" / "README.md"
RESULTS = readme.ASSETS / "language" / "results.json"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arguments]:
    """Arguments for runs that take a moment, in a folder of their own."""
    monkeypatch.setattr(cli, "QUICK", replace(TINY, context=32))
    monkeypatch.setattr(cli, "TRANSLATIONS", modules(tmp_path / "data"))
    for module in (measure, cli):  # or most of a run would be to relearn
        monkeypatch.setattr(module, "RELEARNING", (0, 1, 2, 3))
    threads = torch.get_num_threads()
    folders = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    yield lambda *arguments: [*arguments, "--quick", "--threads", "1", *folders]
    torch.set_num_threads(threads)


def test_end_to_end_and_nothing_is_trained_twice(
    tmp_path: Path, tiny: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(tiny())
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "page.html", "runs", "without-spanish"]
    metrics = json.loads((out / "metrics.json").read_text())
    for key in ("es_loss_before", "es_loss_after", "en_loss_before", "en_loss_after", "en_loss_twin"):
        assert 0 < metrics[key] < 10
        assert f"{key} {metrics[key]:.3f}" in capsys.readouterr().out or key != "es_loss_before"
    tokens = metrics["tokens"]
    assert tokens["Spanish"]["forget"] > 0
    assert tokens["English"]["retain"] > 0
    assert tokens["English"]["forget"] == tokens["Spanish"]["retain"] == 0
    assert abs(tokens["Spanish"]["forget"] - tokens["Spanish"]["unlabeled"]) <= 32

    left = AutoModelForCausalLM.from_pretrained(out / "without-spanish")
    tokenizer = AutoTokenizer.from_pretrained(out / "without-spanish")
    assert tokenizer.decode(tokenizer("the king and río").input_ids) == "the king and río"
    assert left.config.n_inner == TINY.neurons - TINY.block_neurons

    before = saved_runs(out)
    shown = (out / "page.html").read_text()
    for command in ("all", "train", "evaluate", "demo"):
        main(tiny(command))
    assert saved_runs(out) == before
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert (out / "page.html").read_text() == shown
    assert not re.search(r"https?://|<script", shown)


def test_the_table_has_every_row_and_goes_on_where_it_was(
    tmp_path: Path, tiny: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(tiny("compare", "--only", "twin"))
    first = saved_runs(out)
    assert sorted(first) == ["twin-seed0.json", "twin-seed0.pt"]
    main(tiny("compare", "--labeled", "0.5", "1", "--seed", "0", "1"))
    assert {name: time for name, time in saved_runs(out).items() if name in first} == first
    results = json.loads((out / "results.json").read_text())
    labeled = {each.name for each in CONDITIONS if each.uses_labels}
    assert len(results["rows"]) == len(CONDITIONS) + len(AT_EACH_SHARE) + len(LITTLE)
    for row in results["rows"]:
        assert row["seeds"] == [0, 1]
        assert (row["labeled"] is None) == (row["name"] not in labeled)
    by_name = {(row["name"], row["labeled"]): row for row in results["rows"]}
    assert by_name["twin", None]["cost"] == [0, 0]
    assert by_name["twin", None]["compute"] == [1, 1]
    assert by_name["perfect-filter", None]["gap"] == [0, 0]
    for name in ("filter-by-labels", "detector-filter"):  # with all labeled, both are perfect
        assert by_name[name, 1.0]["en_loss_after"] == by_name["perfect-filter", None]["en_loss_after"]
        assert by_name[name, 1.0]["leakage"] == [None, None]
    assert by_name["filter-by-labels", 0.5]["en_loss_after"] != by_name["perfect-filter", None]["en_loss_after"]
    assert not any(name.startswith(("detector-filter", "filter-by-labels-labeled1-")) for name in saved_runs(out))
    table, printed = (out / "table.md").read_text(), capsys.readouterr().out
    for content in sections(results).values():
        assert content in table
        assert content in printed
    assert "| 99%" not in table
    assert (out / "relearning.png").is_file()
    assert (out / "shares.png").is_file()

    times = saved_runs(out)
    (out / "runs" / "twin-seed1.json").unlink()
    main(tiny("compare", "--so-far", "--labeled", "0.5", "0.2", "--seed", "0", "1", "2"))
    assert saved_runs(out) == {name: time for name, time in times.items() if name != "twin-seed1.json"}
    rows = json.loads((out / "results.json").read_text())["rows"]
    by_name = {(row["name"], row["labeled"]): row for row in rows}
    assert by_name["twin", None]["seeds"] == [0]
    assert by_name["routed", 0.5]["seeds"] == [0, 1]
    assert by_name["routed", 0.5]["cost"][1] is None
    assert ("routed", 0.2) not in by_name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labeled", "0"], "--labeled above 0"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--seed", "0", "1"], "only `compare` takes more than one"),
        (["evaluate"], "Run `train` with the same flags first"),
        (["demo"], "Run `train` with the same flags first"),
        (["compare", "--only", "nothing"], "there is no row nothing"),
        (["compare", "--so-far"], "nothing of the table has been measured so far"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_sentence(tiny: Arguments, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(message)):
        main(tiny(*arguments))


def test_a_table_without_the_rows_that_others_are_compared_with_leaves_these_cells_empty() -> None:
    rows = summarise([cli.Job(ROUTED, TINY, 0, Path())], [measures(2.0, 1.0)])
    for key in ("gap", "leakage", "cost", "over_filter", "compute"):
        assert rows[0][key] == [None]
    assert "None" not in markdown(rows, COLUMNS)


@given(st.sampled_from([0.1, 0.3, 0.6]), st.floats(1.1, 2.9))
def test_leakage_is_the_spanish_that_teaches_a_filtered_model_as_much(labeled: float, loss: float) -> None:
    curve = {1 - labeled: 1.5, **{1 - part: 2 + part for part in LITTLE}}  # of Spanish seen, what was lost
    jobs = {cli.Job(TWIN, TINY, 0, Path()): 1.0, cli.Job(PERFECT, TINY, 0, Path()): 3.0}
    for seen, height in curve.items():
        jobs[cli.Job(BY_LABELS, replace(TINY, labeled=round(1 - seen, 6)), 0, Path())] = height
    jobs[cli.Job(ROUTED, replace(TINY, labeled=labeled), 0, Path())] = loss
    rows = summarise(list(jobs), [measures(height, 1.0) for height in jobs.values()])
    found = {(row["name"], row["labeled"]): row["leakage"][0] for row in rows}
    assert found["twin", None] is None
    assert found["filter-by-labels", labeled] == pytest.approx(1)
    # By another way: where the drawn curve is as low.
    places = np.array([0.0, *sorted(curve), 1.0])
    heights = np.interp(places, [0.0, *sorted(curve), 1.0], [3.0, *(curve[each] for each in sorted(curve)), 1.0])
    expected = np.interp(-loss, -heights, places) / (1 - labeled)
    assert found["routed", labeled] == pytest.approx(expected, abs=1e-4)


def test_compute_is_the_part_of_the_twins_training_after_which_it_was_as_good() -> None:
    twin = {**measures(2.0, 1.0), "curve": [[2, 3.0], [4, 2.0], [6, 1.0]]}
    jobs = [cli.Job(TWIN, TINY, 0, Path()), cli.Job(ROUTED, TINY, 0, Path()), cli.Job(PERFECT, TINY, 0, Path())]
    rows = summarise(jobs, [twin, measures(2.0, 2.5), measures(2.0, 0.9)])
    assert [row["compute"][0] for row in rows] == [1, 0.5, 1]
    assert [row["over_filter"][0] for row in rows] == pytest.approx([1 / 0.9 - 1, 2.5 / 0.9 - 1, 0])


def measures(spanish: float, english: float) -> dict[str, Any]:
    return {
        **{"es_loss_before": 1.0, "es_loss_after": spanish, "en_loss_before": 1.0, "en_loss_after": english},
        **{"relearning": [2.0, 1.8, 1.7, 1.6, 1.5], "probe": 0.5, "cpu_seconds": 3.0, "curve": [[6, english]]},
    }


def test_samples_are_escaped_and_colored_by_loss() -> None:
    own = {"pieces": [("<a", 0.0), ("&b", 99.0)], "prompt": "<p>", "completion": "&c"}
    found = [{"chapter": "Gen.1", "language": "English", "before": own}]
    html = page(found, ["before"], "x < y")
    assert "&lt;a</span>" in html
    assert "&amp;b</span>" in html
    assert "rgb(255, 255, 255)" in html
    assert "<b>&lt;p&gt;</b>&amp;c" in html
    assert "x &lt; y" in html
    assert "\x1b[48;2;255;255;255m" in terminal(found, ["before"], color=True)
    assert "\x1b" not in terminal(found, ["before"], color=False)


def test_what_the_readme_shows_is_made_from_the_published_results() -> None:
    results, text = json.loads(RESULTS.read_text()), README.read_text(encoding="utf-8")
    for name, content in sections(results).items():
        assert f"<!-- --8<-- [start:{name}] -->\n{content}\n<!-- --8<-- [end:{name}] -->" in text
    assert made(results) in text
