import torch
from hypothesis import given
from hypothesis import strategies as st

from common.tokens import END, byte_pairs, cut, n_bytes

TEXTS = ["the king and his house" + END, "río, señor, él" + END]
TOKENIZER = byte_pairs(TEXTS, 280)


@given(st.lists(st.text(max_size=20).map(lambda text: text + END), min_size=1, max_size=5), st.integers(1, 5))
def test_each_token_is_predicted_once_and_every_byte_is_counted(texts: list[str], context: int) -> None:
    ids = torch.tensor([i for text in texts for i in TOKENIZER.encode(text).ids])
    if len(ids) <= context:
        return
    rows = cut(TOKENIZER, texts, context)
    assert rows.shape == ((len(ids) - 1) // context, context + 1)
    assert torch.equal(rows[:, 1:].flatten(), ids[1 : 1 + len(rows) * context])
    assert torch.equal(rows[1:, 0], rows[:-1, -1])
    ends = sum(text.count(END) for text in texts)
    assert int(n_bytes(TOKENIZER)[ids].sum()) == sum(len(text.replace(END, "").encode()) for text in texts) + ends


def test_the_vocabulary_is_as_large_as_asked_for_and_has_the_end() -> None:
    assert TOKENIZER.get_vocab_size() == 280
    assert TOKENIZER.encode(END).ids == [TOKENIZER.token_to_id(END)] == [0]
    assert TOKENIZER.decode(TOKENIZER.encode("el niño").ids) == "el niño"
