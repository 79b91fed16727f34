import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import chromium
from saved_runs import saved_runs

from common import readme
from oversight import cli, runs
from oversight.cli import TAMPERED, main
from oversight.config import CONDITIONS, Settings
from oversight.page import EPISODES
from oversight.results import WRONG, figure, later, markdown, removals, sections, summarise

Arguments = Callable[..., list[str]]
EXAMPLE = Path(__file__).parents[2] / "examples" / "oversight"
ASSETS = readme.ASSETS / "oversight"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arguments]:
    """Arguments for runs that take a moment, in a folder of their own."""
    small = partial(Settings, grids=4, steps=8, judged_every=2, judging_grids=4, final_grids=8)
    monkeypatch.setattr(cli, "Settings", small)
    threads = torch.get_num_threads()
    yield lambda *arguments: [*arguments, "--updates", "4", "--workers", "1", "--out", str(tmp_path / "out")]
    torch.set_num_threads(threads)


def test_end_to_end_and_nothing_is_trained_twice(
    tmp_path: Path, tiny: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(tiny())
    files = ["curves.png", "metrics.json", "page.html", "results.json", "runs", "table.md"]
    assert sorted(path.name for path in out.iterdir()) == files
    assert sorted(saved_runs(out)) == sorted(f"{each.name}-p0.1-seed0.pt" for each in CONDITIONS)
    results = json.loads((out / "results.json").read_text())
    names = [row["name"] for row in results["rows"]]
    assert names == [CONDITIONS[0].name, WRONG[0], *(each.name for each in CONDITIONS[1:])]
    assert markdown(results["rows"]) in (out / "table.md").read_text()
    assert markdown(results["rows"]) in capsys.readouterr().out

    metrics = json.loads((out / "metrics.json").read_text())
    for name in ("steered", "training", "ghost"):
        assert -1 <= metrics[f"{name}_return"] <= 1
        assert 0 <= metrics["diamond_rate"][name] + metrics["ghost_rate"][name] <= 1
    assert metrics["updates"] == 4
    assert metrics["episodes"] == metrics["curve"][-1]["episodes"] > 0

    before = saved_runs(out)
    main(tiny())
    main(tiny("train"))
    main(tiny("evaluate"))
    main(tiny("demo"))
    assert saved_runs(out) == before
    assert json.loads((out / "results.json").read_text()) == results
    assert json.loads((out / "metrics.json").read_text()) == metrics


def test_a_table_of_more_updates_goes_on_and_one_of_fewer_is_read_off(tmp_path: Path, tiny: Arguments) -> None:
    arguments = tiny("compare", "--only", "penalty", "routed", "--seed", "0", "1", "--oversight", "0.5")
    main(arguments)
    four = json.loads((tmp_path / "out" / "results.json").read_text())
    main([*arguments, "--updates", "6"])
    six = json.loads((tmp_path / "out" / "results.json").read_text())
    main(arguments)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == four
    main([*arguments, "--as-is", "--updates", "6"])
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == six
    main([*arguments, "--as-is"])
    mixed = json.loads((tmp_path / "out" / "results.json").read_text())
    for row, short, long in zip(mixed["rows"], four["rows"], six["rows"], strict=True):
        assert row == {**short, "curves": long["curves"], "cpu_seconds": long["cpu_seconds"]}
    with pytest.raises(SystemExit, match="none of these runs, 8 updates long"):
        main([*arguments, "--as-is", "--updates", "8"])
    for short, long in zip(four["rows"], six["rows"], strict=True):
        assert [curve[:2] for curve in long["curves"]] == short["curves"]
        assert [at["updates"] for at in long["curves"][0]] == [2, 4, 6]
    assert [row["seeds"] for row in six["rows"]] == [[0, 1]] * 3


def test_the_expert_that_caught_hacks_is_removed_and_one_network_stays_as_it_is(
    tmp_path: Path, tiny: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    main(tiny("tamper", "--seed", "0", "1"))
    out = tmp_path / "out"
    assert sorted(saved_runs(out)) == sorted(
        f"{name}-p0.05-unseen-seed{seed}.pt" for name in TAMPERED for seed in (0, 1)
    )
    found = json.loads((out / "tampering.json").read_text())
    assert [(each["seed"], each["name"]) for each in found] == [(seed, name) for seed in (0, 1) for name in TAMPERED]
    assert all((each["before"] == each["after"]) == (each["name"] in ("penalty", "filtered")) for each in found)
    assert removals(found) in capsys.readouterr().out
    main(tiny("compare", "--only", "penalty", "--seed", "0", "--oversight", "0.5"))
    assert json.loads((out / "results.json").read_text())["tampering"] == found
    assert removals(found) in (out / "table.md").read_text()


def test_processes_find_what_one_does(tmp_path: Path) -> None:
    settings = Settings(grids=4, steps=8, judged_every=1, judging_grids=4)
    for workers in (1, 2):
        jobs = [runs.Job(each, settings, 0, 1, tmp_path / str(workers)) for each in CONDITIONS[:2]]
        found = cli.in_processes(runs.curve, jobs, workers)
        for curve in found:
            del curve[0]["cpu_seconds"]
        if workers == 1:
            one = found
    assert found == one
    assert "ghost" in found[0][0]
    assert "ghost" not in found[1][0]


def test_a_run_of_other_settings_is_trained_anew(tmp_path: Path) -> None:
    settings = Settings(grids=4, steps=8, judged_every=1, judging_grids=4)
    job = runs.Job(CONDITIONS[1], settings, 0, 2, tmp_path)
    assert runs.finish(job).updates == 2
    assert runs.found(job).updates == 2
    assert runs.found(job._replace(settings=Settings(grids=5, steps=8))).updates == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--updates", "0"], "--updates must be a multiple of 100"),
        (["train", "--updates", "150"], "--updates must be a multiple of 100"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--oversight", "1.5"], "--oversight in 0 to 1"),
        (["--seed", "-1"], "--seed at least 0"),
        (["train", "--seed", "0", "1"], "only `compare` and `tamper` take more than one"),
        (["compare", "--only", "nonsense"], "there is no row nonsense"),
        (["compare", "--as-is", "--out", "empty"], "empty holds none of these runs"),
        (["evaluate", "--out", "empty"], "there is no empty/runs/routed-p0.1-seed0.pt that is trained. Run `train`"),
        (["evaluate"], "runs/oversight/runs/routed-p0.1-seed0.pt cannot be read"),
    ],
)
def test_mistakes_get_one_message_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    broken = tmp_path / "runs" / "oversight" / "runs" / "routed-p0.1-seed0.pt"
    broken.parent.mkdir(parents=True)
    broken.write_text("no weights")
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(message)}"):
        main(arguments)


