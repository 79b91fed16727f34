"""`python -m gradroute` tells a place where routing works from one where it does not."""

import re
import subprocess
import sys
from functools import partial

import pytest
import torch

from gradroute import Router, __main__, __version__, selfcheck
from gradroute.autograd import _functional as functional
from gradroute.autograd import _functions as functions
from gradroute.router import _hooks as hooks
from gradroute.router import _layer_gradients as own_layers
from gradroute.router import _parameter_level as parameters
from gradroute.router import _site_mask as ways

ALL_LAWS = {law for check in (selfcheck.functional_form, selfcheck.level_activations, selfcheck.level_parameters)
            for law, _ in check(torch.device("cpu"))}  # fmt: skip


def run(capsys, *arguments):
    """The exit code, and the verdicts by law."""
    code = __main__.main(arguments)
    lines = re.findall(r"^  (ok|FAILED|not available|not tried) +(.*)$", capsys.readouterr().out, re.MULTILINE)
    return code, {law: verdict for verdict, law in lines}


def test_it_passes_here_as_a_user_calls_it():
    command = [sys.executable, "-m", "gradroute", "--no-compile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = dict(line.split(maxsplit=1) for line in done.stdout.split("\n\n")[0].splitlines())
    assert facts.keys() == {"gradroute", "torch", "numpy", "python", "platform", "cpu", "threads", "accelerator"}
    assert facts["gradroute"] == __version__
    assert facts["torch"] == torch.__version__
    assert set(re.findall(r"^  ok +(.*)$", done.stdout, re.MULTILINE)) >= ALL_LAWS
    assert "FAILED" not in done.stdout
    assert done.stdout.endswith("Routing works here.\n")


def whole(grad, *_):
    return grad


def doubled(function):
    return lambda *args, **kwargs: 2 * function(*args, **kwargs)


def small_backward(masked):
    """The backward pass for small tensors, with another way to mask."""
    return staticmethod(lambda ctx, grad: (masked(grad, ctx.kept[0]), None, None))


# What is broken, how, and which laws must say so.
BROKEN = {
    "the mask is lost": (
        (functional, "masked_by", whole),
        {
            "route of many: the gradient off the route is exactly 0",
            "route of many: off the route an infinite gradient is exactly 0 too",
            "Router of many: each row learns from the labels of its unit alone",
            "Router of many: upstream learns through the route alone",
        },
    ),
    "the mask is lost where it was looked up": (
        (functional._RouteSmall, "backward", small_backward(whole)),
        {
            "route: the gradient off the route is exactly 0",
            "route: off the route an infinite gradient is exactly 0 too",
            "Router: each row learns from the labels of its unit alone",
            "Router: upstream learns through the route alone",
        },
    ),
    "an inf off the route becomes NaN": (
        (functional, "masked_by", lambda grad, mask, dim: grad * mask.tensor(grad.dtype, grad.device)),
        {"route of many: off the route an infinite gradient is exactly 0 too"},
    ),
    "an inf off the route becomes NaN where the mask was looked up": (
        (functional._RouteSmall, "backward", small_backward(lambda grad, keep: grad * keep)),
        {"route: off the route an infinite gradient is exactly 0 too"},
    ),
    "the gradient is scaled": (
        (functional, "masked_by", doubled(functional.masked_by)),
        {
            "route of many: the gradient on the route is the unrouted one",
            "Router of many: each row learns from the labels of its unit alone",
            "Router of many: upstream learns through the route alone",
        },
    ),
    "the gradient is scaled where the mask was looked up": (
        (functional._RouteSmall, "backward", small_backward(doubled(functions.masked))),
        {
            "route: the gradient on the route is the unrouted one",
            "Router: each row learns from the labels of its unit alone",
            "Router: upstream learns through the route alone",
        },
    ),
    "the output changes": (
        (selfcheck, "route", doubled(selfcheck.route)),
        {"route: the output is bitwise the same", "route of many: the output is bitwise the same"},
    ),
    "a site's output changes": (
        (hooks, "route_mask", doubled(hooks.route_mask)),
        {"Router: the output is bitwise the same", "Router of many: the output is bitwise the same"},
    ),
    "a removed router stays": (
        (Router, "remove", lambda self: None),
        {"Router: once removed, it leaves nothing behind"},
    ),
    "parameters learn from all": (
        (ways, "masked_by", whole),
        {
            "parameters: each row learns from the labels of its unit alone",
            "parameters: each column learns from the labels of its unit alone",
        },
    ),
    "upstream of parameters learns by route": (
        (own_layers._Linear, "grad_input", lambda self, grad, x, weight: 0 * (grad @ weight)),
        {"parameters: upstream learns from all"},
    ),
    "the output at level parameters changes": (
        (parameters.OwnForward, "__call__", doubled(parameters.OwnForward.__call__)),
        {"parameters: the output is bitwise the same"},
    ),
}


@pytest.mark.filterwarnings("ignore::gradroute.UnroutedWarning")  # of a router that was not removed
@pytest.mark.parametrize(("change", "laws"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_on_purpose_exits_with_1(change, laws, monkeypatch, capsys):
    monkeypatch.setattr(*change)
    code, verdicts = run(capsys, "--no-compile")
    assert code == 1
    assert {law for law, verdict in verdicts.items() if verdict == "FAILED"} >= laws


def test_no_law_holds_whatever_is_broken():
    assert set().union(*(laws for _, laws in BROKEN.values())) == ALL_LAWS


def test_what_raises_fails_and_the_report_goes_on(monkeypatch, capsys):
    def refuse(*_, **__):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(selfcheck, "route", refuse)
    code = __main__.main(["--no-compile"])
    out = capsys.readouterr().out
    assert code == 1
    assert "FAILED         functional_form raised:\nTraceback" in out
    assert "RuntimeError: no kernel image" in out
    assert "ok             parameters: upstream learns from all" in out


# ------------------------------------------------------------------ compiled


@pytest.fixture
def _compile_without_a_c_compiler(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.mark.usefixtures("_compile_without_a_c_compiler")
def test_compiled_forms_are_tried_where_they_can_be(capsys):
    code, verdicts = run(capsys)
    assert code == 0
    assert [verdict for law, verdict in verdicts.items() if law.startswith("compiled")] == ["ok"] * 3


@pytest.mark.usefixtures("_compile_without_a_c_compiler")
def test_a_mask_that_only_the_compiler_loses_exits_with_1(monkeypatch, capsys):
    monkeypatch.setattr(functions, "masked", whole)
    code, verdicts = run(capsys)
    assert code == 1
    failed = {law for law, verdict in verdicts.items() if verdict == "FAILED"}
    assert failed == {law for law in verdicts if law.startswith("compiled")}
    assert len(failed) == 3


def test_a_compiler_that_does_not_work_at_all_is_no_failure_of_routing(monkeypatch, capsys):
    def refuse(*_, **__):
        raise RuntimeError("Dynamo is not supported here\nand a long story")

    monkeypatch.setattr(torch, "compile", refuse)
    code, verdicts = run(capsys)
    assert code == 0
    expected = "torch.compile, with or without gradroute: RuntimeError: Dynamo is not supported here"
    assert verdicts[expected] == "not available"
    assert not any(law.startswith("compiled") for law in verdicts)


# ------------------------------------------------------------------ accelerators


def test_an_accelerator_is_named_and_checked_after_the_cpu(monkeypatch, capsys):
    """A stand-in: "meta" holds no numbers, so that whatever reads them raises, and the laws fail there alone."""
    monkeypatch.setattr(selfcheck, "_accelerator", lambda: torch.device("meta"))
    code = __main__.main(["--no-compile"])
    facts, on_cpu, on_accelerator, _ = capsys.readouterr().out.split("\n\n", 3)
    assert code == 1
    assert re.search(r"^accelerator +meta$", facts, re.MULTILINE)
    assert on_cpu.startswith("self-check on cpu")
    assert "FAILED" not in on_cpu
    assert on_accelerator.startswith("self-check on meta")
    assert "FAILED" in on_accelerator
