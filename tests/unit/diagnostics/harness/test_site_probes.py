"""A site's tensor is seen where the site is, also when others' hooks are there."""

import pytest
import torch

import gradroute as gr
from gradroute import audit
from planted import N, labels
from unit.diagnostics.clean import SITES, found, net

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


def test_a_hook_that_sees_the_routed_tensor_is_no_bypass():
    model = net()
    seen = []
    model[0].register_forward_hook(lambda *args: seen.append(args[2].abs().mean()) or None)
    router = gr.Router(model, SITES)

    def step(x):
        seen.clear()
        return model(x).square().mean() + seen[0]

    assert audit(router, step, torch.randn(N, 5), labels()).clean
    # The same hook before the router's, and the site's own tensor is what goes round.
    model[0].register_forward_hook(lambda *args: seen.append(args[2].abs().mean()) or None, prepend=True)
    report = audit(router, step, torch.randn(N, 5), labels())
    assert found(report) == {(target, "auxiliary hook") for target in ("0", "0.weight", "0.bias")}
