"""The page: a folder of static files that any web server can serve, under any path, without a network beyond it."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import ExampleError
from common.files import read_json, replacing, write_json
from mnist_vae.page.export import SAMPLE_FILES
from mnist_vae.page.layers import describe
from mnist_vae.page.vendor import runtime_files
from mnist_vae.run import Run

HERE = Path(__file__).resolve().parents[1]
WEB = HERE / "page" / "web"
#: The exported models that come with the example, and the test digits.
PRETRAINED = HERE / "pretrained"
#: Routed dimensions of a model above those of its unrouted twin: what is shown of the page where somebody links to it.
PREVIEW = HERE.parents[1] / "docs" / "assets" / "mnist_vae" / "routed_or_not.png"
#: What the page loads of an export.
LOADED = ("model.safetensors", "metrics.json")


@dataclass(frozen=True)
class Shown:
    """A model on the page: an export, and what its switch says."""

    name: str
    title: str
    export: Path


#: The first is what the page opens with.
PUBLISHED = (
    Shown("wide", "Digit and style", PRETRAINED / "wide"),
    Shown("ten", "Ten numbers", PRETRAINED / "ten"),
    Shown("unrouted", "Not routed", PRETRAINED / "unrouted"),
)


def build_page(models: Sequence[Shown], folder: Path, root: Path, links: dict[str, str] | None = None) -> Path:
    """Write the page of exported models into ``folder``, and return its ``index.html``.

    Args:
        models: What the switch offers.
        folder: Created if need be; files of an earlier page in it are replaced.
        root: The data folder, where the runtime is kept.
        links: Addresses to lead to, under their names, beside those that always stand there.

    Raises:
        ExampleError: A model is none that the page can show, or something is missing.
    """
    files = {path.relative_to(WEB): path for path in sorted(WEB.rglob("*")) if path.is_file()}
    files |= {Path("samples", name): PRETRAINED / name for name in SAMPLE_FILES} | {Path("preview.png"): PREVIEW}
    for model in models:
        _check(model.export)
        files |= {Path("models", model.name, name): model.export / name for name in LOADED}
        write_json(_made(folder / "models" / model.name) / "model.json", describe(Run(model.export).load_model()))
    files |= {Path("vendor", path.name): path for path in runtime_files(root)}
    for name, path in files.items():
        with replacing(_made(folder / name.parent) / name.name) as temporary:
            shutil.copyfile(path, temporary)
    shown = [{"folder": f"models/{model.name}", "name": model.name, "title": model.title} for model in models]
    write_json(folder / "models.json", {"models": shown, "links": links or {}})
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"page: wrote {folder}, {size:.1f} MB of static files")
    return folder / "index.html"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _check(export: Path) -> None:
    missing = [name for name in LOADED if not (export / name).is_file()]
    if missing:
        raise ExampleError(f"{export} lacks {', '.join(missing)}. Make it anew with `export`.")
    dataset = read_json(export / "metrics.json")["dataset"]
    if dataset != "mnist":
        raise ExampleError(f"the page is about the digits of MNIST; this model is of {dataset}.")
