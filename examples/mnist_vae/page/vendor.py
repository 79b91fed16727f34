"""ONNX Runtime for the browser: fetched once from npm, checked by SHA-256 each time, copied into the page."""

from pathlib import Path

from common.errors import ExampleError
from common.files import sha256
from common.sources import DatasetSpec, Source, SourceError, fetch_checked, from_npm

#: The build without WebGPU; its second file is the WebAssembly that the first one loads. The package names its licence
#: but does not hold the text, which has to go with every copy: it is in ``web/vendor``.
RUNTIME = DatasetSpec(
    folder="onnxruntime-web-1.30.0",
    sha256={
        "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
        "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    },
    npm_package="onnxruntime-web@1.30.0",
)


def runtime_files(root: Path) -> list[Path]:
    """The runtime's files, kept under ``root`` and fetched there if one is missing or altered.

    Raises:
        ExampleError: npm did not bring the right files. The message says which to put where.
    """
    folder = root.expanduser() / RUNTIME.folder
    if _problems(folder):
        _fetch(folder)
    return [folder / name for name in RUNTIME.sha256]


def _problems(folder: Path) -> dict[str, str]:
    return {
        name: f"it is {'not the expected one' if (folder / name).is_file() else 'missing'}"
        for name, expected in RUNTIME.sha256.items()
        if not (folder / name).is_file() or sha256(folder / name) != expected
    }


def _fetch(folder: Path) -> None:
    try:
        fetch_checked(Source("npm", from_npm), RUNTIME, folder, list(RUNTIME.sha256), _problems)
    except SourceError as error:
        raise ExampleError(_instructions(folder, str(error))) from error
    except OSError as error:
        raise ExampleError(f"cannot write to {folder} ({error}). Give another folder with --data.") from error
    print(f"page: npm: wrote {', '.join(RUNTIME.sha256)} to {folder}")


def _instructions(folder: Path, reason: str) -> str:
    lines = [f"the page needs {RUNTIME.npm_package}, and it could not be fetched: {reason}."]
    lines += [f"To mend it, put these files into {folder} and run again:"]
    lines += [f"  {name}  (SHA-256 {digest})" for name, digest in RUNTIME.sha256.items()]
    lines += [f"They are in package/dist/ of what `npm pack {RUNTIME.npm_package}` downloads."]
    return "\n".join(lines)
