"""The page: a folder of static files that any web server can serve, under any path, without a network beyond it."""

import shutil
from pathlib import Path

from common.datasets import DatasetName
from common.errors import ExampleError
from common.files import read_json, replacing
from mnist_vae.model import DIGITS
from mnist_vae.page.export import SAMPLE_FILES
from mnist_vae.page.vendor import runtime_files

HERE = Path(__file__).resolve().parents[1]
WEB = HERE / "page" / "web"
#: The default recipe's export, which comes with the example.
PRETRAINED = HERE / "pretrained"
#: What the page loads of an export; the weights for PyTorch and the config are none of it.
LOADED = ("encoder.onnx", "decoder.onnx", "metrics.json", "model.json", *SAMPLE_FILES)


def build_page(export: Path, folder: Path, root: Path) -> Path:
    """Write the page of an exported model into ``folder``, and return its ``index.html``.

    Args:
        export: What `mnist_vae.page.export.export` has written.
        folder: Created if need be; files of an earlier page in it are replaced.
        root: The data folder, where the runtime is kept.

    Raises:
        ExampleError: The model is none that the page can show, or something is missing.
    """
    _check(export)
    files = {path.relative_to(WEB): path for path in sorted(WEB.rglob("*")) if path.is_file()}
    files |= {Path("model", name): export / name for name in LOADED}
    files |= {Path("vendor", path.name): path for path in runtime_files(root)}
    for name, path in files.items():
        with replacing(folder / name) as temporary:
            shutil.copyfile(path, temporary)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"page: wrote {folder}, {size:.1f} MB of static files")
    return folder / "index.html"


def _check(export: Path) -> None:
    missing = [name for name in LOADED if not (export / name).is_file()]
    if missing:
        raise ExampleError(f"{export} lacks {', '.join(missing)}. Make it anew with `export`.")
    check_showable(read_json(export / "model.json")["units"], read_json(export / "metrics.json")["dataset"])


def check_showable(units: int, dataset: DatasetName) -> None:
    """Raise an ExampleError for a model that the page has no words or sliders for."""
    if units != DIGITS.width:
        raise ExampleError(
            f"the page shows models with one unit per digit; this one has {units} units in all. "
            "`export` writes its ONNX files all the same."
        )
    if dataset != "mnist":
        raise ExampleError(f"the page is about the digits of MNIST; this model is of {dataset}.")
