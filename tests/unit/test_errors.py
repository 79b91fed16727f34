"""The error tree, and the helpers that keep messages short."""

import ast
import builtins
import inspect
from pathlib import Path

import pytest

import gradroute
from gradroute import errors
from gradroute.errors import did_you_mean, preview


def test_whatever_is_raised_can_be_caught_as_one():
    classes = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    assert all(issubclass(kind, errors.RoutingError) for kind in classes)
    assert issubclass(errors.RoutingError, ValueError)
    assert all(inspect.getdoc(getattr(errors, name)) for name in errors.__all__)


#: In which files an error of Python's own is raised, and why it is no `RoutingError`.
OTHERS = {
    "ImportError": {  # a package is missing
        "diagnostics/_heatmaps.py",
        "diagnostics/_linear_probes.py",
        "diagnostics/audit/_periodic.py",
        "testing/_strategies.py",
        "trainers/_lightning.py",
        "trainers/_routed_trainer.py",
    },
    "AttributeError": {  # what Python asks of `__getattr__`
        "__init__.py",
        "testing/__init__.py",
        "trainers/__init__.py",
        "trainers/_label_collator.py",
    },
    "RuntimeError": {"optim/_clipping.py"},  # as torch.nn.utils.clip_grad_norm_ does
    "AssertionError": {"surgery/_verify.py"},  # caught there
    "NotImplementedError": {
        "diagnostics/_reports.py",
        "router/_blocks.py",
        "router/_layer_gradients.py",
    },  # of base classes
}


def test_no_error_of_another_kind_is_raised_but_these():
    source = Path(gradroute.__file__).parent
    found = {}
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            raised = node.exc if isinstance(node, ast.Raise) else None
            name = ast.unparse(raised.func if isinstance(raised, ast.Call) else raised) if raised else ""
            if hasattr(builtins, name):
                found.setdefault(name, set()).add(path.relative_to(source).as_posix())
    assert found == OTHERS


@pytest.mark.parametrize("kind", [errors.LeakError, errors.NotRoutedError])
def test_what_tests_assert_fails_as_an_assertion_does(kind):
    assert issubclass(kind, AssertionError)


@pytest.mark.parametrize("n", [0, 1, 5, 6, 1000])
def test_a_preview_shows_the_first_few_and_counts_the_rest(n):
    limit = 5
    shown = preview(iter(range(n)), limit)
    assert shown.startswith(", ".join(str(number) for number in range(min(n, limit))))
    assert shown.endswith(f"({n - limit} more)") == (n > limit)


def test_a_suggestion_is_one_of_the_known_names_as_it_was_given():
    known = ["retain", 7, ("forget", 1)]
    for name in known:
        assert did_you_mean(str(name), known).startswith(f"Did you mean {name!r}")
    far = did_you_mean("zzzzzzzz", known)
    assert far == f"Known: {preview(known)}."
