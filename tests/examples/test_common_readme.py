from pathlib import Path

import pytest

from common.errors import ExampleError
from common.readme import part_of, with_part, write_parts


def test_a_table_replaces_what_stands_in_its_place_and_nothing_else() -> None:
    text = "a\n<!-- --8<-- [start:x] -->\nold\n<!-- --8<-- [end:x] -->\nb\n"
    new = with_part(text, "x", "| new |")
    assert new == "a\n<!-- --8<-- [start:x] -->\n| new |\n<!-- --8<-- [end:x] -->\nb\n"
    assert with_part(new, "x", "| new |") == new
    assert (part_of(text, "x"), part_of(new, "x")) == ("old", "| new |")


@pytest.mark.parametrize("text", ["", "<!-- --8<-- [end:x] -->\n<!-- --8<-- [start:x] -->\n"])
def test_a_text_without_the_place_is_refused(text: str) -> None:
    with pytest.raises(ExampleError, match="needs one line"):
        with_part(text, "x", "new")


def test_a_file_gets_all_of_its_parts_or_none(tmp_path: Path) -> None:
    readme, before = tmp_path / "README.md", "<!-- --8<-- [start:x] -->\nold\n<!-- --8<-- [end:x] -->\n"
    readme.write_text(before)
    with pytest.raises(ExampleError, match="start:y"):
        write_parts(readme, {"x": "new", "y": "new"})
    assert readme.read_text() == before
    write_parts(readme, {"x": "new"})
    assert readme.read_text() == before.replace("old", "new")
