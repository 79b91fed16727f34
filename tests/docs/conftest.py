"""The documentation built once, without the live page: its parts come from npm, and its own tests are elsewhere."""

import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from docs.pages import ROOT


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site; building fails on a link or an anchor within the Markdown that leads nowhere."""
    folder = tmp_path_factory.mktemp("site")
    hooks = [path for path in load_config(str(ROOT / "mkdocs.yml")).hooks if not re.search("live_page", path)]
    config = load_config(str(ROOT / "mkdocs.yml"), hooks=hooks, site_dir=str(folder))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    config.plugins.on_shutdown()
    (folder / "demo").mkdir()
    (folder / "demo" / "index.html").write_text("<!doctype html><title>the live page</title>")
    return folder
