"""What is public is documented: in the reference, and by docstrings that say what is raised and show an example."""

import ast
import builtins
import importlib
import inspect
import re
import sys
import textwrap

import pytest
import yaml
from torch.autograd import Function

from gradroute import errors
from project import MODULES, ROOT, public_names

PUBLIC = {
    f"{module}.{name}": getattr(sys.modules[module], name) for module, names in public_names().items() for name in names
}
DEFINED = {name: value for name, value in PUBLIC.items() if inspect.isclass(value) or inspect.isfunction(value)}


def resolve(dotted):
    """The object of a name such as ``gradroute.optim.Isolation``; None if there is no such object."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        if (module := ".".join(parts[:length])) in MODULES:
            value = importlib.import_module(module)
            for part in parts[length:]:
                value = getattr(value, part, None)
            return value
    return None


def reference():
    """What mkdocstrings is asked to show: dotted names, members of modules included."""
    shown = []
    for page in (ROOT / "docs").rglob("*.md"):
        for name, options in re.findall(
            r"^::: ([\w.]+)\n((?:    .*\n|\n(?=    ))*)", page.read_text() + "\n", re.MULTILINE
        ):
            members = ((yaml.safe_load(textwrap.dedent(options)) or {}).get("options") or {}).get("members")
            if inspect.ismodule(resolve(name)) and members:
                shown += [f"{name}.{member}" for member in members]
            else:
                shown.append(name)
    return shown


def test_every_public_name_is_in_the_reference():
    shown = reference()
    objects = [resolve(name) for name in shown]
    text = "\n".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    missing = {
        name
        for name, value in PUBLIC.items()
        if not (any(value is there for there in objects) if name in DEFINED else f"`{name}`" in text)
    }
    assert missing == set()


def test_the_reference_shows_public_names_only_each_once():
    shown = reference()
    assert [name for name in shown if not any(resolve(name) is value for value in PUBLIC.values())] == []
    assert len({id(resolve(name)) for name in shown}) == len(shown)


# ------------------------------------------------------------------ docstrings


def members(value):
    """The public methods and properties that a class defines itself; of autograd Functions, `apply` is all there is."""
    if not inspect.isclass(value) or issubclass(value, Function):
        return {}
    unwrapped = {
        name: getattr(member, "fget", None) or getattr(member, "__func__", member)
        for name, member in vars(value).items()
        if not name.startswith("_") or name == "__call__"
    }
    return {name: member for name, member in unwrapped.items() if inspect.isfunction(member)}


WITH_MEMBERS = DEFINED | {
    f"{name}.{member}": function for name, value in DEFINED.items() for member, function in members(value).items()
}


def code(value):
    """The functions that run when it is called, as syntax trees."""
    if inspect.isclass(value):
        names = ("forward",) if issubclass(value, Function) else ("__init__", "__post_init__")
        own = [vars(value).get(name) for name in names]
        functions = [getattr(function, "__func__", function) for function in own if function is not None]
        functions = [function for function in functions if function.__code__.co_filename != "<string>"]
    else:
        functions = [inspect.unwrap(value)]
    return [ast.parse(textwrap.dedent(inspect.getsource(function))) for function in functions]


def raised(value):
    """The names of the exceptions that its own code raises."""
    nodes = [node.exc for tree in code(value) for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc]
    return {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def section(value, name):
    """The entries of a section of a Google-style docstring; None if it has no such section."""
    found = re.search(rf"^{name}:\n((?:    .*\n|\n)*)", inspect.getdoc(value) + "\n", re.MULTILINE)
    return None if found is None else re.findall(r"^    (\*{0,2}\w+):", found[1], re.MULTILINE)


def is_exception(value):
    return inspect.isclass(value) and issubclass(value, BaseException)


@pytest.mark.parametrize("name", WITH_MEMBERS)
def test_docstring(name):
    value = WITH_MEMBERS[name]
    text = inspect.getdoc(value)
    assert text, "no docstring"
    says = section(value, "Raises") or []
    for exception in says:
        assert hasattr(errors, exception) or hasattr(builtins, exception), f"there is no {exception}"
    known = {
        name for name in raised(value) if is_exception(getattr(errors, name, None) or getattr(builtins, name, None))
    }
    assert known <= {*says}, "it raises what its docstring does not say"
    given = section(value, "Args")
    if given is not None:
        parameters = inspect.signature(value).parameters.values()
        stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        assert given == [stars.get(p.kind, "") + p.name for p in parameters if p.name not in ("self", "cls", "_")]


@pytest.mark.parametrize("name", [name for name, value in DEFINED.items() if not is_exception(value)])
def test_an_example_shows_its_use(name):
    assert section(DEFINED[name], "Examples") is not None
