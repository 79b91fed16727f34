"""The built site: every link leads somewhere, and reading it asks no other machine for anything."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from docs.pages import ROOT, SOURCES, Html

#: Where a style sheet or a script could fetch from: url(...), @import, and a font's or map's full address.
ADDRESS_IN_CSS = re.compile(r"""(?:url\(|@import)\s*["']?(https?:)?//[^)"'\s]+""")


def pages_of(site: Path) -> dict[Path, Html]:
    pages = {path: Html(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 20  # else something is wrong with the build, and what follows tests nothing
    return pages


def target(site: Path, page: Path, address: str) -> Path:
    path = unquote(urlsplit(address).path)
    found = page if not path else (site / path.lstrip("/") if path.startswith("/") else page.parent / path)
    return (found / "index.html" if found.is_dir() else found).resolve()


def is_external(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme in ("mailto", "data", "javascript")


def test_every_internal_link_and_anchor_leads_somewhere(site: Path) -> None:
    pages = {path.resolve(): page for path, page in pages_of(site).items()}
    dead = []
    for path, page in pages.items():
        if path.name == "404.html":  # it is served at any depth, so its links begin at the root of the host
            continue
        for address in [*page.links, *page.fetched]:
            if is_external(address):
                continue
            to, anchor = target(site, path, address), unquote(urlsplit(address).fragment)
            if not to.is_file() or (anchor and to in pages and anchor not in pages[to].places):
                dead.append(f"{path.relative_to(site.resolve())}: {address}")
    assert not dead


def test_nothing_is_fetched_from_another_machine(site: Path) -> None:
    fetched = [address for page in pages_of(site).values() for address in page.fetched if is_external(address)]
    assert not [address for address in fetched if not address.startswith("data:")]
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not ADDRESS_IN_CSS.search(styles)


def test_the_check_for_other_machines_would_see_one() -> None:
    page = Html('<script src="https://cdn.example/x.js"></script><link rel="stylesheet" href="//fonts.example/y.css">')
    assert [is_external(address) for address in page.fetched] == [True, True]
    assert ADDRESS_IN_CSS.search("@import 'https://fonts.example/z.css'")


def test_relative_links_of_the_readme_lead_to_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_every_page_is_in_the_navigation_and_none_is_a_stub(site: Path) -> None:
    home = Html((site / "index.html").read_text(encoding="utf-8"))
    linked = {target(site, site / "index.html", link) for link in home.links if not is_external(link)}
    for source in SOURCES:
        if source.name == "README.md":
            continue
        built = site / source.relative_to(ROOT / "docs").with_suffix("")
        built = built.parent if built.name == "index" else built
        assert (built / "index.html").resolve() in linked, source
        prose = re.sub(r"<[^>]+>", " ", (built / "index.html").read_text(encoding="utf-8").split("<article")[1])
        assert len(prose.split()) > 100, source
