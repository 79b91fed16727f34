"""The Bible, verse by verse in two languages: fetched once, checked every time, read out of SWORD modules."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from common.debian import make_sure_of
from common.errors import ExampleError
from common.sources import DatasetSpec
from common.sword import read_ztext

#: Debian's packages, of which nothing is installed: the King James Bible and Reina-Valera 1909, both public domain.
TRANSLATIONS: dict[str, DatasetSpec] = {
    "English": DatasetSpec(
        folder="sword-text-kjv",
        sha256={
            "nt.bzs": "e7f9bc653743217cdcdf95890a708f997a03af056161d84bb540efef79e4e638",
            "nt.bzv": "9d1daab8fb6ef43b53642cdd3276c1fa95ecfde08901bbb349be6378d1e1b972",
            "nt.bzz": "135b6e70af49372f3a82c5d9cc3c00278f38dbb2c12af74ea8d4b54c18d0cd56",
            "ot.bzs": "0d518856e8c6ceae0ca58bef944ba9a2809b5d4489cf81900853ad4af227510b",
            "ot.bzv": "b4fae54cb0b979b7f3f78fe6eaa94bad1f1d408eccb4a40410402b794b5c2f0f",
            "ot.bzz": "69f7e4e9b42ecef2e212ea957a388fccbeed1e3e333a38cf52e1b4064c6ce373",
        },
        debian_package="sword-text-kjv",
        debian_folder="/usr/share/sword/modules/texts/ztext/engKJV2006eb",
    ),
    "Spanish": DatasetSpec(
        folder="sword-text-sparv",
        sha256={
            "nt.bzs": "b88dda1e9ab50d158262ab141af7823269acb19c581621683298be5b6e154d58",
            "nt.bzv": "a9583ba1b4c66dfdd8bfb6a0b1833bdaa02f9e2cc3465c5a802cf19cbc2f2533",
            "nt.bzz": "7baf6b1e798b193315fed89d0e84e8e1a033d035316f66c78d456f5fb8c87e20",
            "ot.bzs": "0e39106ae15a29cef56feac683f8482be380536a1c456e006867f9fa94c0338e",
            "ot.bzv": "0f23b1ebff5ecdd352a64feda5bb047cba27ce3624fa7b00717f763835d96e20",
            "ot.bzz": "daae868e179e6cc884ad2c9429a9dfaf9745d61caa6dbb9da2a8b24ec3c01337",
        },
        debian_package="sword-text-sparv",
        debian_folder="/usr/share/sword/modules/texts/ztext/spaRV1909eb",
    ),
}

_CHAPTER = re.compile(r'<chapter [^>]*osisID="([^"]+)"[^>]* sID=')
_NOT_TEXT = re.compile(r"<(note|title)\b.*?</\1>|<[^>]*>|¶", re.DOTALL)


class Verse(NamedTuple):
    """One verse.

    Attributes:
        chapter: Which chapter it is in, such as "Gen.1".
        texts: The verse, by language.
    """

    chapter: str
    texts: Mapping[str, str]


def load(root: Path, specs: Mapping[str, DatasetSpec] = TRANSLATIONS) -> list[Verse]:
    """All verses that each translation has, in order; what is missing in ``root`` or broken is fetched first.

    Raises:
        ExampleError: No source brought the right files. The message says which to put where.
    """
    folders = {language: root.expanduser() / spec.folder for language, spec in specs.items()}
    for language, spec in specs.items():
        make_sure_of(spec, folders[language])
    return [verse for part in ("ot", "nt") for verse in _aligned(folders, part)]


def plain(markup: str) -> str:
    """The words of an entry alone: no notes, titles, tags and paragraph signs."""
    return " ".join(_NOT_TEXT.sub("", markup).split())


def hold_out(verses: Sequence[Verse], every: int) -> tuple[list[Verse], list[Verse]]:
    """The verses to train on, and those of every n-th chapter, which are for testing, in all languages."""
    chapters = list(dict.fromkeys(verse.chapter for verse in verses))
    held = set(chapters[every - 1 :: every])
    return [v for v in verses if v.chapter not in held], [v for v in verses if v.chapter in held]


def _aligned(folders: Mapping[str, Path], part: str) -> list[Verse]:
    entries = {language: read_ztext(folder, part) for language, folder in folders.items()}
    if any(len(one) != len(other) for one, other in pairwise(entries.values())):
        raise ExampleError(f"the translations have {[len(each) for each in entries.values()]} entries and don't align.")
    found, chapter = [], ""
    for markup in zip(*entries.values(), strict=True):
        chapter = next((mark[1] for each in markup if (mark := _CHAPTER.search(each))), chapter)
        texts = dict(zip(entries, map(plain, markup), strict=True))
        if chapter and all(texts.values()):
            found.append(Verse(chapter, texts))
    return found
