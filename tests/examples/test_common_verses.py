from pathlib import Path

import pytest
from fake_text import CHAPTERS, VERSES, entries, modules, written

from common import debian
from common.verses import hold_out, load, plain

LANGUAGES = ("English", "Spanish")


def test_an_entry_is_its_words() -> None:
    markup = "¶ <w l='H1'>In</w>  the <note n='1'>a <hi>note</hi></note><title>T</title>beginning. "
    assert plain(markup) == "In the beginning."
    assert plain('<chapter n="1" sID="Gen.1"/> ') == ""


def test_verses_are_aligned_and_each_knows_its_chapter(tmp_path: Path) -> None:
    verses = load(tmp_path, modules(tmp_path))
    assert len(verses) == 2 * CHAPTERS * VERSES
    assert [v.chapter for v in verses[::VERSES]] == [
        f"{part}.{i + 1}" for part in ("ot", "nt") for i in range(CHAPTERS)
    ]
    for part, found in (("ot", verses[: len(verses) // 2]), ("nt", verses[len(verses) // 2 :])):
        for language in LANGUAGES:
            assert [v.texts[language] for v in found] == [each for each in map(plain, entries(language, part)) if each]


def test_a_verse_that_one_translation_lacks_is_left_out(tmp_path: Path) -> None:
    specs = modules(tmp_path)
    texts = entries("Spanish", "ot")
    texts[4] = ""
    written(tmp_path / specs["Spanish"].folder, "ot", texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(debian, "_problems", lambda spec, folder: {})
        verses = load(tmp_path, specs)
    assert len(verses) == 2 * CHAPTERS * VERSES - 1
    assert verses[1].texts["English"] == plain(entries("English", "ot")[5])
    assert verses[1].texts["Spanish"] == plain(texts[5])


def test_the_same_chapters_are_held_out_in_both_languages(tmp_path: Path) -> None:
    verses = load(tmp_path, modules(tmp_path))
    train, test = hold_out(verses, 3)
    assert sorted(train + test, key=verses.index) == verses
    assert not {v.chapter for v in train} & {v.chapter for v in test}
    assert len({v.chapter for v in test}) == 2 * CHAPTERS // 3
