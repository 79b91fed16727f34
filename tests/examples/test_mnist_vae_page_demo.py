import json
import runpy
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import browser
import pytest
from browser import served

from common.errors import ExampleError
from common.sources import DatasetSpec, SourceError, default_root
from mnist_vae.cli import main
from mnist_vae.page import vendor
from mnist_vae.page.build import PRETRAINED, Shown, build_page
from mnist_vae.page.demo import CONFIGS
from mnist_vae.page.serve import make_server
from mnist_vae.page.vendor import RUNTIME, runtime_files
from mnist_vae.run import Run

pytestmark = pytest.mark.long

Arguments = Callable[..., list[str]]
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "mnist_vae"
build_live_page = runpy.run_path(str(ROOT / "docs" / "live_page.py"))["on_post_build"]


@contextmanager
def on_interrupt(handler: Any) -> Iterator[None]:
    """What this process does on SIGINT. One that it starts ignores it if this one does, and takes the default if not."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def fake_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small files in place of the runtime's, which only a browser needs."""
    paths = [tmp_path / "runtime" / name for spec in RUNTIME for name in spec.sha256]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.setattr("mnist_vae.page.build.runtime_files", lambda _: paths)


@pytest.mark.usefixtures("fake_runtime")
class TestDemo:
    def test_of_a_trained_run(
        self, tmp_path: Path, command_line: Arguments, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "run"
        main(["all", *command_line("--out", str(out), "--epochs", "1")])
        capsys.readouterr()
        main(["demo", *command_line("--out", str(out), "--no-serve", "--port", "8123")])
        said = capsys.readouterr().out
        model, sweep = out / "page" / "models" / "run" / "model.safetensors", out / "figures" / "sweep.gif"
        assert model.read_bytes() == (out / "export" / "model.safetensors").read_bytes()
        listed = json.loads((out / "page" / "models.json").read_text())["models"]
        assert [each["name"] for each in listed] == ["run", "unrouted"]
        assert sweep.read_bytes().startswith(b"GIF8")
        assert "argmax accuracy" in said
        assert said.splitlines()[-2].endswith(f"--directory {out / 'page'} 8123")
        assert "http://localhost:8123/" in said.splitlines()[-1]

    def test_without_a_run_is_of_the_pretrained_model(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], command_line: Arguments
    ) -> None:
        main(["demo", *command_line("--out", str(tmp_path / "run"), "--no-serve")])
        assert "holds no run, so these are the models that come with the example" in capsys.readouterr().out
        for name in CONFIGS:
            shown = tmp_path / "run" / "page" / "models" / name / "model.safetensors"
            assert shown.read_bytes() == (PRETRAINED / name / "model.safetensors").read_bytes()

    def test_of_a_run_that_is_not_finished(self, tmp_path: Path, command_line: Arguments) -> None:
        out = tmp_path / "run"
        main(["train", *command_line("--out", str(out), "--epochs", "1")])
        (out / "model.safetensors").unlink()
        with pytest.raises(SystemExit, match=r"^error: .* is not finished"):
            main(["demo", *command_line("--out", str(out), "--no-serve")])

    def test_of_a_model_that_it_cannot_show(self, tmp_path: Path, command_line: Arguments) -> None:
        out = tmp_path / "run"
        main(["train", *command_line("--out", str(out), "--epochs", "1", "--recipe", "wide", "--shared", "2")])
        with pytest.raises(SystemExit, match=r"^error: the page shows models with .* this one has 92 units"):
            main(["demo", *command_line("--out", str(out), "--no-serve")])
        main(["export", *command_line("--out", str(out))])
        assert (out / "export" / "decoder.onnx").is_file()

    def test_of_an_export_that_lacks_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(ExampleError, match=r"lacks model\.safetensors, .*Make it anew with `export`"):
            build_page([Shown("a", "A", tmp_path)], tmp_path / "page", tmp_path)


