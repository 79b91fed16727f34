"""The page in a real browser, built from the pretrained models."""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import DESKTOP, PHONE, Watched, chromium, miss, served, take
from playwright.sync_api import Browser, BrowserContext, expect
from torch import Tensor, nn

from common import datasets
from common.errors import ExampleError
from common.sources import default_root
from mnist_vae.page.build import PRETRAINED, PUBLISHED, build_page
from mnist_vae.page.layers import describe
from mnist_vae.run import Run
from mnist_vae.study.classifier import load_or_train, predict

pytestmark = pytest.mark.long

Open = Callable[..., Watched]
#: Where screenshots are kept, for who wants to look at them.
SCREENSHOTS = os.environ.get("GRADROUTE_SCREENSHOTS")
SIDE = 28
#: What the page opens with, what its sliders say of a boldly drawn digit, and where they end.
MAIN = PRETRAINED / PUBLISHED[0].name
BOLD, HIGHEST = (describe(Run(MAIN).load_model())[key] for key in ("bold", "highest"))
#: Milliseconds after which something that should happen is taken for lost: much more than a busy machine needs.
PATIENCE = 120_000
expect.set_options(timeout=PATIENCE)
#: Frames go by until the morph has been in three places.
MOVES = """() => new Promise((done) => {
    const places = new Set();
    const look = () => {
        places.add(document.getElementById("blend").value);
        places.size === 3 ? done(places.size) : requestAnimationFrame(look);
    };
    look();
})"""


def circle(x: float, y: float, width: float, height: float, turns: float = 1) -> list[tuple[float, float]]:
    angles = [2 * math.pi * turns * step / 24 for step in range(25)]
    return [(x - width * math.sin(angle), y - height * math.cos(angle)) for angle in angles]


