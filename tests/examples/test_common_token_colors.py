import html
import re

from hypothesis import given
from hypothesis import strategies as st

from common.token_colors import WORST, color, in_html, in_terminal

PIECES = st.lists(
    st.tuples(st.text(st.characters(exclude_characters="\x1b", codec="utf-8"), max_size=4), st.floats(0, 20))
)


@given(PIECES)
def test_without_its_colors_it_is_the_text(pieces: list[tuple[str, float]]) -> None:
    text = "".join(text for text, _ in pieces)
    assert re.sub(r"\x1b\[[0-9;]*m", "", in_terminal(pieces)) == text
    page = in_html(pieces)
    assert html.unescape(re.sub(r"<[^>]*>", "", page)) == html.unescape(html.escape(text))
    assert page.count("<span") == page.count("</span>") == len(pieces)


@given(st.floats(0, 20), st.floats(0, 20))
def test_the_higher_a_loss_the_redder(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert color(0.0) == (255, 255, 255)
    assert color(low)[0] == color(high)[0] == 255
    assert all(0 <= after <= before for before, after in zip(color(low)[1:], color(high)[1:], strict=True))
    assert color(high) == color(min(high, WORST))
