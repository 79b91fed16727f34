"""Text whose pieces have the colour of their loss, from white to red."""

import html
from collections.abc import Sequence

WORST = 8.0  #: Nats: from here on a piece has the full colour. Guessing among 2048 tokens costs 7.6.

Piece = tuple[str, float]


def in_terminal(pieces: Sequence[Piece]) -> str:
    """Pieces and their losses in nats, with ANSI colours."""
    colors = [";".join(map(str, color(loss))) for _, loss in pieces]
    return "".join(
        f"\x1b[48;2;{each}m\x1b[38;2;0;0;0m{text}\x1b[0m" for each, (text, _) in zip(colors, pieces, strict=True)
    )


def in_html(pieces: Sequence[Piece]) -> str:
    """Pieces and their losses in nats, as spans that name the loss where the mouse is."""
    return "".join(
        f'<span style="background:rgb{color(loss)}" title="{loss:.2f} nats">{html.escape(text)}</span>'
        for text, loss in pieces
    )


def color(loss: float) -> tuple[int, int, int]:
    """Red, green and blue of 0 to 255."""
    part = min(1.0, loss / WORST)
    return 255, round(255 - 150 * part), round(255 - 175 * part)
