import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from browser import chromium
from fake_text import modules
from fake_wordnet import wordnet
from hypothesis import given
from hypothesis import strategies as st
from saved_runs import saved_runs
from test_topics_train import TINY

from common import readme
from topics import cli, measure, table
from topics.cli import main
from topics.config import CORE, MODULES, ROWS, SUBSETS, TOPICS
from topics.measure import key, subsets
from topics.table import compute_table, sections, subset_table, topic_table

pytestmark = pytest.mark.long

Arguments = Callable[..., list[str]]
README = readme.EXAMPLES / "topics" / "README.md"
RESULTS = readme.ASSETS / "topics" / "results.json"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arguments]:
    """Arguments for runs that take a moment, in a folder of their own."""
    monkeypatch.setattr(cli, "QUICK", TINY)
    monkeypatch.setattr(cli, "TRANSLATIONS", modules(tmp_path / "data"))
    monkeypatch.setattr(cli, "WORDNET", wordnet(tmp_path / "data"))
    for module in (measure, table):  # or most of a run would be to relearn
        monkeypatch.setattr(module, "RELEARNING", (0, 1, 2))
    threads = torch.get_num_threads()
    folders = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    yield lambda *arguments: [*arguments, "--quick", "--threads", "1", *folders]
    torch.set_num_threads(threads)


def test_end_to_end_and_nothing_is_trained_twice(tmp_path: Path, tiny: Arguments) -> None:
    out = tmp_path / "out"
    main(tiny())
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "page.html", "runs"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["losses"]) == [key(subset) for subset in subsets()]
    for losses in [metrics["losses_twin"], *metrics["losses"].values()]:
        assert list(losses) == list(TOPICS)
        assert all(0 < loss < 10 for loss in losses.values())
    before, shown = saved_runs(out), (out / "page.html").read_text()
    for command in ("all", "train", "evaluate", "demo"):
        main(tiny(command))
    assert saved_runs(out) == before
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert (out / "page.html").read_text() == shown
    assert not re.search(r"https?://", shown)


def test_the_page_holds_a_loss_for_each_token_and_each_set_of_modules(tmp_path: Path, tiny: Arguments) -> None:
    main(tiny())
    shown = (tmp_path / "out" / "page.html").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', shown, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert {text["topic"] for text in data["texts"]} == set(TOPICS)
    assert list(data["losses"]) == [key(subset) for subset in subsets()]
    for losses in data["losses"].values():
        assert [len(row) for row in losses] == [len(text["pieces"]) - 1 for text in data["texts"]]
    english = next("".join(text["pieces"]) for text in data["texts"] if text["topic"] == "English")
    assert set(english.replace(".", " ").split()) & {"the", "king", "house", "river"}


def test_switching_modules_in_a_browser_shows_the_losses_without_them(tmp_path: Path, tiny: Arguments) -> None:
    main(tiny())
    complaints: list[str] = []
    with chromium() as browser:
        page = browser.new_page(reduced_motion="reduce")
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("request", lambda request: request.url.startswith("file:") or complaints.append(request.url))
        page.goto((tmp_path / "out" / "page.html").as_uri())
        data = json.loads(page.locator("#data").inner_text())
        for out in ((), ("living",), ("living", "Spanish"), MODULES):
            for topic in MODULES:
                page.set_checked(f"input[name={topic}]", topic not in out)
            for heading, topic in zip(page.locator("h2").all_inner_texts(), TOPICS, strict=True):
                rows = [row for row, text in enumerate(data["texts"]) if text["topic"] == topic]
                now, whole = (mean([x for row in rows for x in data["losses"][key(each)][row]]) for each in (out, ()))
                name, nats, change = re.fullmatch(r"(\w+): (\S+) nats a token(?: \((\S+)\))?", heading).groups()
                assert name == topic
                assert float(nats) == pytest.approx(now / 100, abs=0.006)
                assert (change is None) == (not out)
                if out:
                    assert float(change.replace("\u2212", "-")) == pytest.approx((now - whole) / 100, abs=0.006)
    assert complaints == []


