"""Files that are either whole or absent: written under another name first, then renamed."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import ExampleError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, since some writers choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Raise an ExampleError that names the file where it is absent or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExampleError(f"{path} is missing. Train again with --fresh.") from error
    except ValueError as error:
        raise ExampleError(f"{path} is not valid JSON ({error}). Delete it, or train again with --fresh.") from error


def fill_page(template: Path, data: Any, path: Path) -> None:
    """Write a page of HTML with the data in the place of the template's ``/* DATA */``."""
    content = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no text in it ends the script
    write_text(path, template.read_text(encoding="utf-8").replace("/* DATA */", content))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
