"""A real browser on the built page: what it shows, and that it complains of nothing."""

import base64
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, BrowserContext, Locator, Page, TimeoutError, sync_playwright
from torch import Tensor

from mnist_vae.page.serve import make_server

#: As Debian and others name it. Playwright would download one of its own, which not every network lets through.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # No process and no emulated graphics card for pages that draw in software anyway.
    "--in-process-gpu",
    "--disable-software-rasterizer",
]
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
#: All that a test may change of the page, and see again: numbers, choices, words, what can be pressed, pictures.
STATE = """() => {
    const all = (name, read) => [...document.querySelectorAll(name)].map(read);
    return JSON.stringify([
        all("input, select", (element) => element.value),
        all("button", (element) => [element.textContent, element.disabled, element.ariaPressed]),
        all("#caption, #verdict, #runner-up, #about-model, .value, .mean", (element) => element.textContent),
        all("#choices input", (element) => element.checked),
        all("details", (element) => element.open),
        all("canvas[id]", (element) => element.toDataURL()),
        [innerWidth, innerHeight, scrollX, scrollY, document.activeElement.tagName],
    ]);
}"""
#: The lower part of the page as it was at first, once nothing moves it.
MORPH_AT_FIRST = """([from, to]) => {
    document.getElementById("clear").click();
    const set = (id, value, event) => {
        const element = document.getElementById(id);
        if (element.value !== value) {
            element.value = value;
            element.dispatchEvent(new Event(event, { bubbles: true }));
        }
    };
    set("from", from, "change");
    set("to", to, "change");
    set("blend", "0", "input");
}"""
#: The upper part: clearing forgets what was drawn (and ends all motion), and then chance is made to choose the first image.
SAMPLE_AT_FIRST = """async () => {
    const { test_index: listed } = await (await fetch("samples/digits.json")).json();
    document.getElementById("clear").click();
    document.getElementById("style").open = false;
    const { random } = Math;
    Math.random = () => (listed.indexOf(32) + 0.5) / listed.length;
    document.getElementById("random").click();
    Math.random = random;
    document.activeElement.blur();
    scrollTo(0, 0);
}"""
#: Strokes in places on the screen, all of them before the next frame: so the page reads the whole drawing once.
PUT = """(strokes) => {
    const pad = document.getElementById("pad");
    const send = (type, [clientX, clientY]) => {
        const pressed = type !== "pointerup";
        const button = type === "pointermove" ? -1 : 0;
        const mouse = { pointerId: 1, pointerType: "mouse", isPrimary: true, button, buttons: Number(pressed) };
        pad.dispatchEvent(new PointerEvent(type, { ...mouse, clientX, clientY, bubbles: true, cancelable: true }));
    };
    for (const stroke of strokes) {
        send("pointerdown", stroke[0]);
        stroke.slice(1).forEach((point) => send("pointermove", point));
        send("pointerup", stroke.at(-1));
    }
}"""
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}


def miss(what: str) -> None:
    """Skip what needs something that this machine lacks; in continuous integration (``CI`` is set) that is a failure."""
    text = f"the page is tested in a real browser, and {what}"
    (pytest.fail if os.environ.get("CI") else pytest.skip)(text)


def in_steps(stroke: Sequence[tuple[float, float]], steps: int) -> list[tuple[float, float]]:
    """The stroke with each of its lines cut into equal parts."""
    parts = [step / steps for step in range(1, steps + 1)]
    lines = pairwise(stroke)
    return [stroke[0], *((x + part * (u - x), y + part * (v - y)) for (x, y), (u, v) in lines for part in parts)]


