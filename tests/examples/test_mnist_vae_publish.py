import pytest

from mnist_vae.errors import ExampleError
from mnist_vae.publish import README
from mnist_vae.tables import with_part
from mnist_vae.tradeoff import WIDE_ROWS, tradeoff

PLACES = ("table", "compare", "fashion", "wide", "tradeoff")


def test_a_table_replaces_what_stands_in_its_place_and_nothing_else() -> None:
    text = "a\n<!-- --8<-- [start:x] -->\nold\n<!-- --8<-- [end:x] -->\nb\n"
    new = with_part(text, "x", "| new |")
    assert new == "a\n<!-- --8<-- [start:x] -->\n| new |\n<!-- --8<-- [end:x] -->\nb\n"
    assert with_part(new, "x", "| new |") == new


@pytest.mark.parametrize("text", ["", "<!-- --8<-- [end:x] -->\n<!-- --8<-- [start:x] -->\n"])
def test_a_text_without_the_place_is_refused(text: str) -> None:
    with pytest.raises(ExampleError, match="needs one line"):
        with_part(text, "x", "new")


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
