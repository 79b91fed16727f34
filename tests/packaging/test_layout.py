"""The tree in CONTRIBUTING.md is the tree of files, imports go down it, nothing goes in a circle, and there is one door."""

import ast
import re

import pytest

from project import ROOT, SOURCE

PACKAGE = SOURCE / "gradroute"


def listed():
    """The entries of the tree, from the uppermost down: ``router/_hooks``, and ``router/`` for a package."""
    tree = re.search(r"```text\ngradroute/\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    found, folders = [], {}
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        path = folders.get(depth - 1, "") + name
        folders[depth] = path
        found.append(path)
    return found


LISTED = listed()
ROOMS = [path.rstrip("/") for path in LISTED if "/" not in path.rstrip("/")]
FILES = sorted(PACKAGE.rglob("*.py"))


def key(path):
    """A file as the tree names it; a package's ``__init__`` as the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "/".join(parts[:-1]) if parts[-1] == "__init__" and len(parts) > 1 else "/".join(parts)


def imported(path):
    """The files of the package that a file imports, wherever in it: at its top, in a function, for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {target(SOURCE, alias.name.split(".")) for alias in node.names if "gradroute" in alias.name}
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("gradroute")):
            folder = path.parents[node.level - 1] if node.level else SOURCE
            parts = node.module.split(".") if node.module else []
            for alias in node.names:  # a module of that name, or else a name in the module
                found.add(target(folder, [*parts, alias.name]) or target(folder, parts))
    return {key(each) for each in found if each is not None} - {key(path)}


def target(folder, parts):
    base = folder.joinpath(*parts)
    if base.with_suffix(".py").is_file():
        return base.with_suffix(".py")
    return base / "__init__.py" if (base / "__init__.py").is_file() else None


IMPORTS = {key(path): imported(path) for path in FILES}


def room(name):
    return name.split("/")[0]


def test_the_tree_is_complete():
    there = {key(path) for path in FILES}
    assert there == {path.rstrip("/") for path in LISTED}
    assert len(LISTED) == len(set(LISTED))


@pytest.mark.parametrize("name", sorted(IMPORTS))
def test_imports_go_down(name):
    below = {*ROOMS[ROOMS.index(room(name)) :]}
    # What is lazily handed on by the package itself is no import of it.
    assert {room(other) for other in IMPORTS[name] if other != "__init__" or name != "selfcheck"} <= below


def test_an_import_in_a_function_is_seen():
    assert "autograd/_dynamo" in IMPORTS["autograd/_functional"]


def test_nothing_goes_in_a_circle():
    done, on_the_way = set(), []

    def visit(name):
        if name in on_the_way:
            raise AssertionError(" -> ".join([*on_the_way[on_the_way.index(name) :], name]))
        if name in done:
            return
        on_the_way.append(name)
        for other in sorted(IMPORTS[name]):
            if other != "__init__":  # of which `selfcheck` reads the version
                visit(other)
        on_the_way.pop()
        done.add(name)

    for name in IMPORTS:
        visit(name)


def private_reads(path):
    """Attributes that begin with an underscore and are not of ``self``, ``cls`` or a module that the file imported."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            yield node, ast.unparse(node)


OUTSIDE_OF_THE_ROUTER = [path for path in FILES if room(key(path)) not in ("router", "spec", "autograd")]
ROUTER = {
    name
    for path in (PACKAGE / "router").rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute | ast.FunctionDef) and (name := getattr(node, "attr", getattr(node, "name", "")))
    if name.startswith("_") and not name.startswith("__")
}


@pytest.mark.parametrize("path", OUTSIDE_OF_THE_ROUTER, ids=key)
def test_a_router_is_read_through_its_inside_door(path):
    """Nobody outside of `router` reads a private name off a router, nor one of the names that its files call private."""
    reads = [
        text
        for node, text in private_reads(path)
        if (node.attr in ROUTER and not re.match(r"(self|cls)\._", text) and not hasattr_of_torch(node.attr))
        or re.search(r"(^|\.)_?(router|attachment)\._", text)
    ]
    assert reads == []


def hasattr_of_torch(name):
    """Names that `torch.nn.Module` has, too: they are read off modules."""
    import torch

    return hasattr(torch.nn.Module(), name)


TORCH_PRIVATE = re.compile(
    r"torch\._[a-z]|torch\.autograd\.forward_ad\._|_current_graph_task|_top_saved_tensors|(?<!self)\._version\b|_functorch\b|_DisableFuncTorch"
    r"|__qualname__|gi_frame|FRAME_COUNTER|_pytree|_DropoutNd|_BatchNorm"
    r"|(?<!self)\._(forward_hooks|forward_pre_hooks|backward_hooks|parameters|buffers|modules|optimizer_step_\w+)\b"
)


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "_torch_private.py"], ids=key)
def test_private_names_of_torch_are_in_one_file(path):
    code = ast.unparse(without_docstrings(ast.parse(path.read_text())))
    found = [line.strip() for line in code.splitlines() if TORCH_PRIVATE.search(line)]
    assert found == []


def without_docstrings(tree):
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value = ast.Constant(value="")
    return tree
