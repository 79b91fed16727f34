import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_text import modules
from saved_runs import saved_runs
from test_language_train import TINY
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import readme
from language import cli, measure
from language.cli import main
from language.config import CONDITIONS
from language.show import page, terminal
from language.table import made, markdown, sections, summarise

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
        monkeypatch.setattr(module, "RELEARNING", (0, 1, 2))
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
    main(tiny("compare", "--only", "twin", "--labeled", "1", "0.5"))
    first = saved_runs(out)
    assert sorted(first) == ["twin-seed0.json", "twin-seed0.pt"]
    main(tiny("compare", "--labeled", "1", "0.5", "--seed", "0", "1"))
    assert {name: time for name, time in saved_runs(out).items() if name in first} == first
    results = json.loads((out / "results.json").read_text())
    labeled = {each.name for each in CONDITIONS if each.uses_labels}
    assert len(results["rows"]) == len(CONDITIONS) + len(labeled)
    for row in results["rows"]:
        assert row["seeds"] == [0, 1]
        assert (row["labeled"] is None) == (row["name"] not in labeled)
    by_name = {row["name"]: row for row in results["rows"]}
    assert by_name["twin"]["cost"] == [0, 0]
    assert by_name["perfect-filter"]["gap"] == [0, 0]
    assert markdown(results["rows"]) in (out / "table.md").read_text()
    assert markdown(results["rows"]) in capsys.readouterr().out
    assert (out / "relearning.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labeled", "0"], "--labeled above 0"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--seed", "0", "1"], "only `compare` takes more than one"),
        (["evaluate"], "Run `train` with the same flags first"),
        (["demo"], "Run `train` with the same flags first"),
        (["compare", "--only", "nothing"], "there is no row nothing"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_sentence(tiny: Arguments, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(message)):
        main(tiny(*arguments))


def test_a_table_without_the_rows_that_others_are_compared_with_leaves_these_cells_empty() -> None:
    job = cli.Job(CONDITIONS[3], TINY, 0, Path())
    found = {"es_loss_after": 2.0, "en_loss_after": 1.0, "es_loss_before": 1.0, "en_loss_before": 1.0}
    rows = summarise([job], [{**found, "relearning": [2.0, 1.5], "cpu_seconds": 3.0}])
    assert rows[0]["gap"] == rows[0]["cost"] == [None]
    assert "None" not in markdown(rows)


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
