"""From a trained run, or from the pretrained models, to a page that can be opened."""

from pathlib import Path

from common import datasets
from common.datasets import Dataset
from common.figures import save
from mnist_vae.config import Config
from mnist_vae.page.build import HERE, PRETRAINED, PREVIEW, PUBLISHED, Shown, build_page
from mnist_vae.page.export import export, write_samples
from mnist_vae.page.layers import describe
from mnist_vae.page.serve import serve
from mnist_vae.run import Run
from mnist_vae.study.animation import save_sweep
from mnist_vae.study.figures import audit_heatmaps, routed_or_not
from mnist_vae.study.leaks import audit
from mnist_vae.study.report import report
from mnist_vae.train import train

#: The pretrained model's with ten numbers, in the documentation.
SWEEP = HERE.parents[1] / "docs" / "assets" / "mnist_vae" / "sweep.gif"
AUDIT = SWEEP.with_name("audit.png")
#: What each of the pretrained models was trained by.
CONFIGS = {
    "wide": Config(recipe="wide", epochs=15),
    "ten": Config(),
    "unrouted": Config(routing=False),
}


def make_page(run: Run, root: Path, *, pretrained: bool = False) -> Path:
    """Build the page into the run's folder: of its model or, where it has none, of the pretrained ones.

    Args:
        run: What to show, beside the unrouted model that comes with the example.
        root: The data folder.
        pretrained: Show the pretrained models in any case.

    Returns:
        The page's folder.
    """
    folder = run.folder / "page"
    if pretrained or not run.config.is_file():
        if not pretrained:
            print(f"demo: {run.folder} holds no run, so these are the models that come with the example")
        build_page(PUBLISHED, folder, root)
        return folder
    config, model = run.load_config(), run.load_model()
    wide = describe(model)["per_slider"] > 1  # which refuses, before anything is measured, what the page cannot show
    export(run, datasets.load(config.dataset, root), run.folder / "export", onnx=False)
    if not wide:
        save_sweep(model, run.figures / "sweep.gif")
        print(f"demo: wrote {run.figures / 'sweep.gif'}")
    build_page([Shown("run", "Your run", run.folder / "export"), PUBLISHED[-1]], folder, root)
    if run.metrics.is_file():
        print(report(run))
    return folder


def write_pretrained(runs: Path, root: Path, *, fresh: bool = False) -> None:
    """Train what is not trained yet, and export it as the models that come with the example.

    Args:
        runs: A folder for the runs, one a model.
        root: The data folder.
        fresh: Train anew.
    """
    dataset = datasets.load("mnist", root)
    for name, config in CONFIGS.items():
        train(config, dataset.train, Run(runs / name), fresh=fresh)
        export(Run(runs / name), dataset, PRETRAINED / name, onnx=name == "ten")
    write_samples(dataset.test, PRETRAINED)
    write_pictures(dataset)


def write_pictures(dataset: Dataset) -> None:
    """Draw what README and documentation show of the pretrained models."""
    models = {name: Run(PRETRAINED / name).load_model() for name in CONFIGS}
    save_sweep(models["ten"], SWEEP)
    save(routed_or_not(models["ten"], models["unrouted"]), PREVIEW)
    save(audit_heatmaps(audit(models["ten"], dataset.train), "MNIST, recipe default, seed 0"), AUDIT)
    print(f"pretrained: wrote {SWEEP}, {PREVIEW} and {AUDIT}")


def show(folder: Path, port: int, *, serving: bool, browser: bool) -> None:
    """Serve the page, or say how to."""
    if serving:
        serve(folder, port, browser=browser)
    else:
        print(
            f"\nto open the page: python -m http.server --bind 127.0.0.1 --directory {folder} {port}\n"
            f"and then http://localhost:{port}/ in a browser; or put the folder on any web server"
        )
