"""The reference: every public name is in it once, and every class of errors with its messages."""

import importlib
import inspect
import re

import pytest

import gradroute
from docs.pages import SOURCES
from gradroute import errors
from project import public_names

#: What belongs to a value and not to a class or function, so that its page says it in words.
CONSTANTS = {f"{module}.{name}" for module in ("gradroute", "gradroute.spec") for name in ("UNLABELED", "UNTAUGHT")}
#: A place for mkdocstrings, and the members that are shown if it is a module.
PLACE = re.compile(r"^::: (\S+)\n((?:    .*\n?)*)", re.M)


def resolve(name: str) -> object:
    """What a name stands for. Where a module and what it exports have one name, what is exported."""
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute, None)
    return importlib.import_module(name) if found is None else found


def documented() -> list[object]:
    found: list[object] = []
    for page in SOURCES:
        for name, options in PLACE.findall(page.read_text(encoding="utf-8")):
            members = re.search(r"members: \[(.*?)\]", options)
            inside = members[1].split(", ") if members else []
            found += [resolve(f"{name}.{member}") for member in inside] or [resolve(name)]
    return found


def error_classes() -> list[type]:
    of_module = [value for value in vars(errors).values() if inspect.isclass(value)]
    return [value for value in of_module if issubclass(value, errors.RoutingError | UserWarning)]


ERRORS_PAGE = next(page for page in SOURCES if page.name == "errors.md").read_text(encoding="utf-8")


PUBLIC = [f"{module}.{name}" for module, names in public_names().items() for name in names]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_in_the_reference_once(name: str) -> None:
    if name in CONSTANTS:
        assert any(f"`gradroute.{name.rpartition('.')[2]}`" in page.read_text(encoding="utf-8") for page in SOURCES)
        return
    value = getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2])
    assert [each is value for each in documented()].count(True) == 1


@pytest.mark.parametrize("error", error_classes(), ids=lambda error: error.__name__)
def test_every_class_of_errors_is_documented_with_its_messages(error: type) -> None:
    name = error.__name__
    assert error in documented()
    assert f"<!-- messages: {name} -->" in ERRORS_PAGE


def test_what_is_documented_exists_and_is_found() -> None:
    assert len(documented()) > 20
    assert gradroute.Router in documented()
    with pytest.raises(ModuleNotFoundError):
        resolve("gradroute.surgery.no_such_thing")
