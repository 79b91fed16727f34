"""A router on a model that somebody else wrote gives the gradients of the oracle, and comes off without a trace."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradroute as gr
from architectures import ARCHITECTURES, BATCH, TIME
from gradroute.testing import assert_routed, label_tensors, specs

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())


def spec_of_width(width):
    """Hard specs over so many units, of which the routes name the first few."""
    return specs(hard=True, max_width=min(width, 16)).map(
        lambda spec: gr.RoutingSpec(
            dict(spec.routes), width, shared=spec.shared, unlabeled=spec.unlabeled, silent=spec.silent_argument
        )
    )


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(a, b):
    assert a.keys() == b.keys()
    for name in a:
        if a[name] is None or b[name] is None:
            # A site right behind the input leaves no path to what only the input feeds: absent and zero are the same.
            assert all(g is None or not g.any() for g in (a[name], b[name])), name
        else:
            torch.testing.assert_close(a[name], b[name], msg=lambda text, name=name: f"{name}: {text}")


@every_architecture
@settings(max_examples=12)
@given(st.data())
def test_router_gives_the_gradients_of_the_oracle_and_the_outputs_of_the_model(architecture, data):
    torch.manual_seed(0)
    model, x = architecture.build(), architecture.inputs()
    spec = data.draw(spec_of_width(architecture.width))
    shape = data.draw(st.sampled_from([(BATCH,), (BATCH, TIME)] if architecture.tokens else [(BATCH,)]))
    batch_labels = data.draw(label_tensors(spec, shape, data.draw(st.sampled_from(["integer", "multi-hot"]))))
    on = data.draw(st.sampled_from(["output", "input"] if architecture.inputs_too else ["output"]))

    index = architecture.index if on == "output" else None
    site = gr.Site(spec, on=on, dim=architecture.dim, index=index)
    assert_routed(model, {architecture.pattern: site}, x, batch_labels, loss=architecture.loss, rtol=1e-5)


@every_architecture
@settings(max_examples=8)
@given(st.data())
def test_a_batch_learns_what_its_examples_learn_one_at_a_time(architecture, data):
    torch.manual_seed(0)
    model, x = architecture.build().double().eval(), architecture.inputs()
    x = x.double() if x.is_floating_point() else x
    model.train(not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()))
    spec = data.draw(spec_of_width(architecture.width))
    batch_labels = data.draw(label_tensors(spec, (BATCH,)))
    router = gr.Router(model, {architecture.pattern: gr.Site(spec, dim=architecture.dim, index=architecture.index)})

    with router(batch_labels):
        architecture.loss(model, x).backward()
    # transformers' loss is a mean over tokens; all others are sums over examples.
    scale = BATCH if "loss" in architecture.loss.__code__.co_names else 1
    together = {name: grad * scale for name, grad in gradients(model).items()}

    model.zero_grad()
    for example in range(BATCH):
        with router(batch_labels[example : example + 1]):
            architecture.loss(model, x[example : example + 1]).backward()
    assert_same_gradients(together, gradients(model))


@every_architecture
def test_removing_the_router_restores_model_hooks_outputs_and_gradients(architecture):
    model, x = architecture.build().eval(), architecture.inputs()
    seen = []
    for name in architecture.modules:
        model.get_submodule(name).register_forward_hook(lambda *args: seen.append("forward hook"))
        model.get_submodule(name).register_forward_pre_hook(lambda *args: seen.append("forward pre-hook"))

    def hooks():
        return [
            (dict(m._forward_hooks), dict(m._forward_pre_hooks), dict(m._forward_hooks_with_kwargs),
             dict(m._forward_pre_hooks_with_kwargs), dict(m._backward_hooks)) for m in model.modules()
        ]  # fmt: skip

    def run():
        model.zero_grad()
        loss = architecture.loss(model, x)
        loss.backward()
        return loss, {name: p.grad.clone() for name, p in model.named_parameters()}

    before, keys, (loss, grads) = hooks(), list(model.state_dict()), run()
    parameters = [id(p) for p in model.parameters()]
    spec = gr.RoutingSpec({0: 0}, architecture.width)
    site = {"dim": architecture.dim, "index": architecture.index}
    routers = [gr.Router(model, {architecture.pattern: gr.Site(spec, **site)}) for _ in range(2)]
    assert list(model.state_dict()) == keys
    assert [id(p) for p in model.parameters()] == parameters
    with routers[0](torch.zeros(BATCH, dtype=torch.int64)):
        routed_loss, routed = run()
    assert torch.equal(routed_loss, loss)
    assert any(not torch.equal(routed[name], grads[name]) for name in grads), "the site must change some gradient"

    for router in routers:
        router.remove()
        router.remove()
    assert hooks() == before
    assert list(model.state_dict()) == keys
    seen.clear()
    restored_loss, restored = run()
    assert seen == ["forward pre-hook", "forward hook"] * len(architecture.modules)
    assert torch.equal(restored_loss, loss)
    assert all(torch.equal(restored[name], grads[name]) for name in grads)
