"""A hook of mkdocs: names that the reference documents become links, and long ones may be broken after a dot.

mkdocstrings links a name only where the module that names it imports it. A docstring also names what a function that
it calls raises, and what else there is to read.
"""

import re
from functools import cache
from pathlib import Path

from mkdocs.structure.pages import Page

REFERENCE = Path(__file__).resolve().parent / "reference"
PLACE = re.compile(r"^::: (\S+)$", re.M)
CODE = re.compile(r"<code>\s*([\w.]+)\s*</code>")
#: Of classes, and of functions that change what they are given. Other names are those of arguments, too.
UNMISTAKABLE = re.compile(r"[A-Z]\w*|\w+_")
#: What has links of its own, is a listing, or names an argument.
ELSEWHERE = re.compile(
    r"<(h[1-6]|pre|a|summary|b|strong)\b.*?</\1>|<autoref\b.*?</autoref>", re.S
)
HEADING = re.compile(r'(<span class="doc doc-object-name[^>]*>)([\w.]+)(</span>)')


def on_page_content(content: str, page: Page, **_: object) -> str:
    """The page with links, for autorefs to lead to their places."""
    if not page.file.src_uri.startswith("reference/"):
        return content
    parts, end = [], 0
    for other in ELSEWHERE.finditer(content):
        parts += [CODE.sub(_link, content[end : other.start()]), other[0]]
        end = other.end()
    parts.append(CODE.sub(_link, content[end:]))
    return HEADING.sub(_breakable, "".join(parts))


def _link(code: re.Match[str]) -> str:
    path = documented().get(code[1])
    if path is None:
        return code[0]
    return f'<code><autoref identifier="{path}" optional hover>{code[1]}</autoref></code>'


def _breakable(heading: re.Match[str]) -> str:
    return f"{heading[1]}{heading[2].replace('.', '.<wbr>')}{heading[3]}"


@cache
def documented() -> dict[str, str]:
    """Full names of what the reference documents, by what a docstring may call it."""
    found = {}
    for page in sorted(REFERENCE.glob("*.md")):
        for path in PLACE.findall(page.read_text(encoding="utf-8")):
            found[path] = path
            name = path.rpartition(".")[2]
            if UNMISTAKABLE.fullmatch(name):
                found[name] = path
    return found
