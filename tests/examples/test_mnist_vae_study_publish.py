import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_mnist import synthetic

from common.files import write_json
from common.readme import part_of, with_part
from common.tables import markdown, read
from mnist_vae.config import Config
from mnist_vae.model import SIDE, build_model
from mnist_vae.study.compare import COLUMNS, Control
from mnist_vae.study.compare import read as read_rows
from mnist_vae.study.figures import beside
from mnist_vae.study.publish import README, TABLES, draw_original, merged, publish
from mnist_vae.study.tradeoff import WIDE_ROWS, tradeoff

DOCS = README.parents[2] / "docs"
PLACES = ("table", *(f"{name}{suffix}" for name in TABLES for suffix in ("", "_rows")))


@pytest.mark.parametrize("name", PLACES)
def test_the_readme_has_a_place_with_a_table_for_each(name: str) -> None:
    text = README.read_text(encoding="utf-8")
    assert with_part(text, name, "nothing") != text
    block = text.split(f"[start:{name}] -->\n")[1].split("\n<!--")[0].splitlines()
    assert len(block) > 2, "a heading, a rule and a row at least"
    assert len({len(line) for line in block}) == 1, "as publish aligns it: nothing was typed in by hand"


def test_what_the_front_page_claims_is_in_the_table() -> None:
    block = README.read_text(encoding="utf-8").split("[start:table] -->\n")[1].split("\n<!--")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block]
    column = rows[0].index("argmax accuracy")
    found = sorted(float(row[column].rstrip("%")) for row in rows[2:] if row[0] == "default")
    assert len(found) == 5
    front = (README.parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"{found[0]:.2f} % to\n{found[-1]:.2f} %" in front


@pytest.mark.parametrize(
    ("recipe", "page"), [("default", README), ("quick", README), ("default", DOCS / "mnist_vae.md")]
)
def test_how_long_a_training_takes_is_what_the_table_says(recipe: str, page: Path) -> None:
    rows = read(part_of(README.read_text(encoding="utf-8"), "table"))
    seconds = sorted(int(row["training"].removesuffix(" s")) for row in rows if row["recipe"] == recipe)
    assert f"{seconds[0]} to {seconds[-1]} s" in page.read_text(encoding="utf-8")


def test_the_rows_beside_wide_exist() -> None:
    assert set(WIDE_ROWS) <= {row.name for row in tradeoff("mnist", 8)}


def written(control: Control, folder: Path, seed: int) -> None:
    """An evaluated run, as far as a table reads it."""
    run = control.run(folder, seed)
    write_json(run.config, {**control.config.to_dict(), "seed": seed})
    write_json(run.metrics, {**dict.fromkeys(COLUMNS, 1 - 0.1 * seed), "train_seconds": 1.0})


def test_rows_that_were_run_are_replaced_and_all_others_stay(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    shutil.copyfile(README, readme)
    rows, folder = TABLES["compare"]
    placebo = next(row for row in rows if row.name == "placebo")
    for seed in (0, 1):
        written(placebo, tmp_path / "runs" / folder, seed)
    publish(tmp_path / "runs", readme, tmp_path)
    before, after = (read(part_of(path.read_text("utf-8"), "compare")) for path in (README, readme))
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert [(row["run"], row["seeds"], row["argmax accuracy"]) for row in changed] == [
        ("placebo", "2", "95.00% (90.00% to 100.00%)")
    ]
    for name in set(PLACES) - {"compare"}:
        assert part_of(readme.read_text("utf-8"), name) == part_of(README.read_text("utf-8"), name)
    assert {path.name for path in tmp_path.glob("*.png")} == {"compare.png", "compare_labels.png", "tradeoff.png"}


def test_a_new_row_comes_to_its_place_and_one_that_is_no_more_goes() -> None:
    def table(*names: str) -> str:
        return markdown(["run", "value"], [[name, f"{name}!"] for name in names])

    assert merged(table("gone", "c", "a"), table("b"), ("run",), ["a", "b", "c", "d"]) == table("a", "b", "c")
    assert merged(table("c", "a"), table("b"), ("run",)) == table("a", "b", "c")


@pytest.mark.parametrize("name", TABLES)
def test_pictures_are_drawn_from_what_the_table_says(name: str) -> None:
    rows, _ = TABLES[name]
    table = part_of(README.read_text(encoding="utf-8"), name)
    found = read_rows(rows, table)
    assert [row.control.name for row in found] == [row["run"] for row in read(table)], "each row is one of the controls"
    assert all(set(row.found) == set(COLUMNS) for row in found)
    assert all(value.least <= value.middle <= value.most for row in found for value in row.found.values())


def test_the_original_stands_beside_ours_where_it_was_run(tmp_path: Path) -> None:
    images = synthetic(30, seed=0)
    assert draw_original(tmp_path, images, tmp_path) is None
    original = next(row for row in TABLES["compare"][0] if row.name == "original")
    written(original, tmp_path / "compare", 1)
    run = original.run(tmp_path / "compare", 1)
    run.save_weights(build_model(run.load_config()))
    path = draw_original(tmp_path, images, tmp_path)
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")


def test_beside_shows_what_each_dimension_draws_alone_and_what_is_decoded() -> None:
    model, images = build_model(Config()).eval(), synthetic(30, seed=0)
    given, sheet = (axes.get_images()[0].get_array() for axes in beside({"a model": model}, images).axes)
    with torch.no_grad():
        alone = model.decode(model.pure(torch.tensor([3.0]))[:, 0])[:, 0]
        first = images.images[:10].float() / 255  # the labels go round
        decoded = model.decode(model.encode_mean(first))[:, 0]
    framed = SIDE + 2
    for digit in range(10):
        inside = slice(framed * digit + 1, framed * digit + 1 + SIDE)
        assert np.allclose(given[1 : 1 + SIDE, inside], first[digit, 0])
        assert np.allclose(sheet[1 : 1 + SIDE, inside], alone[digit])
        assert np.allclose(sheet[framed + 1 : framed + 1 + SIDE, inside], decoded[digit])