@contextmanager
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        miss("there is no Chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def take(what: Page | Locator, path: Path, **options: Any) -> None:
    """A screenshot for people to look at. Chromium now and then never draws the frame that it waits for: so again."""
    for last in (False, False, True):
        try:
            what.screenshot(path=path, timeout=30_000, **options)
            return
        except TimeoutError:
            if last:
                raise


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the folder, ending in a slash."""
    with make_server(folder) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://localhost:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Watched:
    """A page in a context of its own, with all that it complains of."""

    page: Page
    context: BrowserContext
    home: str
    complaints: list[str] = field(default_factory=list)
    first: str = ""
    size: Any = None

    def watch(self) -> None:
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        self.page.on("console", self._console)
        self.page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"console: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.home, "data:", "blob:", "file:")):
            self.complaints.append(f"a request to {request.url}")

    def open(self, state: str = "ready", url: str | None = None) -> Page:
        self.page.goto(url or self.home)
        self.page.wait_for_selector("html[data-state]", state="attached")
        assert self.page.evaluate("document.documentElement.dataset.state") == state
        return self.page

    def choose(self, model: str) -> None:
        """Another model, by what its switch says."""
        self.page.locator("#choices label", has_text=model).click()
        self.settle()

    def start_over(self) -> None:
        """Bring the open page back to what it showed at first: faster than to load it again, and checked."""
        self.page.emulate_media(color_scheme="null", reduced_motion="null")
        self.size = self.size or self.page.viewport_size
        if self.page.viewport_size != self.size:
            self.page.set_viewport_size(self.size)
        if not self.first:
            self.settle()
            self.first = self.page.evaluate(STATE)
        if self.page.evaluate(STATE) == self.first:
            return
        self.page.locator("#choices input").first.check()
        self.settle()
        self.page.evaluate(MORPH_AT_FIRST, ["3", "8"])
        self.settle()
        self.page.evaluate(SAMPLE_AT_FIRST)
        self.settle()
        assert self.page.evaluate(STATE) == self.first

    def settle(self) -> None:
        """Wait until the picture shows the last of what was asked for."""
        self.page.wait_for_selector("#picture[aria-busy=false]")

    def pixels(self, canvas: str = "#picture") -> Tensor:
        """What a canvas shows, [H, W] in [0, 1]: the opacity of its ink."""
        self.settle()
        script = """canvas => {
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let opacity = "";
            for (let i = 3; i < data.length; i += 4) {
                opacity += String.fromCharCode(data[i]);
            }
            return [canvas.height, canvas.width, btoa(opacity)];
        }"""
        height, width, opacity = self.page.locator(canvas).evaluate(script)
        return torch.frombuffer(bytearray(base64.b64decode(opacity)), dtype=torch.uint8).view(height, width) / 255

    def draw(self, *strokes: Sequence[tuple[float, float]]) -> None:
        """As with a mouse that is faster than the screen; points in parts of the pad's width."""
        self.page.evaluate(PUT, [self.all_on_pad(in_steps(stroke, 2)) for stroke in strokes])
        self._read_drawing()

    def draw_with_mouse(self, *strokes: Sequence[tuple[float, float]]) -> None:
        """Each line in small steps, between which the page encodes and decodes what is there."""
        mouse = self.page.mouse
        for stroke in strokes:
            at = self.all_on_pad(in_steps(stroke, 2))
            mouse.move(*at[0])
            mouse.down()
            for point in at[1:]:
                mouse.move(*point)
            mouse.up()
        self._read_drawing()

    def draw_with_pen(self, *strokes: Sequence[tuple[float, float]]) -> None:
        session = self.context.new_cdp_session(self.page)

        def pen(kind: str, point: tuple[float, float]) -> None:
            x, y = self.on_pad(*point)
            event = {"type": kind, "x": x, "y": y, "pointerType": "pen", "force": 0.5, "button": "left", "buttons": 1}
            session.send("Input.dispatchMouseEvent", {**event, "clickCount": 1})

        for stroke in strokes:
            pen("mousePressed", stroke[0])
            for point in stroke[1:]:
                pen("mouseMoved", point)
            pen("mouseReleased", stroke[-1])
        self._read_drawing()

    def draw_with_finger(self, *strokes: Sequence[tuple[float, float]], steps: int = 10) -> None:
        session = self.context.new_cdp_session(self.page)

        def touch(kind: str, *points: tuple[float, float]) -> None:
            at = [dict(zip("xy", self.on_pad(*point), strict=True)) for point in points]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

        for stroke in strokes:
            touch("touchStart", stroke[0])
            for point in in_steps(stroke, steps)[1:]:
                touch("touchMove", point)
            touch("touchEnd")
        self._read_drawing()

    def on_pad(self, x: float, y: float) -> tuple[float, float]:
        """Where on the screen a place on the pad is, given in parts of the pad's width."""
        return self.all_on_pad([(x, y)])[0]

    def all_on_pad(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        box = self.page.locator("#pad").bounding_box()
        assert box is not None
        return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]

    def _read_drawing(self) -> None:
        # What is drawn is read with the next frame.
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        self.settle()

    def slide(self, digit: int, value: float) -> None:
        self.page.locator(f"#z{digit}").fill(str(value))
        self.settle()

    def verdict(self) -> str:
        self.settle()
        return self.page.locator("#verdict").inner_text()
