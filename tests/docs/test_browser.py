"""The site in a real browser, at the width of a desk and of a phone, light and dark."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from examples.browser import DESKTOP, PHONE, chromium, served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.mark.parametrize(("device", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_a_page_asks_no_other_machine_complains_of_nothing_and_fits(
    site: Path, browser: Browser, device: dict, scheme: str
) -> None:
    context = browser.new_context(**device, color_scheme=scheme)
    requests, complaints = [], []
    context.on("request", lambda request: requests.append(request.url))
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    names = sorted(path.parent.relative_to(site).as_posix() + "/" for path in site.rglob("index.html"))
    names.remove("demo/")  # has tests of its own
    assert len(names) > 30
    with served(site) as home:
        for name in names:
            page.goto(home + name)
            widths = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
            assert widths[0] <= widths[1], f"{name} is wider than the screen"
        dark = page.evaluate("document.body.getAttribute('data-md-color-scheme')") == "slate"
        context.close()
    assert dark == (scheme == "dark")
    assert requests
    assert not [url for url in requests if not url.startswith((home, "data:", "blob:"))]
    assert not complaints


#: What people call it, and the page that answers.
WORDS = {
    "remove a capability": "how_to/ablate/",
    "check for leaks": "how_to/audit/",
    "freeze rows": "how_to/freeze/",
    "new tokens": "how_to/new_tokens/",
    "mixture of experts": "how_to/experts/",
    "unlearning": "mnist_unlearning/",
    "lora": "how_to/lora/",
    "cite": "",
}


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
