"""The built site: every link leads somewhere, and reading it asks no other machine for anything; also in a real browser.

All that needs the site is in this file: it takes long to build, and each process of pytest-xdist would build its own.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from playwright.sync_api import Browser, Page, TimeoutError

import gradroute
from docs.pages import BESIDE, ROOT, SOURCES, Html
from examples.browser import DESKTOP, PHONE, chromium, served
from gradroute import errors

pytestmark = pytest.mark.long

#: Where a style sheet or a script could fetch from: url(...), @import, and a font's or map's full address.
ADDRESS_IN_CSS = re.compile(r"""(?:url\(|@import)\s*["']?(https?:)?//[^)"'\s]+""")

#: What people call it, and the page that answers.
WORDS = {
    "remove a capability": "how_to/ablate/",
    "check for leaks": "how_to/audit/",
    "freeze rows": "how_to/freeze/",
    "new tokens": "how_to/new_tokens/",
    "mixture of experts": "how_to/experts/",
    "moe": "how_to/experts/",
    "ddp": "how_to/pytorch/",
    "torch.compile": "how_to/pytorch/",
    "hugging face": "how_to/trainers/",
    "huggingface": "how_to/trainers/",
    "ablate_": "how_to/ablate/",
    "gradroute.optim.Isolation": "reference/optim/",
    "unlearning": "mnist_unlearning/",
    "lora": "how_to/lora/",
    "cite": "",
    "license": "",
}

#: What the search reads, of a site without words.
NOTHING_TO_FIND = {"config": {"lang": ["en"], "separator": "[\\s\\-]+", "pipeline": [], "fields": {}}, "docs": []}


@cache
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


def places(markdown: str) -> set[str]:
    """The anchors that a code host gives to the headings of a file."""
    headings = re.findall(r"^#+ +(.+?) *$", re.sub(r"^```.*?^```", "", markdown, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(path: Path, markdown: str) -> list[str]:
    """The relative links of a file that lead to no file, or to no heading of a Markdown file."""
    dead = []
    for address in re.findall(r"\]\(([^)\s]+)|(?:href|src)=\"([^\"]+)", markdown):
        link = urlsplit("".join(address))
        if is_external("".join(address)):
            continue
        to = path.parent / unquote(link.path) if link.path else path
        text = markdown if to == path else to.read_text(encoding="utf-8") if to.suffix == ".md" and to.is_file() else ""
        if not to.exists() or (link.fragment and link.fragment not in places(text)):
            dead.append("".join(address))
    return dead


@pytest.mark.parametrize("path", BESIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_beside_the_site_lead_to_files_and_headings(path: Path) -> None:
    assert not dead_links(path, path.read_text(encoding="utf-8"))


def test_a_dead_link_beside_the_site_is_seen() -> None:
    assert (ROOT / "README.md") in BESIDE
    text = '# A `b`, c\n[1](docs/index.md) [2](#a-b-c) ![3](no.png) [4](#d) [5](docs/index.md#no) <a href="no.html">'
    assert dead_links(ROOT / "README.md", text) == ["no.png", "#d", "docs/index.md#no", "no.html"]


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


@pytest.mark.parametrize(
    ("page", "shown"),
    [("first_route", "the largest unit names the class of"), ("how_to/audit", "Audit: bypasses:")],
)
def test_a_page_shows_what_its_code_prints(site: Path, page: str, shown: str) -> None:
    assert shown not in re.sub("print.*", "", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
    assert shown in (site / page / "index.html").read_text(encoding="utf-8")


def test_tutorials_show_what_their_code_draws(site: Path) -> None:
    for page in ("first_route", "mnist_unlearning"):
        drawn = [
            name for name in Html((site / page / "index.html").read_text("utf-8")).fetched if "assets/drawn" in name
        ]
        assert drawn, page
        assert all((site / page / name).read_text("utf-8").startswith("<?xml") for name in drawn)


def test_what_a_function_returns_is_one_thing_however_many_lines_say_it(site: Path) -> None:
    """Of a view with silent units, in two lines of the docstring."""
    page = (site / "reference" / "functional" / "index.html").read_text(encoding="utf-8")
    assert "With silent\nunits a tensor of its own." in page


def test_classes_that_docstrings_say_are_raised_are_links(site: Path) -> None:
    """Also where the module that names a class does not import it, as that of ``audit`` does not import LabelError."""
    raised: dict[str, list[bool]] = {}
    for page in (site / "reference").rglob("*.html"):
        for section in re.findall("Raises:</span>.*?</ul>", page.read_text("utf-8"), re.S):
            for code in re.findall(r'field-body">\s*<code>(.*?)</code>', section, re.S):
                raised.setdefault(re.sub("<[^>]+>", "", code).strip(), []).append("<a " in code)
    ours = {name for name in raised if hasattr(errors, name)}
    assert {"LabelError", "SpecError", "UsageError"} <= ours
    assert all(all(raised[name]) for name in ours)
    assert not any(raised["ImportError"])


def test_a_long_name_may_be_broken_after_a_dot(site: Path) -> None:
    page = (site / "reference" / "surgery" / "index.html").read_text(encoding="utf-8")
    assert ">gradroute.<wbr>surgery.<wbr>remove_units_<" in page


def test_attributes_end_where_they_should(site: Path) -> None:
    """A quotation mark inside of one ends it, and the rest of it becomes names of attributes."""
    names = {name for page in pages_of(site).values() for name in page.attributes}
    assert "aria-label" in names
    assert not [name for name in names if not re.fullmatch(r"[\w:.@-]+", name)]
    assert 'retain":' in Html('<svg aria-label="of label "retain": none">').attributes


def test_the_page_of_errors_has_the_messages_that_are_raised(site: Path) -> None:
    """Of each class one message as it is raised, without what is filled in."""
    page = re.sub("⟨[^⟩]*⟩", "⟨⟩", html.unescape((site / "reference" / "errors" / "index.html").read_text("utf-8")))
    spec = gradroute.RoutingSpec.one_per_label(3)
    for raise_it, filled_in in [
        (lambda: gradroute.RoutingSpec({0: 7}, 3), None),
        (lambda: spec.mask(torch.tensor(1j)), "torch.complex64"),
        (lambda: gradroute.Site(spec, on="middle"), "'middle'"),
        (lambda: gradroute.Router(torch.nn.Linear(1, 3), {"": spec}).ablated(), ""),
    ]:
        with pytest.raises(errors.RoutingError) as caught:
            raise_it()
        message = str(caught.value)
        if filled_in is None:
            assert "is outside the width: units are numbered 0 to" in message
            message = "index ⟨⟩ is outside the width: units are numbered 0 to ⟨⟩."
        assert (message.replace(filled_in, "⟨⟩") if filled_in else message) in page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@dataclass
class Visit:
    """A page of the browser, all that it asks for, and all that it complains of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))

    def assert_fits(self, name: str) -> None:
        try:  # what still moves into its place may be wider for a moment
            self.page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")
        except TimeoutError:
            pytest.fail(f"{name} is wider than the screen")

    def assert_quiet(self, home: str, scheme: str) -> None:
        dark = self.page.evaluate("document.body.getAttribute('data-md-color-scheme')") == "slate"
        assert dark == (scheme == "dark")
        assert self.requests
        assert not [url for url in self.requests if not url.startswith((home, "data:", "blob:"))]
        assert not self.complaints


def test_a_page_asks_no_other_machine_complains_of_nothing_and_fits(site: Path, browser: Browser) -> None:
    visit = Visit(browser.new_context(**DESKTOP, color_scheme="light").new_page())
    page = visit.page
    names = sorted(path.parent.relative_to(site).as_posix() + "/" for path in site.rglob("index.html"))
    names.remove("demo/")  # has tests of its own
    assert len(names) > 30
    with served(site) as home:
        for name in names:
            page.set_viewport_size(DESKTOP["viewport"])
            page.goto(home + name)
            if name == names[0]:
                # Each page reads all that can be searched for into an index. It is the same on all of them: once is enough.
                page.wait_for_load_state("networkidle")
                page.route("**/search_index.json", lambda route: route.fulfill(json=NOTHING_TO_FIND))
            visit.assert_fits(f"{name} on a desktop")
            # As wide as a phone: to load each page once more, on a phone, takes much longer.
            page.set_viewport_size(PHONE["viewport"])
            visit.assert_fits(f"{name} on a phone")
        visit.assert_quiet(home, "light")
    page.context.close()


def test_so_do_pages_on_a_phone_in_the_dark(site: Path, browser: Browser) -> None:
    visit = Visit(browser.new_context(**PHONE, color_scheme="dark").new_page())
    with served(site) as home:
        for name in ("", "how_to/pytorch/", "reference/router/"):  # prose, a wide table, signatures
            visit.page.goto(home + name)
            visit.assert_fits(name)
        visit.assert_quiet(home, "dark")
    visit.page.context.close()


def test_the_words_that_people_bring_find_the_page_that_answers(site: Path, browser: Browser) -> None:
    page = browser.new_context(**DESKTOP).new_page()
    with served(site) as home:
        page.goto(home)
        for words, expected in WORDS.items():
            page.locator(".md-search__input").click()
            page.locator(".md-search__input").fill("")
            page.locator(".md-search__input").press_sequentially(words)
            first = page.locator(f'.md-search-result__item >> nth=0 >> a[href="{home}{expected}"]')
            first.first.wait_for(state="attached")
        page.context.close()


def test_the_parts_of_the_documentation_are_seen_without_scrolling(site: Path, browser: Browser) -> None:
    page = browser.new_context(**DESKTOP).new_page()
    with served(site) as home:
        page.goto(home + "first_route/")
        for part in ("Start", "Use it", "Freeze, remove, check", "Understand it", "Reference"):
            assert page.locator(".md-tabs").get_by_text(part, exact=True).is_visible()
        page.context.close()