#: Digits as somebody may draw them: strokes of points in parts of the pad's width.
DRAWINGS: dict[int, list[list[tuple[float, float]]]] = {
    0: [circle(0.5, 0.5, 0.19, 0.3)],
    1: [[(0.53, 0.2), (0.48, 0.8)]],
    2: [[(0.33, 0.32), (0.4, 0.22), (0.55, 0.2), (0.64, 0.3), (0.6, 0.45), (0.32, 0.78), (0.5, 0.76), (0.7, 0.78)]],
    3: [
        [(0.34, 0.24), (0.5, 0.19), (0.63, 0.28), (0.6, 0.4), (0.46, 0.47)],
        [(0.46, 0.47), (0.63, 0.54), (0.66, 0.68), (0.54, 0.8), (0.34, 0.76)],
    ],
    4: [[(0.38, 0.22), (0.34, 0.52), (0.66, 0.5)], [(0.64, 0.2), (0.62, 0.82)]],
    5: [[(0.66, 0.2), (0.4, 0.22), (0.37, 0.46), (0.55, 0.44), (0.65, 0.58), (0.58, 0.76), (0.34, 0.78)]],
    6: [[(0.58, 0.2), (0.42, 0.4), (0.37, 0.64), (0.46, 0.79), (0.6, 0.74), (0.62, 0.6), (0.5, 0.55), (0.39, 0.65)]],
    7: [[(0.32, 0.24), (0.68, 0.24), (0.48, 0.8)]],
    8: [circle(0.5, 0.34, 0.12, 0.14), circle(0.5, 0.65, 0.15, 0.17)],
    9: [circle(0.5, 0.36, 0.13, 0.15), [(0.63, 0.34), (0.6, 0.8)]],
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A web root that has the page somewhere below."""
    root = tmp_path_factory.mktemp("site")
    try:
        build_page(PUBLISHED, root / "some" / "where", default_root())
    except ExampleError as error:
        miss(f"it cannot be built: {error}")
    return root


@pytest.fixture(scope="module")
def reader() -> nn.Module:
    """The independent classifier, of the real MNIST."""
    root = default_root()
    return load_or_train(datasets.load("mnist", root).train, root)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with served(site) as address:
        yield address


def unopened(context: BrowserContext, address: str) -> Watched:
    watched = Watched(context.new_page(), context, f"{address}some/where/")
    watched.watch()
    return watched


@pytest.fixture(scope="module")
def contexts(browser: Browser) -> Callable[..., BrowserContext]:
    """A device: one for all pages that are opened on it, until one must be the first."""

    known: dict[str, BrowserContext] = {}

    def on(device: str, *, first_visit: bool) -> BrowserContext:
        if first_visit or device not in known:
            known[device] = browser.new_context(**{"desktop": DESKTOP, "phone": PHONE}[device])
            known[device].set_default_timeout(PATIENCE)
        return known[device]

    return on


@pytest.fixture
def new_page(contexts: Callable[..., BrowserContext], address: str) -> Iterator[Open]:
    """A page not yet opened; at the end, none may have complained of anything."""
    pages = []

    def make(device: str = "desktop", *, first_visit: bool = False) -> Watched:
        pages.append(unopened(contexts(device, first_visit=first_visit), address))
        return pages[-1]

    yield make
    for watched in pages:
        if watched.page.url.startswith(watched.home):
            watched.page.evaluate("localStorage.clear()")
        watched.page.close()
    assert [complaint for watched in pages for complaint in watched.complaints] == []


@pytest.fixture
def fresh(new_page: Open) -> Watched:
    """A page of its own, just opened."""
    watched = new_page()
    watched.open()
    return watched


@pytest.fixture(scope="module")
def pages(contexts: Callable[..., BrowserContext], address: str) -> Callable[[str], Watched]:
    """For each device a page that tests share."""

    @cache
    def on(device: str) -> Watched:
        watched = unopened(contexts(device, first_visit=False), address)
        watched.open()
        assert watched.complaints == []
        return watched

    return on


@pytest.fixture(scope="module")
def shared(pages: Callable[[str], Watched]) -> Watched:
    return pages("desktop")


@pytest.fixture
def opened(request: pytest.FixtureRequest, pages: Callable[[str], Watched]) -> Iterator[Watched]:
    """The page that most tests share, as it is when just opened; at the end, it may not have complained of anything."""
    watched = pages(getattr(request, "param", "desktop"))
    watched.start_over()
    watched.complaints.clear()
    yield watched
    assert watched.complaints == []


ON_A_PHONE = pytest.mark.parametrize("opened", ["phone"], indirect=True)


@dataclass
class Drawn:
    """What the page makes of a drawing: what it says, the pad, what the encoder is given, what is decoded."""

    verdict: str
    pad: Tensor
    seen: Tensor
    decoded: Tensor


@pytest.fixture(scope="module")
def drawn(shared: Watched) -> dict[int, Drawn]:
    """All drawings, each made once."""
    shared.start_over()
    found = {}
    for digit, strokes in DRAWINGS.items():
        shared.page.get_by_role("button", name="Clear").click()
        shared.draw(*strokes)
        found[digit] = Drawn(shared.verdict(), shared.pixels("#pad"), shared.pixels("#seen"), shared.pixels())
    return found


def read(reader: nn.Module, *pictures: Tensor) -> list[int]:
    return predict(reader, torch.stack(pictures).unsqueeze(1)).tolist()


class TestSliders:
    def test_each_draws_its_own_digit(self, opened: Watched, reader: nn.Module) -> None:
        pictures = []
        for digit in range(10):
            opened.page.get_by_role("button", name="Reset").click()
            opened.slide(digit, 0.9 * BOLD)
            pictures.append(opened.pixels())
            assert opened.verdict() == f"Set to a {digit}"
        assert read(reader, *pictures) == list(range(10))

    def test_at_zero_the_page_is_blank(self, opened: Watched) -> None:
        opened.page.get_by_role("button", name="Reset").click()
        assert opened.pixels().max() < 0.06
        assert opened.verdict() == "No digit"

    def test_go_back_to_the_encoding(self, opened: Watched) -> None:
        before = opened.pixels()
        back = opened.page.get_by_role("button", name="Back to encoding")
        expect(back).to_be_disabled()
        opened.slide(3, 0)
        assert not torch.equal(opened.pixels(), before)
        back.click()
        assert torch.equal(opened.pixels(), before)
        assert opened.verdict() == "Read as a 3"
        expect(back).to_be_disabled()

    def test_the_time_of_a_decode_is_measured(self, opened: Watched) -> None:
        """Of this device, which says nothing of others: so no limit is asserted here."""
        for step in range(40):
            opened.slide(5, step / 40 * HIGHEST)
        assert re.fullmatch(r"Decoding takes \d+\.\d ms here \(median\)\.", opened.page.locator("#speed").inner_text())


class TestDrawing:
    @pytest.mark.parametrize("digit", [0, 3, 5])
    def test_with_the_mouse(self, drawn: dict[int, Drawn], opened: Watched, digit: int) -> None:
        """However many frames it takes: the same strokes all at once, as the other tests draw, leave the same ink."""
        opened.draw_with_mouse(*DRAWINGS[digit])
        assert opened.verdict() == drawn[digit].verdict
        for canvas, at_once in (("#pad", drawn[digit].pad), ("#seen", drawn[digit].seen)):
            # The mouse's places go through the browser in single precision.
            torch.testing.assert_close(opened.pixels(canvas), at_once, atol=4 / 255, rtol=0)

    def test_drawings_are_read(self, drawn: dict[int, Drawn], reader: nn.Module) -> None:
        assert read(reader, *(each.seen for each in drawn.values())) == list(drawn), "what is drawn here is readable"
        verdicts = {digit: each.verdict for digit, each in drawn.items()}
        # The model has never seen a mouse's work: one may go wrong.
        assert sum(verdict == f"Read as a {digit}" for digit, verdict in verdicts.items()) >= 9, verdicts
        decoded = read(reader, *(each.decoded for each in drawn.values()))
        assert sum(digit == found for digit, found in zip(drawn, decoded, strict=True)) >= 9

    @ON_A_PHONE
    def test_with_a_finger_does_not_move_the_page(self, opened: Watched) -> None:
        page = opened.page
        page.locator("#pad").scroll_into_view_if_needed()
        before = page.evaluate("scrollY")
        opened.draw_with_finger(*DRAWINGS[1])
        assert opened.verdict() == "Read as a 1"
        assert page.evaluate("scrollY") == before
        expect(page.locator("#caption")).to_have_text("Your drawing")

    def test_with_a_pen(self, opened: Watched) -> None:
        kinds = "addEventListener('pointerdown', event => (window.kind = event.pointerType), true)"
        opened.page.evaluate(kinds)
        opened.draw_with_pen(*DRAWINGS[7])
        assert opened.page.evaluate("window.kind") == "pen"
        assert opened.verdict() == "Read as a 7"

    def test_is_encoded_while_it_is_drawn(self, opened: Watched) -> None:
        mouse, page = opened.page.mouse, opened.page
        page.get_by_role("button", name="Clear").click()
        mouse.move(*opened.on_pad(0.5, 0.2))
        mouse.down()
        seen = []
        for y in (0.4, 0.6, 0.8):
            mouse.move(*opened.on_pad(0.48, y), steps=4)
            expect(page.locator("#caption")).to_have_text("Your drawing")
            opened.settle()
            seen.append([page.locator(f"#rows .mean >> nth={digit}").inner_text() for digit in range(10)])
        mouse.up()
        assert all(all(row) for row in seen), "before the mouse was let go"

    def test_undo_and_clear(self, opened: Watched) -> None:
        page = opened.page
        undo = page.get_by_role("button", name="Undo")
        expect(undo).to_be_disabled()
        opened.draw_with_mouse(*DRAWINGS[1])
        one = opened.pixels()
        opened.draw_with_mouse([(0.2, 0.2), (0.8, 0.2)])
        assert not torch.equal(opened.pixels(), one)
        undo.click()
        assert torch.equal(opened.pixels(), one)
        undo.click()
        expect(undo).to_be_disabled()
        assert opened.pixels("#pad").max() == 0
        assert opened.verdict() == "No digit"
        page.get_by_role("button", name="Random test digit").click()
        page.get_by_role("button", name="Clear").click()
        assert opened.pixels("#pad").max() == 0
        expect(page.locator("#caption")).to_have_text("Nothing drawn yet")

    def test_a_dot_is_no_accident(self, opened: Watched) -> None:
        opened.draw_with_mouse([(0.5, 0.5)])
        assert opened.pixels("#seen").max() == 1
        assert opened.verdict().startswith("Read as a ")

    def test_where_and_how_large_does_not_matter(self, opened: Watched) -> None:
        """A drawing is scaled and centred; only the stroke's width is as it was drawn."""
        verdicts = set()
        for scale, left, top in ((0.45, 0.05, 0.05), (0.45, 0.5, 0.5), (1, 0, 0)):
            opened.page.get_by_role("button", name="Clear").click()
            opened.draw(*[[(left + scale * x, top + scale * y) for x, y in stroke] for stroke in DRAWINGS[7]])
            verdicts.add(opened.verdict())
        assert verdicts == {"Read as a 7"}


def averaging(count: int, length: int) -> Tensor:
    """The matrix that makes ``count`` equal parts of ``length`` pixels, each the mean of what it covers."""
    size = length / count
    start, pixel = torch.arange(count).unsqueeze(1) * size, torch.arange(length)
    return (torch.minimum(start + size, pixel + 1) - torch.maximum(start, pixel)).clamp(min=0) / size


def as_mnist(ink: Tensor) -> Tensor:
    """The rule by which MNIST was made: twenty pixels along the longer side, then the centre of mass in pixel 14."""
    inked = (ink > 0.02).nonzero()
    (top, left), (bottom, right) = inked.min(dim=0).values.tolist(), (inked.max(dim=0).values + 1).tolist()
    box = ink[top:bottom, left:right]
    height, width = [max(1, round(side * 20 / max(box.shape))) for side in box.shape]
    small = averaging(height, box.shape[0]) @ box @ averaging(width, box.shape[1]).T
    image = torch.zeros(SIDE, SIDE)
    place = []
    for axis, side in ((1, small.shape[0]), (0, small.shape[1])):
        centre = (small.sum(dim=axis) * (torch.arange(side) + 0.5)).sum() / small.sum()
        place.append(min(max(math.ceil(14 - centre), 0), SIDE - side))
    image[place[0] : place[0] + small.shape[0], place[1] : place[1] + small.shape[1]] = small
    return image


class TestPreprocessing:
    def test_agrees_with_a_reference_on_the_same_strokes(self, drawn: dict[int, Drawn], opened: Watched) -> None:
        pairs = [(each.seen, each.pad) for each in drawn.values()]
        # Every other one also small and far from the centre.
        for digit in range(0, 10, 2):
            opened.page.get_by_role("button", name="Clear").click()
            opened.draw(*[[(0.02 + 0.4 * x, 0.55 + 0.4 * y) for x, y in stroke] for stroke in DRAWINGS[digit]])
            pairs.append((opened.pixels("#seen"), opened.pixels("#pad")))
        for seen, pad in pairs:
            # The canvas keeps 256 levels, which is half of one off at most; the reference works in floats.
            torch.testing.assert_close(seen, as_mnist(pad), atol=1 / 255, rtol=0)

    #: Of a square image, enlarged by a whole number and with some more space to its left and top.
    NORMALISE = """async ([pixels, side, factor, left, top]) => {
        const { normalise } = await import("./js/preprocess.js");
        const width = left + factor * side;
        const height = top + factor * side;
        const large = new Float32Array(width * height);
        for (let y = top; y < height; y++) {
            for (let x = left; x < width; x++) {
                large[y * width + x] = pixels[Math.floor((y - top) / factor) * side + Math.floor((x - left) / factor)];
            }
        }
        const image = normalise(large, width, height);
        return image && Array.from(image);
    }"""

    def test_mnist_itself_comes_back(self, opened: Watched) -> None:
        """Test digits, ten times as large and off the centre, become what they were."""
        pixels = torch.frombuffer(bytearray((PRETRAINED / "digits.bin").read_bytes()), dtype=torch.uint8)
        differences = []
        for image in pixels.view(-1, SIDE, SIDE)[::5].float() / 255:
            found = opened.page.evaluate(self.NORMALISE, [image.flatten().tolist(), SIDE, 10, 13, 70])
            differences.append((torch.tensor(found).view(SIDE, SIDE) - image).abs().mean().item())
        # Some of MNIST's digits are a pixel off the rule by which it was made.
        assert sorted(differences)[len(differences) // 2] < 0.01, differences
        assert max(differences) < 0.08, differences

    def test_blank_and_full(self, opened: Watched) -> None:
        assert opened.page.evaluate(self.NORMALISE, [[0] * 100, 10, 1, 0, 0]) is None
        full = torch.tensor(opened.page.evaluate(self.NORMALISE, [[1] * 100, 10, 1, 0, 0])).view(SIDE, SIDE)
        assert full[4:24, 4:24].min() == 1
        assert full.sum() == 400


class TestTestDigits:
    def test_random_ones_are_shown_and_read(self, opened: Watched) -> None:
        listed = json.loads((PRETRAINED / "digits.json").read_text())
        pixels = torch.frombuffer(bytearray((PRETRAINED / "digits.bin").read_bytes()), dtype=torch.uint8)
        images = dict(zip(listed["test_index"], pixels.view(-1, SIDE, SIDE), strict=True))
        right = 0
        for _ in range(20):
            opened.page.get_by_role("button", name="Random test digit").click()
            opened.settle()
            said = re.fullmatch(r"Test image (\d+), labelled (\d)", opened.page.locator("#caption").inner_text())
            assert said is not None
            index, label = said.groups()
            right += opened.verdict() == f"Read as a {label}"
            assert torch.equal((opened.pixels("#seen") * 255).round().byte(), images[int(index)])
        assert right >= 18


ENCODE_AND_DECODE = """async ([folder, images]) => {
    const { Engine } = await import("./js/engine.js");
    const engine = await Engine.load(folder);
    return images.map((image) => {
        const code = engine.encode(Float32Array.from(image));
        return [code, engine.decode(code)].map((values) => Array.from(values));
    });
}"""


def samples(count: int) -> Tensor:
    pixels = torch.frombuffer(bytearray((PRETRAINED / "digits.bin").read_bytes()), dtype=torch.uint8)
    return pixels.view(-1, 1, SIDE, SIDE)[:count].float() / 255


class TestModels:
    @pytest.mark.parametrize("shown", PUBLISHED, ids=lambda shown: shown.name)
    def test_the_page_computes_what_pytorch_does(self, opened: Watched, shown: Any) -> None:
        images = samples(20)
        model = Run(shown.export).load_model()
        found = opened.page.evaluate(ENCODE_AND_DECODE, [f"models/{shown.name}", images.flatten(1).tolist()])
        codes, pictures = (torch.tensor(each) for each in zip(*found, strict=True))
        with torch.no_grad():
            torch.testing.assert_close(codes, model.encode_mean(images), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(pictures, model.decode(codes).flatten(1), atol=1e-4, rtol=1e-4)

    def test_the_same_drawing_under_each(self, opened: Watched) -> None:
        opened.page.get_by_role("button", name="Clear").click()
        opened.draw(*DRAWINGS[3])
        pad, pictures, said = opened.pixels("#pad"), [], []
        for shown in PUBLISHED:
            opened.choose(shown.title)
            assert torch.equal(opened.pixels("#pad"), pad)
            pictures.append(opened.pixels())
            said.append(opened.verdict())
        assert said[:2] == ["Read as a 3", "Read as a 3"]
        assert re.fullmatch(r"Number \d is the loudest", said[2]), "which names no digit"
        assert len({tuple(picture.flatten().tolist()) for picture in pictures}) == 3

    def test_what_is_drawn_comes_back_with_styles(self, drawn: dict[int, Drawn], opened: Watched) -> None:
        """Nearer to what the encoder saw than ten numbers alone can say, on nearly all drawings."""
        opened.choose(PUBLISHED[1].title)
        nearer = 0
        for digit, strokes in DRAWINGS.items():
            opened.page.get_by_role("button", name="Clear").click()
            opened.draw(*strokes)
            seen, decoded = drawn[digit].seen, drawn[digit].decoded
            assert torch.equal(opened.pixels("#seen"), seen)
            nearer += (decoded - seen).square().sum() < (opened.pixels() - seen).square().sum()
        assert nearer >= 9

    def test_each_is_described_by_its_own_measures(self, opened: Watched) -> None:
        for shown in PUBLISHED:
            opened.choose(shown.title)
            metrics = json.loads((shown.export / "metrics.json").read_text())
            said = opened.page.locator("#about-model").inner_text()
            assert f"{100 * metrics['argmax_accuracy']:.2f} %" in said
            assert f"squared error {metrics['test_sse']:.1f}" in said

    def test_one_model_alone_has_no_switch(self, new_page: Open) -> None:
        watched = new_page()
        one = {"models": [{"name": "ten", "title": "Your run", "folder": "models/ten"}], "links": {}}
        watched.page.route("**/models.json", lambda route: route.fulfill(json=one))
        page = watched.open()
        expect(page.locator("#models")).to_be_hidden()
        assert watched.verdict() == "Read as a 3"
        expect(page.locator("#style")).to_be_hidden()

    def test_opens_with_few_bytes(self, new_page: Open) -> None:
        """Four seconds at nine megabits: what a server sends unpacked until one can draw."""
        watched, sizes = new_page(first_visit=True), []
        watched.page.on("response", lambda response: sizes.append(len(response.body())))
        watched.open()
        assert 1e6 < sum(sizes) <= 4 * 9e6 / 8, "and it was counted at all"


class TestStyle:
    def test_changes_the_picture_and_not_the_digit(self, opened: Watched, reader: nn.Module) -> None:
        page = opened.page
        page.locator("#style-title").click()
        expect(page.locator("#style-title")).to_have_text("Style of the 3")
        before = opened.pixels()
        page.locator("#s1").fill("2")
        high = opened.pixels()
        page.locator("#s1").fill("-2")
        assert not torch.equal(high, before)
        assert not torch.equal(opened.pixels(), high)
        page.get_by_role("button", name="Back to encoding").click()
        assert torch.equal(opened.pixels(), before)

    def test_small_pictures_show_what_each_does(self, opened: Watched, reader: nn.Module) -> None:
        opened.page.locator("#style-title").click()
        opened.page.locator("#z3").fill(str(BOLD))
        glyphs = opened.page.locator("#style-rows canvas").count()
        script = "[...document.querySelectorAll('#style-rows canvas')].map(c => c.toDataURL())"
        assert len(set(opened.page.evaluate(script))) == glyphs == 16

    def test_of_no_digit_cannot_be_moved(self, opened: Watched) -> None:
        opened.page.get_by_role("button", name="Reset").click()
        opened.page.locator("#style-title").click()
        expect(opened.page.locator("#s1")).to_be_disabled()


class TestLink:
    def test_shows_again_what_was_on_screen(self, opened: Watched, new_page: Open) -> None:
        opened.slide(7, 0.4 * HIGHEST)
        opened.page.locator("#style-title").click()
        opened.page.locator("#s2").fill("1.5")
        opened.page.locator("#share").click()
        expect(opened.page.locator("#share")).to_have_text(re.compile("Copied|address bar"))
        url = opened.page.url
        again = new_page()
        again.open(url=url)
        torch.testing.assert_close(again.pixels(), opened.pixels(), atol=2 / 255, rtol=0)  # two decimals
        assert again.verdict().startswith("Set to a ")
        expect(again.page.locator("#caption")).to_have_text("Numbers from a link")
        opened.page.evaluate("history.replaceState(null, '', location.pathname)")
        expect(opened.page.locator("#share")).to_have_text("Copy a link to this")

    @pytest.mark.parametrize("fragment", ["#", "#model=none&numbers=1:2", "#model=ten&numbers=99:1,x:y,3:nan,,"])
    def test_of_nonsense_does_no_harm(self, new_page: Open, fragment: str) -> None:
        watched = new_page()
        watched.open(url=f"{watched.home}{fragment}")
        assert watched.verdict() in ("Read as a 3", "No digit")


class TestMotion:
    def test_morph_goes_from_one_digit_to_the_other(self, opened: Watched, reader: nn.Module) -> None:
        page = opened.page
        page.get_by_label("From", exact=True).select_option("4")
        page.get_by_label("to", exact=True).select_option("0")
        ends = []
        for part in (0, 1):
            page.locator("#blend").fill(str(part))
            ends += [opened.pixels(), opened.pixels("#morphed")]
        assert read(reader, *ends) == [4, 4, 0, 0]
        page.locator("#blend").fill("0.5")
        middle = opened.page.evaluate("[4, 0].map(digit => document.getElementById('z' + digit).valueAsNumber)")
        assert min(middle) > HIGHEST / 20

    @pytest.mark.parametrize("model", [shown.title for shown in PUBLISHED[:2]])
    def test_morph_does_not_fade(self, opened: Watched, model: str) -> None:
        opened.choose(model)
        for ends in (("3", "8"), ("1", "0"), ("7", "7, another")):
            for select, end in zip(("#from", "#to"), ends, strict=True):
                opened.page.locator(select).select_option(end)
            peaks = []
            for step in range(11):
                opened.page.locator("#blend").fill(str(step / 10))
                peaks.append(opened.pixels("#morphed").max().item())
            assert min(peaks) >= 0.9 * min(peaks[0], peaks[-1]), (ends, peaks)

    def test_morph_takes_a_drawing(self, opened: Watched, reader: nn.Module) -> None:
        opened.page.get_by_role("button", name="Clear").click()
        opened.draw(*DRAWINGS[7])
        opened.page.locator("#from").select_option("your drawing")
        opened.page.locator("#blend").fill("0")
        assert read(reader, opened.pixels("#morphed")) == [7]
        opened.page.locator("#from").select_option("3")

    def test_morph_plays_and_stops(self, opened: Watched) -> None:
        play = opened.page.locator("#play")
        play.click()
        expect(play).to_have_attribute("aria-pressed", "true")
        assert opened.page.evaluate(MOVES) == 3
        play.click()
        expect(play).to_have_text("Play")
        still = opened.pixels()
        opened.page.wait_for_timeout(200)
        assert torch.equal(opened.pixels(), still)

    def test_sweep_goes_through_the_digits_until_something_else_is_done(self, opened: Watched) -> None:
        page = opened.page
        sweep = page.locator("#sweep")
        sweep.click()
        expect(page.locator("#verdict")).to_have_text("Set to a 0")
        expect(page.locator("#verdict")).to_have_text("Set to a 1")
        opened.slide(8, 0.8 * HIGHEST)
        expect(sweep).to_have_attribute("aria-pressed", "false")
        still = opened.pixels()
        page.wait_for_timeout(200)
        assert torch.equal(opened.pixels(), still)

    def test_only_one_thing_moves(self, opened: Watched) -> None:
        opened.page.locator("#sweep").click()
        opened.page.locator("#play").click()
        expect(opened.page.locator("#sweep")).to_have_attribute("aria-pressed", "false")
        expect(opened.page.locator("#play")).to_have_attribute("aria-pressed", "true")

    def test_stills_where_motion_is_unwelcome(self, opened: Watched) -> None:
        page = opened.page
        page.emulate_media(reduced_motion="reduce")
        page.locator("#sweep").click()
        expect(page.locator("#verdict")).to_have_text("Set to a 0")
        values = set()
        for _ in range(8):
            values.add(page.evaluate("Math.max(...[...document.querySelectorAll('#rows input')].map(i => +i.value))"))
            page.wait_for_timeout(50)
        assert len(values) == 1
        assert values.pop() == pytest.approx(0.9 * BOLD)


class TestAccess:
    def test_everything_by_keyboard(self, fresh: Watched) -> None:
        page = fresh.page
        reached = []
        for _ in range(21):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        sliders = [f"z{digit}" for digit in range(10)]
        after = ["style-title", "sweep", "reset", "share", "from"]
        assert reached == ["A", "A", "theme", "INPUT", "random", "clear", *sliders, *after]
        page.locator("#style-title").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "s1"
        page.locator("#choices input").first.focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#choices input").nth(1)).to_be_checked()
        page.keyboard.press("ArrowLeft")
        fresh.settle()
        page.locator("#z7").focus()
        page.keyboard.press("End")
        assert fresh.verdict() == "Set to a 7"
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        value = page.locator("#z7").evaluate("input => input.valueAsNumber")
        assert 0 < value <= HIGHEST / 20, "one press is a small step"

    def test_focus_is_visible(self, opened: Watched) -> None:
        for name in ("random", "from", "theme"):
            opened.page.keyboard.press("Tab")
            opened.page.locator(f"#{name}").focus()
            width = opened.page.locator(f"#{name}").evaluate("element => getComputedStyle(element).outlineWidth")
            assert width == "3px", name

    def test_names_and_values_for_screen_readers(self, opened: Watched) -> None:
        page = opened.page
        for digit in range(10):
            expect(page.get_by_role("slider", name=f"Number {digit}")).to_have_count(1)
        expect(page.get_by_role("slider", name="Number 3")).to_have_attribute(
            "aria-valuetext", re.compile(r"^\d+\.\d$")
        )
        expect(page.get_by_role("img", name="Drawing area")).to_have_count(1)
        expect(page.get_by_role("img", name="Decoded image: Read as a 3")).to_have_count(1)
        expect(page.get_by_role("heading", level=1)).to_have_count(1)
        unnamed = """[...document.querySelectorAll("button, input, select, canvas:not([aria-hidden])")].filter(
            e => !e.closest("[aria-hidden]") && !e.ariaLabel && !e.textContent.trim() && !e.labels?.length)"""
        assert page.evaluate(f"{unnamed}.map(e => e.outerHTML)") == []

    def test_the_digit_is_said_when_it_has_come_to_rest(self, opened: Watched) -> None:
        said = opened.page.get_by_role("status")
        expect(said).to_have_text("Read as a 3")
        # All in one go, so that nothing comes to rest in between, however slow this machine.
        slid = """() => ["0", "1", "2"].concat("5").map((value, step) => {
            const slider = document.getElementById(step ? "z9" : "z3");
            slider.value = value;
            slider.dispatchEvent(new Event("input", { bubbles: true }));
            return document.querySelector("[role=status]").textContent;
        })"""
        assert set(opened.page.evaluate(slid)) == {"Read as a 3"}, "not at each step"
        expect(said).to_have_text("Set to a 9")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_words_stand_out_from_their_ground(self, opened: Watched, scheme: str) -> None:
        page = opened.page
        page.emulate_media(color_scheme=scheme)
        colour = "name => getComputedStyle(document.querySelector(name)).color"
        grounds = [page.evaluate(colour.replace(".color", ".backgroundColor"), name) for name in ("html", ".card")]
        for name in (".lede", "#verdict", "#runner-up", ".numeral", ".largest label", ".mean", "dt"):
            for ground in grounds:
                assert contrast(page.evaluate(colour, name), ground) >= 4.5, (name, ground)


def contrast(first: str, second: str) -> float:
    """The ratio of luminances that the web's accessibility guidelines define."""

    def luminance(colour: str) -> float:
        parts = [float(part) / 255 for part in colour.split("(")[1].rstrip(")").split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


class TestLook:
    @pytest.mark.parametrize("opened", ["desktop", "phone"], indirect=True)
    def test_what_is_drawn_and_morphed_fits(self, opened: Watched, request: pytest.FixtureRequest) -> None:
        page = opened.page
        opened.draw(*DRAWINGS[5])
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.locator("#from").select_option("1")
            page.locator("#to").select_option("7")
            page.locator("#blend").fill("0.6")
            opened.settle()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            if SCREENSHOTS:
                Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
                take(page, Path(SCREENSHOTS) / f"{request.node.callspec.id}-{scheme}.png", full_page=True)

    def test_no_sideways_scrolling_at_any_width(self, opened: Watched) -> None:
        for width in (320, 360, 390, 480, 640, 768, 960, 1024, 1280, 1920):
            opened.page.set_viewport_size({"width": width, "height": 800})
            assert opened.page.evaluate("document.documentElement.scrollWidth") <= width, width

    @ON_A_PHONE
    def test_verdict_and_picture_are_in_view_while_drawing_on_a_phone(self, opened: Watched) -> None:
        page = opened.page
        page.locator("#pad").scroll_into_view_if_needed()
        opened.draw_with_finger(*DRAWINGS[5], steps=3)
        for part in ("#picture", "#verdict", "#numeral"):
            expect(page.locator(part)).to_be_in_viewport(ratio=1)
        expect(page.locator("#pad")).to_be_in_viewport(ratio=0.95)

    @ON_A_PHONE
    def test_the_picture_stays_with_the_sliders_on_a_phone(self, opened: Watched) -> None:
        page = opened.page
        page.locator("#z9").scroll_into_view_if_needed()
        expect(page.locator("#picture")).to_be_in_viewport(ratio=1)

    def test_the_theme_can_be_changed_and_is_kept(self, fresh: Watched) -> None:
        ink = "canvas => getComputedStyle(canvas).color"
        pixel = """canvas => Array.from(canvas.getContext("2d").getImageData(14, 14, 1, 1).data.slice(0, 3))"""
        page = fresh.page
        before = fresh.pixels()
        light = page.locator("#picture").evaluate(ink)
        page.get_by_role("button", name="Dark").click()
        assert page.locator("#picture").evaluate(ink) != light
        assert min(page.locator("#picture").evaluate(pixel)) > 150, "light ink"
        assert torch.equal(fresh.pixels(), before)
        fresh.open()
        expect(page.get_by_role("button", name="Light")).to_be_visible()

    def test_small_print_is_what_was_measured(self, opened: Watched) -> None:
        metrics = json.loads((MAIN / "metrics.json").read_text())
        said = opened.page.locator("#fine").inner_text()
        assert f"{metrics['argmax_accuracy']:.2%}".replace("%", " %") in said
        assert f"recipe {metrics['recipe']}, {metrics['epochs']} epochs, seed {metrics['seed']}" in said
        assert f"{metrics['owned_digits']} of 10" in said
        seen = metrics["slider_seen_as"]
        right = sum(found == digit for digit, row in enumerate(seen) for found in row)
        assert f"{right} of {sum(map(len, seen))} pictures" in said
        assert "unknown" not in said

    def test_what_each_number_says_of_each_digit_is_shown(self, opened: Watched) -> None:
        means = json.loads((MAIN / "metrics.json").read_text())["mean_activation"]
        rows = opened.page.get_by_role("table").locator("tbody tr").all()
        said = [[float(text.replace("\u2212", "-")) for text in row.locator("td").all_inner_texts()] for row in rows]
        assert said == [[abs(round(mean, 1)) if abs(mean) < 0.05 else round(mean, 1) for mean in row] for row in means]
        loud = opened.page.locator(".matrix .loud")
        assert loud.count() == 10, "each digit speaks by its own number"

    def test_small_print_names_what_was_not_measured(self, new_page: Open) -> None:
        watched = new_page()
        metrics = json.loads((MAIN / "metrics.json").read_text())
        fewer = {key: value for key, value in metrics.items() if key != "argmax_accuracy"}
        watched.page.route("**/metrics.json", lambda route: route.fulfill(json=fewer))
        said = watched.open().locator("#fine").inner_text()
        assert "unknown: metrics.json lacks argmax_accuracy" in said
        assert f"{metrics['owned_digits']} of 10" in said


class TestTrouble:
    @pytest.mark.parametrize(
        "name", ["models/wide/model.safetensors", "models/wide/metrics.json", "samples/digits.bin", "models.json"]
    )
    def test_a_missing_file_is_named(self, new_page: Open, name: str) -> None:
        watched = new_page()
        watched.page.route(f"**/{name}", lambda route: route.fulfill(status=404))
        page = watched.open("failed")
        expect(page.get_by_role("alert")).to_contain_text(f"{name} is missing")
        # The browser itself notes the 404, and nothing else may be noted.
        assert all("404" in complaint for complaint in watched.complaints)
        watched.complaints.clear()

    @pytest.mark.parametrize("name", ["js/sliders.js", "vendor/tf-core.min.js"])
    def test_a_missing_script_is_noticed(self, new_page: Open, name: str) -> None:
        watched = new_page()
        watched.page.route(f"**/{name}", lambda route: route.fulfill(status=404))
        page = watched.open("stopped")
        expect(page.get_by_role("alert")).to_contain_text("A part of the page is missing")
        watched.complaints.clear()

    def test_a_model_that_is_none(self, new_page: Open) -> None:
        watched = new_page()
        watched.page.route("**/model.safetensors", lambda route: route.fulfill(body=b"not a model, but long enough"))
        page = watched.open("failed")
        expect(page.get_by_role("alert")).to_contain_text("could not be started")
        watched.complaints.clear()

    def test_metrics_without_the_average_codes(self, new_page: Open) -> None:
        watched = new_page()
        watched.page.route("**/metrics.json", lambda route: route.fulfill(json={}))
        page = watched.open("failed")
        expect(page.get_by_role("alert")).to_contain_text("metrics.json lacks mean_activation")

    def test_opened_as_a_file(self, new_page: Open, site: Path) -> None:
        watched = new_page()
        page = watched.open("stopped", url=(site / "some" / "where" / "index.html").as_uri())
        expect(page.get_by_role("alert")).to_contain_text("must come from a web server")
        watched.complaints.clear()  # the browser's own, about what it does not load

    def test_nothing_can_be_sent_or_loaded_from_elsewhere(self, opened: Watched) -> None:
        blocked = """() => fetch("http://127.0.0.1:9/").then(() => "sent", error => error.name)"""
        assert opened.page.evaluate(blocked) == "TypeError"
        assert any("Content Security Policy" in complaint for complaint in opened.complaints)
        opened.complaints.clear()


@pytest.mark.parametrize("width", [360, 690, 960])
def test_in_a_frame_of_the_documentation(new_page: Open, site: Path, width: int) -> None:
    (site / f"frame{width}.html").write_text(
        f"""<!doctype html><title>docs</title><link rel="icon" href="data:,"><body data-md-color-scheme="slate">
        <iframe src="some/where/" style="width: {width}px; height: 100px"></iframe>"""
    )
    watched = new_page()
    watched.home = watched.home.removesuffix("some/where/")
    page = watched.page
    page.goto(f"{watched.home}frame{width}.html")
    frame = page.frame_locator("iframe")
    expect(frame.locator("html[data-state=ready]")).to_be_attached()
    expect(frame.locator("#verdict")).to_have_text("Read as a 3")
    # No second title, nothing to scroll, and not much higher than a screen.
    expect(frame.locator("h1")).to_be_hidden()
    inner = page.frames[1]
    page.wait_for_function("innerHeight => document.querySelector('iframe').offsetHeight > 400", arg=0)
    inner.wait_for_function("document.documentElement.scrollHeight <= innerHeight + 1")
    height = inner.evaluate("innerHeight")
    assert height <= (800 if width > 640 else 1400), height
    assert inner.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Its theme is that of the page around it, whichever is chosen there.
    scheme = "getComputedStyle(document.documentElement).colorScheme"
    assert inner.evaluate(scheme) == "dark"
    page.evaluate("document.body.dataset.mdColorScheme = 'default'")
    inner.wait_for_function(f"{scheme} === 'light'")
    expect(frame.locator("#theme")).to_be_hidden()


def test_the_built_folder_is_complete_and_its_own(site: Path, tmp_path: Path) -> None:
    folder = site / "some" / "where"
    again = build_page(PUBLISHED, tmp_path / "page", default_root()).parent
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again).as_posix() for path in again.rglob("*") if path.is_file())
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert {"index.html", "vendor/LICENSE", "models/wide/model.safetensors", "models/wide/metrics.json"} <= set(names)
    shutil.rmtree(again)
    page = (folder / "index.html").read_text()
    assert "default-src 'none'" in page
    assert "unsafe-inline" not in page
    # Links lead elsewhere, and nothing is loaded from there.
    assert not re.search(
        r"http(?!-equiv)", re.sub(r'<a href="https://[^"]+" target="_blank" rel="noreferrer">', "", page)
    )
