"""The Markdown and HTML of the documentation, as the tests read them."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: Written by hand: README and the pages, but not what tests and benchmarks write into docs/assets.
SOURCES = sorted([ROOT / "README.md", *(page for page in DOCS.rglob("*.md") if "assets" not in page.parts)])
#: What else is written for readers of the repository.
BESIDE = sorted([*ROOT.glob("*.md"), *ROOT.glob("examples/*/*.md")])
#: What a browser fetches when it shows the page, without anybody clicking.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}


@dataclass
class Html(HTMLParser):
    """What a page links to, what it fetches, the places in it that may be linked to, and the names of attributes."""

    text: str
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    places: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.attributes |= given.keys()
        self.places |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in FETCHED and FETCHED[tag] in given:
            self.fetched.append(given[FETCHED[tag]])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect", "modulepreload"):
            self.fetched.append(given["href"])


def docstrings(path: Path) -> Iterator[str]:
    """Those of a module and of all that it defines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
