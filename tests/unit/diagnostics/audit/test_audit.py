"""`audit`: where the gradient of each label goes, in numbers; labels and batches of every kind; errors."""

import threading

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute import audit
from gradroute.errors import LabelError, UsageError
from gradroute.router._attachment import attachment_of
from planted import SPEC, N, labels
from unit.diagnostics.clean import SITES, net, step_of

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


def test_gradients_of_units_and_parameters_are_those_of_the_labels_own_examples():
    model = net()
    router = gr.Router(model, SITES)
    x, ids = torch.randn(N, 5), labels()
    report = audit(router, step_of(model), x, ids)
    for number, label in enumerate(report.labels):
        mine = ids == label
        for routed in (True, False):
            model.zero_grad()
            if routed:
                with router(ids[mine]):
                    step_of(model)(x[mine]).backward()
            else:
                attachment_of(router).state.muted = True
                step_of(model)(x[mine]).backward()
            for name, parameter in model.named_parameters():
                measured = report.parameters[name]
                norm = (measured.routed if routed else measured.unrouted)[number]
                assert norm == pytest.approx(float(parameter.grad.double().norm()), rel=1e-5)
            site = report.sites[1]  # the readers' columns
            columns = model[2].weight.grad.norm(dim=0).tolist()
            assert (site.routed if routed else site.unrouted)[number] == pytest.approx(columns, rel=1e-5)
    activations = report.sites[0]
    assert activations.taught == ((True, True, False, False), (False, False, True, True))
    for taught, routed, unrouted in zip(activations.taught, activations.routed, activations.unrouted, strict=True):
        for allowed, on, off in zip(taught, routed, unrouted, strict=True):
            assert on == (pytest.approx(off) if allowed else 0)
            assert off > 0


def test_wrong_steps_and_batches_are_refused():
    model = net()
    router = gr.Router(model, {"0": SPEC})
    x = torch.randn(N, 5)
    with pytest.raises(UsageError, match=r"tensor of shape \(4, 2\)"):
        audit(router, model, x, labels())
    with pytest.raises(UsageError, match="got float"):
        audit(router, lambda x: 1.0, x, labels())
    with pytest.raises(UsageError, match="with a graph"):
        audit(router, lambda x: model(x).sum().detach(), x, labels())
    with pytest.raises(UsageError, match=r"for 8 examples, but the batch holds a tensor of shape \(3,\)"):
        audit(router, lambda batch: model(batch[0]).sum(), (x, torch.ones(3)), labels())
    with pytest.raises(UsageError, match="not finite"):
        audit(router, lambda x: model(x).sum() * torch.inf, x, labels())
    with pytest.raises(UsageError, match="single|collection"):
        audit(router, step_of(model), x, labels(), allow="reader")
    with pytest.raises(LabelError, match="unknown label 6, 7"):
        audit(router, step_of(model), x, labels() + 6)
    with pytest.raises(UsageError, match="holds no example"):
        audit(router, step_of(model), x[:0], labels()[:0])

    def fails(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        audit(router, fails, x, labels())
    assert "4 examples of label 0" in caught.value.__notes__[0]
    router.remove()
    with pytest.raises(UsageError, match="removed"):
        audit(router, step_of(model), x, labels())


def test_another_thread_never_runs_unrouted_because_an_audit_is_on():
    """While an audit looks at unrouted gradients, a pass of another thread would lose its mask without a word."""
    model = nn.Linear(3, 2)
    router = gr.Router(model, {"": gr.RoutingSpec.one_per_label(2)})
    refused = []

    def train():
        try:
            model(torch.ones(2, 3)).sum().backward()
        except UsageError as error:
            refused.append(str(error))

    def step(x):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        return model(x).sum()

    audit(router, step, torch.randn(4, 3), torch.tensor([0, 0, 1, 1]))
    assert len(refused) > 4, "each run, routed or not"
    assert all("another thread" in message for message in refused)


def test_an_audit_is_refused_while_another_thread_is_in_a_block():
    model = nn.Linear(3, 2)
    router = gr.Router(model, {"": gr.RoutingSpec.one_per_label(2)})
    x, ids = torch.ones(1, 3), torch.tensor([0])
    refused = []

    def other():
        try:
            audit(router, lambda x: model(x).sum(), x, ids)
        except UsageError as error:
            refused.append(str(error))

    with router(ids):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        model(x).sum().backward()
    assert "in use in another thread" in refused[0]
    assert model.weight.grad[0].any()
    assert not model.weight.grad[1].any()


def test_units_that_are_off_for_a_label_are_read_by_others_only():
    """Under "retain" labels the block is off, so that nothing reads it; under "forget" labels all is on, as before."""
    quiet = gr.RoutingSpec(SPEC.routes, SPEC.width, shared=SPEC.shared, silent={SPEC.labels[0]: SPEC.labels[1]})
    found = {}
    for spec in (SPEC, quiet):
        torch.manual_seed(0)
        model = net()
        report = audit(gr.Router(model, {"0": spec}), step_of(model), torch.randn(N, 5), labels())
        found[spec] = {(bypass.label, bypass.kind) for bypass in report.bypasses}
        assert report.sites[0].taught == ((True, True, False, False), (False, False, True, True))
        assert report.sites[0].routed[0][2:] == (0, 0)
        assert all(norm > 0 for norm in report.sites[0].unrouted[0])
    first, second = report.labels
    assert (first, "reader") in found[SPEC] - found[quiet]
    assert (second, "reader") in found[SPEC] & found[quiet]
