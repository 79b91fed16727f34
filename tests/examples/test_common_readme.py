from pathlib import Path

import pytest

from common import readme
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


def test_what_cannot_be_published_whole_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme, "EXAMPLES", tmp_path / "examples")
    monkeypatch.setattr(readme, "ASSETS", tmp_path / "assets")
    page = tmp_path / "examples" / "one" / "README.md"
    page.parent.mkdir(parents=True)
    before = "<!-- --8<-- [start:x] -->\nold\n<!-- --8<-- [end:x] -->\n"
    page.write_text(before)
    (tmp_path / "there.png").write_bytes(b"picture")
    with pytest.raises(ExampleError, match=r"there is no page\.html in"):
        readme.publish("one", {"x": "new"}, {}, tmp_path, ["there.png", "page.html"])
    assert page.read_text() == before
    assert not (tmp_path / "assets").exists()
    readme.publish("one", {"x": "new"}, {"a": 0.12345678}, tmp_path, ["there.png"])
    assert page.read_text() == before.replace("old", "new")
    assert (tmp_path / "assets" / "one" / "there.png").read_bytes() == b"picture"
    assert (tmp_path / "assets" / "one" / "results.json").read_text() == '{"a": 0.123457}\n'
