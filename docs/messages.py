"""A hook of mkdocs: ``<!-- messages: LabelError -->`` becomes all messages of that class, from the source."""

import ast
import html
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "gradroute"
PLACE = re.compile(r"<!-- messages: (\w+) -->")


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with lists of messages in their places."""
    return PLACE.sub(lambda place: as_list(place[1]), markdown)


def as_list(kind: str) -> str:
    """The messages of an error class as a list in HTML, each once."""
    items = "".join(
        f"<li>{html.escape(text)}</li>" for text in dict.fromkeys(messages(kind))
    )
    return f'<ul class="messages">{items}</ul>'


def messages(kind: str) -> Iterator[str]:
    """The messages of an error class, in the order of files and lines; what is filled in stands in angle brackets."""
    for path in sorted(SOURCE.rglob("*.py")):
        for call in _calls(path.read_text(encoding="utf-8")):
            yield from _message(call, kind)


@cache
def _calls(source: str) -> list[ast.Call]:
    """All calls in a file, in the order of lines; the classes of errors are many, and the files the same for all."""
    calls = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)
    ]
    return sorted(calls, key=lambda call: call.lineno)


def _message(call: ast.Call, kind: str) -> Iterator[str]:
    function, arguments = call.func, call.args
    if (
        isinstance(function, ast.Attribute)
        and function.attr == "warn"
        and len(arguments) > 1
    ):
        message, category = arguments[:2]
        function, arguments = category, [message]
    if isinstance(function, ast.Name) and function.id == kind and arguments:
        text = _template(arguments[0])
        if (
            " " in re.sub("⟨[^⟩]*⟩", "", text).strip()
        ):  # not one that only passes another's message on
            yield text


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return (
            _template(node.value)
            if isinstance(node.value, ast.Constant)
            else f"⟨{_name(node.value)}⟩"
        )
    return f"⟨{_name(node)}⟩"


def _name(node: ast.expr) -> str:
    """A word for what is filled in: the name or attribute, or the first that an expression has."""
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_")
    names = [
        part.id
        for part in ast.walk(node)
        if isinstance(part, ast.Name) and part.id != "self"
    ]
    names += [
        part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)
    ]
    return names[0].strip("_") if names else "…"
