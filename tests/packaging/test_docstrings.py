"""The docstrings of what is public: they are there, say what is raised and what each argument is, and show an example."""

import ast
import builtins
import inspect
import re
import sys
import textwrap

import pytest
from torch.autograd import Function

from gradroute import errors
from project import public_names

PUBLIC = {
    f"{module}.{name}": getattr(sys.modules[module], name) for module, names in public_names().items() for name in names
}
DEFINED = {name: value for name, value in PUBLIC.items() if inspect.isclass(value) or inspect.isfunction(value)}


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


def runs(value):
    """The functions that run when it is called."""
    if inspect.isclass(value):
        names = ("forward",) if issubclass(value, Function) else ("__init__", "__post_init__")
        own = [getattr(vars(value).get(name), "__func__", vars(value).get(name)) for name in names]
    else:
        own = [inspect.unwrap(value)]
    # What dataclasses or hypothesis make has no source.
    return [function for function in own if function is not None and function.__code__.co_filename != "<string>"]


def raised(function, cls, seen):
    """The library's errors that a function raises: itself, by functions it calls by name, or by methods of its class."""
    if function in seen:
        return set()
    seen.add(function)
    return raised_in(ast.parse(textwrap.dedent(inspect.getsource(function))), function, cls, seen) & {*errors.__all__}


def raised_in(node, function, cls, seen):
    """The same of a part of the function; without what a ``try`` around it catches and does not raise again."""
    if isinstance(node, ast.Try):
        body = set().union(*(raised_in(child, function, cls, set(seen)) for child in node.body))
        found = {error for error in body if not catches(node, error)}
        children = [*node.handlers, *node.orelse, *node.finalbody]
    else:
        found, children = raised_at(node, function, cls, seen), ast.iter_child_nodes(node)
    return found.union(*(raised_in(child, function, cls, seen) for child in children))


def catches(node, error):
    def names(kinds):
        return {kind.id for kind in getattr(kinds, "elts", [kinds]) if isinstance(kind, ast.Name)}

    bases = {base.__name__ for base in getattr(errors, error).__mro__} if hasattr(errors, error) else {error}
    return any(
        names(handler.type) & bases
        and not any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(handler))
        for handler in node.handlers
    )


def raised_at(node, function, cls, seen):
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
        return {node.exc.func.id}
    called, of = None, cls
    match node:
        case ast.Call(func=ast.Name(name)):
            called = function.__globals__.get(name)
            of = called if inspect.isclass(called) else None
        case ast.Call(func=ast.Attribute(ast.Name("self" | "cls"), name)):
            called = getattr(getattr(cls, name, None), "__func__", getattr(cls, name, None))
    if getattr(called, "__module__", "").startswith("gradroute.") and not is_exception(called):
        return set().union(*(raised(inner, of, seen) for inner in runs(called)))
    return set()


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
    owner = value if inspect.isclass(value) else WITH_MEMBERS.get(name.rpartition(".")[0])
    known = set() if is_exception(value) else set().union(*(raised(function, owner, set()) for function in runs(value)))
    # A base class that is named stands for its subclasses.
    unsaid = {error for error in known if not {base.__name__ for base in getattr(errors, error).__mro__} & {*says}}
    assert unsaid == set(), "it raises what its docstring does not say"
    given = section(value, "Args")
    if given is not None:
        parameters = inspect.signature(value).parameters.values()
        stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        assert given == [stars.get(p.kind, "") + p.name for p in parameters if p.name not in ("self", "cls", "_")]


@pytest.mark.parametrize("name", [name for name, value in DEFINED.items() if not is_exception(value)])
def test_an_example_shows_its_use(name):
    assert section(DEFINED[name], "Examples") is not None
