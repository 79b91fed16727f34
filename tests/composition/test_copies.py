"""deepcopy, pickle and torch.save: a copy routes by its own labels, or raises; it never learns unrouted in silence."""

import copy
import io
import pickle

import pytest
import torch

import gradroute as gr
from composition.forms import SPEC, Net, Routed, assert_same, batch, expected_gradients


def saved_and_loaded(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": saved_and_loaded,
}


def cases(feature: str, outcome: pytest.MarkDecorator, **forms) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "copied",
        [pytest.param(call, id=name, marks=outcome(f"`{name}` {feature}", **forms)) for name, call in COPIES.items()],
    )


def gradients_of(routed: Routed, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor | None]:
    routed.zero_grad()
    routed(x, labels).square().sum().backward()
    return routed.gradients()


@cases("of a routed model, with its router", pytest.mark.supports)
def test_a_copy_routes_by_its_own_labels(routed: Routed, copied) -> None:
    (x, labels), (_, others) = batch(seed=0), batch(seed=1)
    twin = Routed.__new__(Routed)
    twin.form = routed.form
    twin.net, twin.module, twin.router = copied((routed.net, routed.module, routed.router))
    assert_same(gradients_of(twin, x, others), expected_gradients(x, others))
    assert all(gradient is None for gradient in routed.gradients().values())
    with routed.block(others):  # the labels of one are nothing to the other
        assert_same(gradients_of(twin, x, labels), expected_gradients(x, labels))
    assert_same(gradients_of(routed, x, others), expected_gradients(x, others))


@cases(
    "of the model alone, then training it", lambda feature: pytest.mark.refuses(feature, "UsageError", forms=["router"])
)
def test_a_copy_without_its_router_refuses_to_train(copied) -> None:
    x, labels = batch()
    routed = Routed("router")
    twin = copied(routed.net)
    torch.testing.assert_close(twin.eval()(x), routed.net.eval()(x))
    twin.train()
    with routed.router(labels), pytest.raises(gr.RoutingError, match="copy of a routed model"):
        twin(x)


@cases("of the model alone, then a new router on it", lambda feature: pytest.mark.supports(feature, forms=["router"]))
def test_a_new_router_on_a_copied_model_routes(copied) -> None:
    x, labels = batch()
    twin = copied(Routed("router").net)
    with gr.Router(twin, {"encoder": SPEC})(labels):
        twin(x).square().sum().backward()
    assert_same({name: p.grad for name, p in twin.named_parameters()}, expected_gradients(x, labels))


@pytest.mark.supports("averaged models (`torch.optim.swa_utils.AveragedModel`)")
def test_an_averaged_model_follows_and_evaluates(routed: Routed) -> None:
    x, labels = batch()
    average = torch.optim.swa_utils.AveragedModel(routed.module)
    optimizer = torch.optim.SGD(routed.net.parameters(), lr=0.1)
    routed(x, labels).square().sum().backward()
    optimizer.step()
    average.update_parameters(routed.module)
    with torch.no_grad():
        torch.testing.assert_close(average.eval()(x), routed.module.eval()(x))


@pytest.mark.supports("state dicts: keys of the model as it was", forms=["functional", "router"])
@pytest.mark.parametrize("form", ["functional", "router"])
def test_a_state_dict_goes_into_the_plain_model_and_back(form: str) -> None:
    routed, plain = Routed(form), Net()
    plain.load_state_dict(routed.module.state_dict())
    routed.module.load_state_dict(plain.state_dict())
    assert list(routed.module.state_dict()) == list(plain.state_dict())


@pytest.mark.supports("`torch.load(weights_only=True)` of a state dict")
def test_a_state_dict_loads_with_weights_only(routed: Routed) -> None:
    buffer = io.BytesIO()
    torch.save(routed.module.state_dict(), buffer)
    buffer.seek(0)
    assert_same(torch.load(buffer, weights_only=True), routed.module.state_dict())
