"""Mixed precision: the routed gradient is that of the oracle under the same autocast, scaled or not."""

import pytest
import torch

import gradroute as gr
from composition.forms import SOFT, SPEC, WARNINGS_OF_TORCH, Routed, assert_same, batch, label_kinds
from gradroute.testing import oracle_mask

pytestmark = WARNINGS_OF_TORCH

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
BOTH_SPECS = pytest.mark.parametrize("spec", [SPEC, SOFT], ids=["hard", "soft"])


@BOTH_SPECS
@DTYPES
@pytest.mark.parametrize("kind", ["ids", "multi_hot", "mixture"])
@pytest.mark.supports("autocast, bfloat16 and float16")
def test_the_gradient_under_autocast_is_the_oracles(form: str, spec, dtype: torch.dtype, kind: str) -> None:
    x, labels = batch()
    labels = label_kinds(labels)[kind]
    found, outputs = [], []
    for name in (form, "oracle"):
        routed = Routed(name, spec=spec)
        with torch.autocast("cpu", dtype=dtype):
            outputs.append(routed(x, labels))
        assert outputs[-1].dtype == dtype
        found.append(routed.learn(outputs[-1].float().square().sum()))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0.02, atol=0.01)  # a soft oracle rounds its output
    rounding = {"rtol": 0, "atol": 0} if spec is SPEC and kind != "mixture" else {"rtol": 0.03, "atol": 0.03}
    assert_same(found[0], found[1], **rounding)


@pytest.mark.supports("`GradScaler`")
def test_scaled_gradients_are_unscaled_to_the_oracles_and_step(routed: Routed) -> None:
    states = []
    for model in (routed, Routed("oracle")):
        optimizer = torch.optim.SGD(model.net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for seed in range(3):
            x, labels = batch(seed=seed)
            with torch.autocast("cpu", dtype=torch.float16):
                loss = model(x, labels).float().square().sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        states.append(model.net.state_dict())
    assert_same(*states)
    assert not torch.equal(states[0]["encoder.weight"], Routed("oracle").net.encoder.weight)


@pytest.mark.supports("`GradScaler`: overflow in units that are not routed")
def test_an_overflow_that_the_mask_stops_does_not_skip_the_step(form: str) -> None:
    """inf * 0 would be NaN, and the scaler would skip a step in which nothing that is taught has overflown."""
    x, _ = batch()
    labels = torch.zeros(8, dtype=torch.long)  # all retain: units 3 and 4 learn nothing
    routed = Routed(form)
    scale = torch.ones(6)
    scale[3:5] = torch.inf

    routed.net.decoder.register_forward_pre_hook(
        lambda module, args: args[0].register_hook(lambda g: g * scale) and None
    )
    optimizer = torch.optim.SGD(routed.net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    before = routed.net.encoder.weight.detach().clone()
    scaler.scale(routed(x, labels).square().sum()).backward()
    scaler.step(optimizer)
    moved = (routed.net.encoder.weight != before).any(1)
    assert moved.tolist() == oracle_mask(SPEC, torch.tensor(0)).bool().tolist()


@pytest.mark.supports("float64")
def test_float64_loses_no_precision(routed: Routed) -> None:
    x, labels = batch(dtype=torch.float64)
    oracle = Routed("oracle")
    for model in (routed, oracle):
        model.net.double()
        expected = model.learn(model(x, labels).square().sum())
    assert_same(routed.gradients(), expected, rtol=0, atol=1e-14)


@pytest.mark.supports("float64", forms=["functional"])
def test_gradcheck_of_an_unmasked_route_passes_in_double() -> None:
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.full((4,), gr.UNLABELED)
    assert torch.autograd.gradcheck(lambda x: torch.tanh(gr.route(x, labels, SPEC)), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: torch.tanh(gr.route(x, labels, SPEC)), x)
