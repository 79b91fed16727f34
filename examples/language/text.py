"""The same verses in two languages: fetched once, checked every time, read out of their SWORD modules."""

import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from common.errors import ExampleError
from common.files import sha256
from common.sources import DatasetSpec, Source, SourceError, fetch_checked, from_folder

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
        _make_sure_of(spec, folders[language])
    return [verse for part in ("ot", "nt") for verse in _aligned(folders, part)]


def read_ztext(folder: Path, part: str) -> list[str]:
    """All entries of one testament of a SWORD zText module: of verses and of headings, with their markup.

    ``.bzs`` has for each block its place in ``.bzz``, its size, and its unpacked size; ``.bzv`` for each entry its
    block, and its place and size there.
    """
    index, verses, packed = ((folder / f"{part}.{suffix}").read_bytes() for suffix in ("bzs", "bzv", "bzz"))
    blocks = [zlib.decompress(packed[start : start + size]) for start, size, _ in struct.iter_unpack("<III", index)]
    return [
        blocks[block][start : start + size].decode() if size else ""
        for block, start, size in struct.iter_unpack("<IIH", verses)
    ]


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


def _make_sure_of(spec: DatasetSpec, folder: Path) -> None:
    problems = _problems(spec, folder)
    reasons = []
    for source in _sources(spec) if problems else ():
        try:
            fetch_checked(source, spec, folder, list(spec.sha256), lambda incoming: _problems(spec, incoming))
        except SourceError as error:
            print(f"data: {source.name}: {error}")
            reasons.append(f"  - {source.name}: {error}")
        except OSError as error:
            raise ExampleError(f"cannot write the data to {folder} ({error}). Give another --data.") from error
        else:
            print(f"data: {source.name}: wrote {', '.join(spec.sha256)} to {folder}")
            return
    if problems:
        files = (f"  {file}  (SHA-256 {digest})" for file, digest in spec.sha256.items())
        mend = f"To mend it, put these files, of {spec.debian_folder} in Debian's {spec.debian_package}, into {folder}:"
        raise ExampleError("\n".join([f"no source has {spec.folder}:", *reasons, mend, *files]))


def _problems(spec: DatasetSpec, folder: Path) -> dict[str, str]:
    """What is wrong with each file that is not as it should be."""
    found = {name: sha256(folder / name) if (folder / name).is_file() else "missing" for name in spec.sha256}
    return {
        name: f"SHA-256 {found[name]} is not {spec.sha256[name]}" for name in found if found[name] != spec.sha256[name]
    }


def _sources(spec: DatasetSpec) -> list[Source]:
    installed = Path(str(spec.debian_folder))
    return [*([from_folder(installed)] if installed.is_dir() else []), Source("apt-get download", _from_apt)]


def _from_apt(spec: DatasetSpec, folder: Path) -> None:
    """Debian's package, unpacked and not installed."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise SourceError("apt-get or dpkg-deb is not installed")
    try:
        _run(["apt-get", "download", str(spec.debian_package)], folder)
        _run(["dpkg-deb", "-x", *(path.name for path in folder.glob("*.deb")), "unpacked"], folder)
    except subprocess.CalledProcessError as error:
        last_line = (error.stderr.strip().splitlines() or ["without a word"])[-1]
        raise SourceError(f"`{' '.join(error.cmd)}` failed ({last_line}); `apt-get update` may help") from error
    except subprocess.TimeoutExpired as error:
        raise SourceError("took more than 5 minutes") from error
    for name in spec.sha256:
        found = folder / "unpacked" / str(spec.debian_folder).lstrip("/") / name
        if found.is_file():
            found.replace(folder / name)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
