from pathlib import Path

import torch
from fake_text import modules
from hypothesis import given
from hypothesis import strategies as st

import gradroute as gr
from common.tokens import END
from common.verses import hold_out, load
from language.config import CONDITIONS, FORGET, LANGUAGES, RETAIN, Settings
from language.tokens import corpus, known_labels

TINY = Settings(vocabulary=300, context=8, held_out=3, test_sequences=1000)
ROUTED = next(each for each in CONDITIONS if each.name == "routed")
PLACEBO = next(each for each in CONDITIONS if each.name == "placebo")


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
