"""Modules of the SWORD project, which hold a book verse by verse."""

import struct
import zlib
from pathlib import Path


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
