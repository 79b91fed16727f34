"""A few kilobytes of glosses on three topics that share no word, in WordNet's format."""

import hashlib
import random
from pathlib import Path

from common.sources import DatasetSpec

#: By lexicographer file: words of its glosses.
WORDS = {
    4: ["act", "doing", "thing", "done", "somebody"],
    5: ["beast", "fur", "claws", "tail", "wild"],
    20: ["leaf", "flower", "shrub", "green", "seed"],
    13: ["bread", "sweet", "eaten", "cooked", "dish"],
}
ENTRIES = 60  #: Of each file.
LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n"


def line(file: int, words: list[str], meaning: str, *, part: str = "n") -> str:
    """An entry; each word with its number, and a pointer to another entry."""
    numbered = " ".join(f"{word} {number}" for number, word in enumerate(words))
    return f"{file:08} {file:02} {part} {len(words):02x} {numbered} 001 @ 00000001 n 0000 | {meaning}  \n"


def wordnet(root: Path) -> DatasetSpec:
    """The files in a data folder, and what to expect of them."""
    folder = root / "wordnet"
    folder.mkdir(parents=True)
    draw = random.Random(0)
    nouns = [
        line(file, draw.choices(words, k=2), " ".join(draw.choices(words, k=8)))
        for file, words in WORDS.items()
        for _ in range(ENTRIES)
    ]
    files = {
        "data.noun": "".join(nouns),
        "data.verb": "",
        "data.adj": line(0, ["done(p)"], "somebody doing a thing", part="a"),
    }
    for name, text in {**files, "data.adv": ""}.items():
        (folder / name).write_text(LICENCE + text, encoding="utf-8")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    return DatasetSpec(folder.name, sums, debian_package="no-such-package", debian_folder=str(root / "no"))
