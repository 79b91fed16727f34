from pathlib import Path

from fake_wordnet import ENTRIES, LICENCE, WORDS, line, wordnet

from common.wordnet import WORDNET, Gloss, read_glosses


def test_an_entry_is_its_words_and_their_meaning(tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(17)]  # 11, in hexadecimal
    nouns = line(5, ["guide_dog", "dog"], 'leads | follows; "a good dog"') + line(20, words, "plants")
    texts = {"noun": nouns, "verb": "", "adj": line(0, ["alive(p)", "live(a)"], "having life", part="s"), "adv": ""}
    for part, text in texts.items():
        (tmp_path / f"data.{part}").write_text(LICENCE + text, encoding="utf-8")
    assert list(read_glosses(tmp_path)) == [
        Gloss(5, 'guide dog, dog: leads | follows; "a good dog"'),
        Gloss(20, f"{', '.join(words)}: plants"),
        Gloss(0, "alive, live: having life"),
    ]


def test_entries_of_all_parts_of_speech_are_read(tmp_path: Path) -> None:
    found = list(read_glosses(tmp_path / wordnet(tmp_path).folder))
    assert [gloss.file for gloss in found] == [*(file for file in WORDS for _ in range(ENTRIES)), 0]
    assert set(WORDNET.sha256) == {f"data.{part}" for part in ("noun", "verb", "adj", "adv")}
