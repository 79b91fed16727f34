import warnings
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.diagnostics import BypassWarning, PeriodicAudit, lightning_callback, transformers_callback
from gradroute.diagnostics.audit._graph_paths import Kind
from gradroute.errors import UsageError

SPEC = gr.RoutingSpec({0: [0, 1], 1: [2, 3]}, 4)
LABELS = torch.arange(20) % 2
READS = gr.Site(SPEC, on="input", level="parameters")


KINDS = {f"audit/{kind.replace(' ', '_')}" for kind in get_args(Kind)}
LABEL_KEYS = {"audit/label_0", "audit/label_1", "audit/label_unlabeled"}
KEYS = {"audit/leak"} | KINDS | LABEL_KEYS


class Clock:
    """A clock that a step moves by `cost` seconds for each example."""

    now = 0.0
    cost = 0.0


def setup(**options):
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2, bias=False))
    router = gr.Router(model, {"0": SPEC, **options.pop("sites", {})})
    sizes = []

    def step(x):
        Clock.now += Clock.cost
        sizes.append(len(x))
        return model(x).square().mean()

    return PeriodicAudit(router, step, clock=lambda: Clock.now, **options), sizes


@pytest.fixture(autouse=True)
def _clock():
    Clock.now, Clock.cost = 0.0, 0.0


def test_it_audits_every_so_often_on_a_few_examples():
    logged = []
    periodic, sizes = setup(
        every=3, examples=2, log=lambda values, number: logged.append((number, values)), sites={"1": READS}
    )
    reports = [periodic(torch.randn(20, 5), LABELS) for _ in range(7)]
    assert [number for number, report in enumerate(reports) if report is not None] == [0, 3, 6]
    assert [number for number, _ in logged] == [0, 3, 6]
    assert max(sizes) == 4
    assert logged[0][1] == dict.fromkeys(KEYS, 0.0)
    assert periodic.report is reports[6]


def test_it_warns_once_of_each_bypass_with_its_name():
    logged = []
    periodic, _ = setup(every=1, log=lambda values, number: logged.append(values))
    with pytest.warns(BypassWarning, match=r"step 0: .*\n  '1.weight' by a reader"):
        periodic(torch.randn(20, 5), LABELS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        periodic(torch.randn(20, 5), LABELS)
    assert set(logged[0]) == KEYS
    found = {"audit/leak", "audit/reader", "audit/label_0", "audit/label_1"}
    assert {key for key, share in logged[0].items() if share > 0} == found
    assert logged[0]["audit/leak"] == max(logged[0].values()) > 0
    for options in ({"allow": ["reader"]}, {"tolerance": 1.0}):
        quiet, _ = setup(every=1, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            quiet(torch.randn(20, 5), LABELS)


def test_audits_take_no_more_of_the_time_than_they_may():
    periodic, _ = setup(every=1, overhead=0.01, sites={"1": READS})
    Clock.cost = 1.0
    batch = torch.randn(20, 5)
    assert periodic(batch, LABELS) is not None
    first, spent, times = Clock.now, 0.0, []
    for _ in range(2000):
        Clock.now += 1.0  # the training step
        before = Clock.now
        if periodic(batch, LABELS) is not None:
            assert spent <= 0.01 * (before - first)
            times.append(before)
            spent += Clock.now - before
    assert 3 <= len(times) <= 6
    assert spent / len(times) < first / 4  # what belongs to which units is found once


@pytest.mark.parametrize("kind", ["ids", "one label only", "multi-hot"])
def test_each_audit_logs_the_same_keys_whatever_it_finds(kind):
    """A curve with gaps is read as one without a leak."""
    logged = []
    periodic, _ = setup(every=1, overhead=1e9, log=lambda values, number: logged.append(values))
    several = torch.nn.functional.one_hot(LABELS, 2).bool()
    several[0] = True
    labels = {"ids": LABELS, "one label only": torch.zeros_like(LABELS), "multi-hot": several}[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BypassWarning)
        periodic(torch.randn(20, 5), labels)
        periodic(torch.zeros(20, 5), torch.full_like(LABELS, gr.UNLABELED))  # teaches all units: no bypass
    assert [set(values) for values in logged] == [KEYS, KEYS]
    assert logged[0]["audit/reader"] > 0
    assert set(logged[1].values()) == {0.0}


def test_beyond_a_hundred_labels_no_label_has_a_key_of_its_own():
    model = nn.Sequential(nn.Linear(5, 101), nn.Linear(101, 2, bias=False))
    spec = gr.RoutingSpec.one_per_label(101)
    sites = {"0": spec, "1": gr.Site(spec, on="input", level="parameters")}
    periodic = PeriodicAudit(gr.Router(model, sites), lambda x: model(x).square().mean(), every=1)
    periodic(torch.randn(4, 5), torch.tensor([0, 0, 1, 1]))
    assert set(periodic.values) == KEYS - LABEL_KEYS


def test_labels_per_pattern_and_for_the_whole_batch():
    periodic, sizes = setup(every=1, examples=3, allow=["reader"])
    periodic(torch.randn(20, 5), {"0": LABELS})
    assert max(sizes) == 6
    periodic(torch.randn(20, 5), torch.tensor(1))
    assert max(sizes) == 20


def test_loggers_and_callbacks():
    written = []
    writer = SimpleNamespace(add_scalar=lambda *call: written.append(call))
    periodic, _ = setup(every=1, log=writer, allow=["reader"])
    periodic(torch.randn(20, 5), LABELS)
    assert sorted(written) == [(key, 0.0, 0) for key in sorted(KEYS)]
    pytest.importorskip("lightning")
    callback = lightning_callback(periodic, lambda batch: batch)
    logged = []
    callback.on_train_batch_end(None, SimpleNamespace(log_dict=logged.append), None, (torch.randn(20, 5), LABELS), 0)
    assert logged == [dict.fromkeys(KEYS, 0.0)]
    pytest.importorskip("transformers")
    state = SimpleNamespace(log_history=[], global_step=7)
    transformers_callback(periodic, torch.randn(20, 5), LABELS).on_step_end(None, state, None)
    assert state.log_history == [{**dict.fromkeys(KEYS, 0.0), "step": 7}]


def test_wrong_settings_are_refused():
    for options in ({"every": 0}, {"examples": 0}, {"overhead": 0.0}):
        with pytest.raises(UsageError, match="at least 1"):
            setup(**options)
    with pytest.raises(UsageError, match="callable"):
        setup(log=3)
