"""A few kilobytes of text in two languages that share no word, as SWORD modules."""

import hashlib
import random
import struct
import zlib
from pathlib import Path

from common.sources import DatasetSpec

WORDS = {
    "English": ["the", "king", "and", "his", "house", "went", "up", "from", "river", "stone"],
    "Spanish": ["él", "rey", "y", "señor", "casa", "fué", "á", "desde", "río", "piedra"],
}
CHAPTERS, VERSES = 12, 6


def entries(language: str, part: str) -> list[str]:
    """The entries of a testament with their markup: a heading before the book and each chapter, and the verses."""
    draw = random.Random(part + language)
    found = ["", "<milestone/>"]
    for chapter in range(1, CHAPTERS + 1):
        found.append(f'<div type="x"/><chapter n="{chapter}" osisID="{part}.{chapter}" sID="{part}.{chapter}"/> ')
        for _ in range(VERSES):
            words = [draw.choice(WORDS[language]) for _ in range(12)]
            words[0] = f'<w lemma="strong:H1">{words[0]}</w>'
            found.append(" ".join(words) + '.<note type="x">not <b>text</b></note> ')
    return found


def written(folder: Path, part: str, texts: list[str], blocks: int = 2) -> None:
    """A testament as a zText module."""
    folder.mkdir(parents=True, exist_ok=True)
    index, verses, packed = b"", b"", b""
    size = -(-len(texts) // blocks)
    for block in range(blocks):
        content = b""
        for text in texts[block * size : (block + 1) * size]:
            verses += struct.pack("<IIH", block, len(content), len(text.encode()))
            content += text.encode()
        part_of = zlib.compress(content)
        index += struct.pack("<III", len(packed), len(part_of), len(content))
        packed += part_of
    for suffix, content in (("bzs", index), ("bzv", verses), ("bzz", packed)):
        (folder / f"{part}.{suffix}").write_bytes(content)


def modules(root: Path) -> dict[str, DatasetSpec]:
    """Both translations in a data folder, and what to expect of them."""
    specs = {}
    for language in WORDS:
        folder = root / f"text-{language}"
        for part in ("ot", "nt"):
            written(folder, part, entries(language, part))
        sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
        specs[language] = DatasetSpec(
            folder.name, sums, debian_package="no-such-package", debian_folder=str(root / "no")
        )
    return specs
