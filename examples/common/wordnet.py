"""The glosses of WordNet 3.0 (Fellbaum, 1998), out of Debian's package, of which nothing is installed."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common.sources import DatasetSpec

WORDNET = DatasetSpec(
    folder="wordnet-base",
    sha256={
        "data.adj": "c89120dfc1f046ddff4a631bf9b7e9fa1a36b5e86565a23bf82dbe14f30b88a7",
        "data.adv": "444a63bf3955080ab7524f5079cfc07ff9bc682cb98bdb1db73b0fb9829f1139",
        "data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
        "data.verb": "adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2",
    },
    debian_package="wordnet-base",
    debian_folder="/usr/share/wordnet",
)


class Gloss(NamedTuple):
    """One entry.

    Attributes:
        file: The number of its lexicographer file, such as 5 for animals; lexnames(5WN) lists them.
        text: Its words and what they mean.
    """

    file: int
    text: str


def read_glosses(folder: Path) -> Iterator[Gloss]:
    """All entries: nouns first, each part of speech in the order of its file; wndb(5WN) describes a line."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the licence
                continue
            data, _, meaning = line.partition(" | ")
            fields = data.split(" ")
            # The number of words is hexadecimal; a number stands after each; "(a)" says where an adjective may stand.
            words = [word.partition("(")[0].replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
            yield Gloss(int(fields[1]), f"{', '.join(words)}: {meaning.strip()}")