def test_an_interruption_says_how_to_go_on(
    tiny: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "finish", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(tiny("train"))
    assert stopped.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_the_folder_runs_and_helps() -> None:
    done = subprocess.run([sys.executable, EXAMPLE, "--help"], capture_output=True, text=True, check=True)
    assert all(
        f"--{flag}" in done.stdout for flag in ("oversight", "seed", "updates", "only", "workers", "docs", "out")
    )
    assert "{all,train,evaluate,compare,tamper,demo}" in done.stdout


def point(updates: int, episodes: int, value: float) -> dict[str, Any]:
    each = {"return": value, "diamond": 0.5, "ghost": 0.25}
    return {
        "updates": updates,
        "episodes": episodes,
        "cpu_seconds": 1.0,
        "training": each,
        "steered": each,
        "ghost": each,
    }


def test_the_table_compares_at_equal_updates_and_at_equal_episodes() -> None:
    jobs = [runs.Job(each, Settings(), seed, 2, Path()) for seed in (0, 1) for each in CONDITIONS[:2]]
    slow, fast = [point(1, 10, 0.1), point(2, 20, 0.2)], [point(1, 20, 0.3), point(2, 40, 0.4)]
    rows = {row["name"]: row for row in summarise(jobs, [slow, fast, slow, fast], 2)}
    assert list(rows) == ["routed", "steered-wrongly", "penalty"]
    assert (rows["routed"]["return"], rows["penalty"]["return"]) == ([0.2, 0.2], [0.4, 0.4])
    assert (rows["routed"]["equal"], rows["penalty"]["equal"]) == ([0.2, 0.2], [0.3, 0.3])
    longer = {row["name"]: row for row in summarise(jobs[:2], [slow, [*fast, point(3, 60, 0.5)]], 2)}
    assert (longer["penalty"]["return"], longer["penalty"]["updates"]) == ([0.4], 2)
    assert len(longer["penalty"]["curves"][0]) == 3
    short = {row["name"]: row for row in summarise(jobs[:2], [slow[:1], fast[:1]], 1)}
    assert (short["routed"]["equal"], short["penalty"]["equal"]) == ([0.1], [0.3])


def test_where_some_seeds_go_further_the_way_says_how_many() -> None:
    jobs = [runs.Job(CONDITIONS[1], Settings(), seed, 100, Path()) for seed in (0, 1, 2)]
    curves = [[point(number, 1, seed / 10) for number in (100, 200)[: 2 - seed % 2]] for seed in (0, 1, 2)]
    rows = summarise(jobs, curves, 100)
    assert [cell.strip() for cell in later(rows).splitlines()[2].split("|")[3:-1]] == ["0.10", "0.10 (2)"]
    (line,) = [each for each in figure(rows).axes[0].get_lines() if each.get_label() == "penalty"]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([100, 200], [0.1, 0.1])  # type: ignore[arg-type]


def test_steering_gains_what_it_adds_to_the_policy_in_training() -> None:
    at = {**point(1, 1, 0.1), "steered": {"return": 0.5}, "ghost": {"return": -0.25}}
    jobs = [runs.Job(CONDITIONS[0], Settings(), 0, 1, Path())]
    assert [row["gain"] for row in summarise(jobs, [[at]], 1)] == [[pytest.approx(0.4)], [pytest.approx(-0.35)]]


def test_the_page_shows_episodes_that_can_be(tmp_path: Path, tiny: Arguments) -> None:
    main(tiny("train"))
    main(tiny("demo"))
    text = (tmp_path / "out" / "page.html").read_text()
    assert not re.search(r"https?:|src=|href=|@import|url\(", text)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert len(data["training"]) == len(data["steered"]) == EPISODES
    for one, other in zip(data["training"], data["steered"], strict=True):
        assert [one[key] for key in ("start", "squares", "watched")] == [
            other[key] for key in ("start", "squares", "watched")
        ]
        for shown in (one, other):
            path, squares = shown["path"], shown["squares"]
            assert path[0] == shown["start"]
            assert len({path[0], *squares}) == 3
            for here, there in pairwise(path):
                assert abs(here // 5 - there // 5) + abs(here % 5 - there % 5) <= 1
            assert not {*squares} & {*path[:-1]}
            assert shown["reached"] == [path[-1] == square for square in squares]
            assert any(shown["reached"]) or len(path) == 33


def test_the_page_plays_in_a_browser_and_complains_of_nothing(tmp_path: Path, tiny: Arguments) -> None:
    main(tiny("train"))
    main(tiny("demo"))
    complaints = []
    with chromium() as browser:
        page = browser.new_page(reduced_motion="reduce")
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("request", lambda request: request.url.startswith("file:") or complaints.append(request.url))
        page.clock.install()
        page.goto((tmp_path / "out" / "page.html").as_uri())
        page.wait_for_selector("html[data-state=ready]", state="attached")
        assert page.locator("circle.agent").count() == 2
        for count in (1, 2):
            page.click("#next")
            assert page.locator(".tally").first.inner_text().startswith(f"of {count} episodes")
        page.select_option("#which", "near")
        assert page.locator(".tally").first.inner_text().startswith("of 0 episodes")
        page.click("#play")
        # It takes some seconds, and so the page's clock goes faster.
        longest = page.evaluate("Math.max(...sides.flatMap((side) => data[side].map(({ path }) => path.length)))")
        for _ in range(longest):
            if page.locator(".tally").first.inner_text().startswith("of 1 "):
                break
            page.clock.run_for(300)
        assert page.locator(".tally").first.inner_text().startswith("of 1 ")
    assert complaints == []


def test_the_readme_is_what_the_published_results_make_of_it() -> None:
    results = json.loads((ASSETS / "results.json").read_text(encoding="utf-8"))
    rows = results["rows"]
    assert {row["what"] for row in rows} <= {WRONG[1], *(each.what for each in CONDITIONS)}
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    for content in sections(results).values():
        assert content in text
    assert (ASSETS / "curves.png").stat().st_size < 200_000
    assert "/* DATA */" not in (ASSETS / "page.html").read_text(encoding="utf-8")


def test_publishing_writes_parts_of_the_readme_and_nothing_else(
    tmp_path: Path, tiny: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "oversight" / "README.md"
    monkeypatch.setattr(readme, "EXAMPLES", tmp_path)
    monkeypatch.setattr(readme, "ASSETS", tmp_path / "assets")
    marked = [
        f"<!-- --8<-- [start:{part}] -->\nold\n<!-- --8<-- [end:{part}] -->"
        for part in ("rows", "table", "later", "tampering", "made")
    ]
    text.parent.mkdir()
    text.write_text("\n".join(["before", *marked, "after"]))
    main(tiny("compare", "--only", "routed", "--seed", "0", "--oversight", "0.5", "--docs"))
    published = json.loads((tmp_path / "assets" / "oversight" / "results.json").read_text())
    assert markdown(published["rows"]) in text.read_text()
    assert sections(published)["made"] in text.read_text()
    assert (text.read_text().splitlines()[0], text.read_text().splitlines()[-1]) == ("before", "after")
    assert "old" not in text.read_text()
    files = ["curves.png", "page.html", "results.json"]
    assert sorted(path.name for path in (tmp_path / "assets" / "oversight").iterdir()) == files
