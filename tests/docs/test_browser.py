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
