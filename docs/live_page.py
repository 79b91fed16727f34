"""A hook of mkdocs: puts the page of the pretrained models into the built site, as ``demo/``."""

import logging
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
#: In its place where it cannot be built: what is missing, in words, and what to do.
ABSENT = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>The live page is not in this build</title>
<p>The live page is not in this build of the documentation: TensorFlow.js could not be fetched from npm for it.
<p>On your own machine, <code>python examples/mnist_vae demo</code> builds and serves it.
</html>
"""


def on_post_build(config: MkDocsConfig) -> None:
    """Build the page; without a network, leave a note in its place rather than failing."""
    # Imported here, since the example's folder is not on the path, and takes seconds to load.
    sys.path.insert(0, str(EXAMPLES))
    from common.errors import ExampleError  # noqa: PLC0415
    from common.sources import default_root  # noqa: PLC0415
    from mnist_vae.page.build import PUBLISHED, build_page  # noqa: PLC0415

    folder = Path(config.site_dir) / "demo"
    try:
        build_page(
            PUBLISHED, folder, default_root(), {"Documentation": "../mnist_vae/"}
        )
    except ExampleError as error:
        # Not a warning, which ends a strict build.
        logging.getLogger("mkdocs.hooks").info(
            "the live page is not in this build: %s", error
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.html").write_text(ABSENT, encoding="utf-8")