def test_the_tables_have_every_row_and_go_on_where_they_were(
    tmp_path: Path, tiny: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(tiny("compare", "--only", "twin"))
    first = saved_runs(out)
    assert sorted(first) == ["twin-seed0.json", "twin-seed0.pt"]
    main(tiny("compare", "--seed", "0", "1"))
    assert {name: time for name, time in saved_runs(out).items() if name in first} == first
    results = json.loads((out / "results.json").read_text())
    assert len(results["models"]) == 2 * sum(len(models) for models in ROWS.values())
    text, printed = (out / "table.md").read_text(), capsys.readouterr().out
    for content in sections(results).values():
        assert content in text
        assert content in printed
    assert "None" not in text
    assert (out / "matrices.png").is_file()
    (out / "runs" / "routed-seed1.json").unlink()
    main(tiny("compare", "--so-far", "--seed", "0", "1", "2"))
    results = json.loads((out / "results.json").read_text())
    assert [each["seed"] for each in results["models"] if each["name"] == "routed"] == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--seed", "0", "1"], "only `compare` takes more than one"),
        (["evaluate"], "Run `train` with the same flags first"),
        (["demo"], "Run `train` with the same flags first"),
        (["compare", "--only", "nothing"], "there is no row nothing"),
        (["compare", "--so-far"], "nothing of the tables has been measured so far"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_sentence(tiny: Arguments, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(message)):
        main(tiny(*arguments))


def model(name: str, losses: dict[str, dict[str, float]], **more: Any) -> dict[str, Any]:
    return {"name": name, "what": "", "seed": 0, "losses": losses, "relearning": {}, "cpu_seconds": 60.0, **more}


def of_all(loss: float) -> dict[str, float]:
    return dict.fromkeys(TOPICS, loss)


@given(st.floats(1, 3), st.floats(1, 3), st.floats(1, 3))
def test_compute_is_the_part_of_the_twins_training_after_which_it_was_as_good(
    core: float, kept: float, gone: float
) -> None:
    """The twin's loss falls from 3 to 1 in a straight line."""
    twin = model("twin", {"": of_all(1.0)}, curve=[(1, of_all(3.0)), (101, of_all(1.0))])
    losses = {
        key(subset): {CORE: core, **{topic: gone if topic in subset else kept for topic in MODULES}}
        for subset in SUBSETS
    }
    found = compute_table([twin, model("routed", losses)])
    row = next(line for line in found.splitlines() if "`routed`" in line)
    expected = [f"{100 * (1 + 50 * (3 - loss)) / 101:.0f}" for loss in (core, kept, gone, core, gone)]
    assert [cell.strip() for cell in row.strip("|").split("|")][3:] == expected
    assert "routed" not in compute_table([twin, model("routed", {"living": of_all(1.0)})])


def test_losses_of_a_topic_are_those_of_the_model_without_it() -> None:
    routed = {"": of_all(1.0), **{key(subset): of_all(2.0 + n) for n, subset in enumerate(SUBSETS)}}
    lines = topic_table([model("routed", routed), model("twin", {"": of_all(0.5)})]).splitlines()[2:]
    for n, line in enumerate(lines):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:4] == [MODULES[n], "0.500", "1.000", f"{2.0 + n:.3f}"]
        assert set(cells[4:]) == {""}


def test_rises_are_over_the_whole_model() -> None:
    losses = {
        key(subset): {topic: 2.0 * (1.5 if topic in subset else 1.1 if subset else 1.0) for topic in TOPICS}
        for subset in subsets()
    }
    lines = [
        [c.strip() for c in line.strip("|").split("|")] for line in subset_table([model("routed", losses)]).splitlines()
    ]
    assert [line[:2] for line in lines[2:]] == [["1", "4"], ["2", "6"], ["3", "4"], ["4", "1"]]
    assert [line[2:] for line in lines[2:-1]] == [["+10.0", "+10.0", "+50.0"]] * 3
    assert lines[-1][2:] == ["+10.0", "", "+50.0"]


def test_what_the_readme_shows_is_made_from_the_published_results() -> None:
    results, text = json.loads(RESULTS.read_text()), README.read_text(encoding="utf-8")
    for name, content in sections(results).items():
        assert f"<!-- --8<-- [start:{name}] -->\n{content}\n<!-- --8<-- [end:{name}] -->" in text
