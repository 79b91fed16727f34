"""A hook of mkdocs: runs the code of tutorials, and puts what each block prints and draws below it.

The tests run the same blocks, so that a page whose code fails is found there; here it fails the build.
"""

import contextlib
import io
import re
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

#: Their blocks are run when the site is built, so only pages whose code takes seconds.
TUTORIALS = (
    "first_route.md",
    "mnist_vae.md",
    "mnist_unlearning.md",
    "how_to/audit.md",
    "how_to/labels.md",
    "how_to/models.md",
    "how_to/specs.md",
    "how_to/which_site.md",
)
BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.M | re.S)
DOCTEST = ">>>"
FOLDER = "assets/drawn/"

matplotlib.use("agg")


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """The page with what its blocks print and draw."""
    if page.file.src_uri not in TUTORIALS:
        return markdown
    # As the tests run them.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    namespace: dict[str, object] = {}

    def run(block: re.Match[str]) -> str:
        code = block[1]
        if code.startswith(
            DOCTEST
        ):  # shows what it prints already, and the tests compare it
            code = re.sub(r"^(?!>>> |\.\.\. ).*\n?", "", code, flags=re.M)
            code = re.sub(r"^(>>> |\.\.\. )", "", code, flags=re.M)
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, namespace)
            return block[0]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code, page.file.src_uri, "exec"), namespace)
        printed = f"```text\n{said.getvalue()}```\n" if said.getvalue() else ""
        return f"{block[0]}\n{printed}{_pictures(page, config, files)}"

    return BLOCK.sub(run, markdown)


def _pictures(page: Page, config: MkDocsConfig, files: Files) -> str:
    """The figures that are open, as files of the site."""
    shown = ""
    for number in plt.get_fignums():
        figure = plt.figure(number)
        drawn = [file for file in files if file.src_uri.startswith(FOLDER)]
        name = f"{FOLDER}{Path(page.file.src_uri).stem}-{len(drawn)}.svg"
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
        files.append(File.generated(config, name, content=content.getvalue()))
        shown += f"\n![{figure.get_label()}]({name})\n"
        plt.close(figure)
    return shown
