"""The reference: every public name is in it once, and every class of errors with its messages."""

import importlib
import inspect
import pkgutil
import re
from collections import Counter

import pytest

import gradroute
from docs.pages import SOURCES
from gradroute import errors

#: What belongs to a value and not to a class or function, so that its page says it in words.
CONSTANTS = {"gradroute.UNLABELED"}
DOCUMENTED = Counter(name for page in SOURCES for name in re.findall(r"^::: (\S+)", page.read_text("utf-8"), re.M))


def public_names() -> list[str]:
    """Of gradroute itself, and of its modules that say by ``__all__`` what of them is public."""
    names = [f"gradroute.{name}" for name in gradroute.__all__]
    for found in pkgutil.iter_modules(gradroute.__path__):
        if not found.name.startswith("_"):
            module = importlib.import_module(f"gradroute.{found.name}")
            names += [f"gradroute.{found.name}.{name}" for name in getattr(module, "__all__", ())]
    return names


def error_classes() -> list[type]:
    of_module = [value for value in vars(errors).values() if inspect.isclass(value)]
    return [value for value in of_module if issubclass(value, errors.RoutingError | errors.UnroutedWarning)]


ERRORS_PAGE = next(page for page in SOURCES if page.name == "errors.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_is_in_the_reference_once(name: str) -> None:
    if name in CONSTANTS:
        assert any(f"`{name}`" in page.read_text(encoding="utf-8") for page in SOURCES)
        return
    kind = name.rpartition(".")[2]
    if kind in {value.__name__ for value in error_classes()}:
        assert kind in ERRORS_PAGE
        return
    assert DOCUMENTED[name] == 1


@pytest.mark.parametrize("error", error_classes(), ids=lambda error: error.__name__)
def test_every_class_of_errors_is_documented_with_its_messages(error: type) -> None:
    assert re.search(rf"members: \[[^\]]*\b{error.__name__}\b", ERRORS_PAGE)
    assert f"<!-- messages: {error.__name__} -->" in ERRORS_PAGE


def test_every_documented_name_exists() -> None:
    for name in DOCUMENTED:
        module, _, attribute = name.rpartition(".")
        if name == "gradroute.errors":
            continue
        assert hasattr(importlib.import_module(module), attribute), name
