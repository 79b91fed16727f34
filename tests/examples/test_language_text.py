from pathlib import Path

import pytest
import torch
from fake_text import CHAPTERS, VERSES, entries, modules, written
from hypothesis import given
from hypothesis import strategies as st

import gradroute as gr
from common import debian
from language.config import CONDITIONS, FORGET, LANGUAGES, RETAIN, Settings
from language.text import hold_out, load, plain
from language.tokens import END, corpus, known_labels

TINY = Settings(vocabulary=300, context=8, held_out=3, test_sequences=1000)
ROUTED = next(each for each in CONDITIONS if each.name == "routed")
PLACEBO = next(each for each in CONDITIONS if each.name == "placebo")


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


def test_tokens_hold_all_bytes_of_the_text_and_each_is_predicted_once(tmp_path: Path) -> None:
    verses = load(tmp_path, modules(tmp_path))
    found = corpus(verses, TINY)
    _, test = hold_out(verses, TINY.held_out)
    for number, language in enumerate(LANGUAGES):
        tokens = found.test.of(number)
        assert tokens.shape[1] == TINY.context + 1
        assert torch.equal(tokens[1:, 0], tokens[:-1, -1])
        stream = [*tokens[0].tolist(), *tokens[1:, 1:].flatten().tolist()]
        decoded = found.tokenizer.decode(stream, skip_special_tokens=False)
        chapters = dict.fromkeys(v.chapter for v in test)
        whole = "".join("\n".join(v.texts[language] for v in test if v.chapter == each) + END for each in chapters)
        assert whole.startswith(decoded.rstrip("�"))
        assert len(decoded) > len(whole) - 100
        encoded = found.tokenizer.encode(whole).ids
        plain_bytes = len(whole.replace(END, "").encode())
        assert int(found.n_bytes[torch.tensor(encoded)].sum()) == plain_bytes + whole.count(END)


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0, 1), st.floats(0, 1), st.integers(0, 9))
def test_labels_are_true_as_many_as_asked_for_and_nested(
    english: int, spanish: int, one: float, other: float, seed: int
) -> None:
    language = torch.tensor([RETAIN] * english + [FORGET] * spanish, dtype=torch.int64)
    low, high = sorted((one, other))
    less, more = (known_labels(language, Settings(labeled=share), ROUTED, seed) for share in (low, high))
    for known, share in ((less, low), (more, high)):
        assert int((known == FORGET).sum()) == round(share * spanish)
        assert int((known == RETAIN).sum()) == round(Settings().english_labeled * english)
        labeled = known != gr.UNLABELED
        assert torch.equal(known[labeled], language[labeled])
    assert bool((less == more)[less != gr.UNLABELED].all())
    placebo = known_labels(language, Settings(labeled=low), PLACEBO, seed)
    assert torch.equal(placebo.sort().values, less.sort().values)
