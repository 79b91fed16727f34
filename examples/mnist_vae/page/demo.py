"""From a trained run, or from the pretrained model, to a page that can be opened."""

from pathlib import Path

import torch

from common import datasets
from common.datasets import Dataset
from mnist_vae.model import SIDE
from mnist_vae.page.build import HERE, PRETRAINED, build_page, check_showable
from mnist_vae.page.export import export
from mnist_vae.page.serve import serve
from mnist_vae.run import Run
from mnist_vae.study.animation import save_sweep
from mnist_vae.study.report import report

#: The pretrained model's, in the documentation.
SWEEP = HERE.parents[1] / "docs" / "assets" / "mnist_vae" / "sweep.gif"


def make_page(run: Run, root: Path, *, pretrained: bool = False) -> Path:
    """Build the page into the run's folder: of its model or, where it has none, of the pretrained one.

    Args:
        run: What to show.
        root: The data folder.
        pretrained: Show the pretrained model in any case.

    Returns:
        The page's folder.
    """
    folder = run.folder / "page"
    if pretrained or not run.config.is_file():
        if not pretrained:
            print(f"demo: {run.folder} holds no run, so this is the model that comes with the example")
        build_page(PRETRAINED, folder, root)
        return folder
    config, model = run.load_config(), run.load_model()
    with torch.no_grad():
        units = model.encode_mean(torch.zeros(1, 1, SIDE, SIDE)).shape[1]
    check_showable(units, config.dataset)
    export(run, datasets.load(config.dataset, root), run.folder / "export")
    save_sweep(model, run.figures / "sweep.gif")
    print(f"demo: wrote {run.figures / 'sweep.gif'}")
    build_page(run.folder / "export", folder, root)
    if run.metrics.is_file():
        print(report(run))
    return folder


def write_pretrained(run: Run, dataset: Dataset) -> None:
    """Export the run as the model that comes with the example, and draw its sweep for README and documentation."""
    export(run, dataset, PRETRAINED)
    save_sweep(Run(PRETRAINED).load_model(), SWEEP)
    print(f"pretrained: wrote {SWEEP}")


def show(folder: Path, port: int, *, serving: bool, browser: bool) -> None:
    """Serve the page, or say how to."""
    if serving:
        serve(folder, port, browser=browser)
    else:
        print(
            f"\nto open the page: python -m http.server --bind 127.0.0.1 --directory {folder} {port}\n"
            f"and then http://localhost:{port}/ in a browser; or put the folder on any web server"
        )