def test_pretrained_trains_what_is_not_there_and_exports_it(
    tmp_path: Path, command_line: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = {name: replace(config, epochs=1) for name, config in CONFIGS.items()}
    for name, value in {
        "PRETRAINED": tmp_path / "pretrained",
        "CONFIGS": configs,
        "SWEEP": tmp_path / "sweep.gif",
        "PREVIEW": tmp_path / "preview.png",
        "AUDIT": tmp_path / "audit.png",
    }.items():
        monkeypatch.setattr(f"mnist_vae.page.demo.{name}", value)
    main(["pretrained", *command_line("--runs", str(tmp_path / "runs"))])

    def names(folder: Path) -> list[str]:
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    assert names(tmp_path / "pretrained") == names(PRETRAINED)
    for name, config in configs.items():
        assert Run(tmp_path / "pretrained" / name).load_config() == config
    assert (tmp_path / "sweep.gif").read_bytes().startswith(b"GIF8")
    for name in ("preview.png", "audit.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("fake_runtime")
def test_documentation_has_the_page(tmp_path: Path) -> None:
    build_live_page(SimpleNamespace(site_dir=str(tmp_path)))
    assert (tmp_path / "demo" / "models" / "wide" / "model.safetensors").is_file()
    assert "<canvas" in (tmp_path / "demo" / "index.html").read_text()


def test_documentation_without_a_network_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_: Path) -> list[Path]:
        raise ExampleError("npm is not installed")

    monkeypatch.setattr("mnist_vae.page.build.runtime_files", unreachable)
    build_live_page(SimpleNamespace(site_dir=str(tmp_path)))
    assert "not in this build" in (tmp_path / "demo" / "index.html").read_text()


@pytest.mark.parametrize(("variable", "outcome"), [(None, pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_a_missing_browser_is_a_failure_in_continuous_integration_only(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, outcome: type[BaseException]
) -> None:
    monkeypatch.setattr(browser, "CHROMIUM", None)
    monkeypatch.delenv("CI", raising=False)
    if variable:
        monkeypatch.setenv("CI", variable)
    with pytest.raises(outcome, match="apt-get install chromium"), browser.chromium():
        pass


class TestRuntime:
    def test_is_kept_and_checked(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        files = runtime_files(default_root())
        assert [path.name for path in files] == [name for spec in RUNTIME for name in spec.sha256]
        for path in files:
            (tmp_path / path.parent.name).mkdir()
            (tmp_path / path.parent.name / path.name).write_bytes(path.read_bytes())

        def unreachable(_: DatasetSpec, __: Path) -> None:
            raise SourceError("npm is not installed")

        monkeypatch.setattr(vendor, "from_npm", unreachable)
        assert runtime_files(tmp_path) == [tmp_path / path.parent.name / path.name for path in files]
        # One byte more, and it is not taken for the same.
        spec = RUNTIME[0]
        altered = tmp_path / spec.folder / next(iter(spec.sha256))
        altered.write_bytes(altered.read_bytes() + b" ")
        with pytest.raises(ExampleError, match="npm is not installed") as caught:
            runtime_files(tmp_path)
        assert all(f"{name}  (SHA-256 {digest})" in str(caught.value) for name, digest in spec.sha256.items())
        assert str(altered.parent) in str(caught.value)

    def test_what_npm_brings_is_checked(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def poisoned(spec: DatasetSpec, folder: Path) -> None:
            for name in spec.sha256:
                (folder / name).write_bytes(b"something else")

        monkeypatch.setattr(vendor, "from_npm", poisoned)
        with pytest.raises(ExampleError, match="is not the expected one"):
            runtime_files(tmp_path)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


class TestServer:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("a.js", "text/javascript; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.svg", "image/svg+xml"),
        ],
    )
    def test_types_are_those_that_browsers_want(self, tmp_path: Path, name: str, kind: str) -> None:
        (tmp_path / name).write_text("")
        with served(tmp_path) as address:
            assert address.startswith("http://localhost:")
            with urllib.request.urlopen(address + name) as response:
                assert response.headers["Content-Type"] == kind
                assert response.headers["Cache-Control"] == "no-cache"

    def test_a_port_in_use_is_named(self, tmp_path: Path) -> None:
        with make_server(tmp_path) as server:
            port = server.server_address[1]
            with pytest.raises(ExampleError, match=rf"port {port} cannot be used .*--port"):
                make_server(tmp_path, port)

    def test_serves_until_interrupted(self, tmp_path: Path) -> None:
        command = [sys.executable, "-u", EXAMPLE, "demo", "--pretrained", "--out", tmp_path, "--port", "0"]
        # As where the tests themselves run in the background of a shell.
        with on_interrupt(signal.SIG_IGN), on_interrupt(signal.default_int_handler):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with process:
            try:
                assert process.stdout is not None
                line = next(line for line in process.stdout if "page: open " in line)
                address = line.removeprefix("page: open ").strip()
                with urllib.request.urlopen(f"{address}vendor/tf-core.min.js") as response:
                    assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
                process.send_signal(signal.SIGINT)
                assert process.wait(120) == 0
            finally:
                process.kill()  # does nothing to one that has ended
