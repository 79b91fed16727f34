"""The site in a real browser, at the width of a desk and of a phone, light and dark."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from examples.browser import DESKTOP, PHONE, chromium, served

#: One page of each kind: pictures, wide tables, generated reference, long code.
PAGES = ["", "explanation/levels/", "moving/", "composition/", "benchmarks/", "reference/router/", "how_to/pytorch/"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_page_asks_no_other_machine_complains_of_nothing_and_fits(
    site: Path, browser: Browser, device: dict, scheme: str
) -> None:
    context = browser.new_context(**device, color_scheme=scheme)
    requests, complaints = [], []
    context.on("request", lambda request: requests.append(request.url))
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    with served(site) as home:
        for name in PAGES:
            page.goto(home + name)
            widths = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
            assert widths[0] <= widths[1], f"{name or 'home'} is wider than the screen"
        dark = page.evaluate("document.body.getAttribute('data-md-color-scheme')") == "slate"
        context.close()
    assert dark == (scheme == "dark")
    assert requests
    assert not [url for url in requests if not url.startswith((home, "data:", "blob:"))]
    assert not complaints
