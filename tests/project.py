"""What tests read of the project itself: its files, and the library's public names."""

import importlib
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
_CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = _CONFIGURATION["project"]
#: What `hatch_build.py` is given.
HOOK = _CONFIGURATION["tool"]["hatch"]["metadata"]["hooks"]["custom"]

#: All modules of the library, the package first.
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in (SOURCE / "gradroute").rglob("*.py")
)


def public_names() -> dict[str, tuple[str, ...]]:
    """The names that a module with ``__all__`` exports, by module. A module without one is not public."""
    public = [name for name in MODULES if not any(part.startswith("_") for part in name.split("."))]
    modules = {name: importlib.import_module(name) for name in public}
    return {name: tuple(module.__all__) for name, module in modules.items() if hasattr(module, "__all__")}
