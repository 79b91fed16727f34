import pytest

from common.readme import with_part
from mnist_vae.study.publish import README
from mnist_vae.study.tradeoff import WIDE_ROWS, tradeoff

PLACES = ("table", "compare", "fashion", "wide", "tradeoff")


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


def test_the_rows_beside_wide_exist() -> None:
    assert set(WIDE_ROWS) <= {row.name for row in tradeoff("mnist", 8)}
