"""What the machine found: mended, or marked as what is left."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradroute as gr


def test_compiled_code_that_breaks_off_between_two_runs_of_a_module():
    """Of the second run's beginning it noted nothing; in eager mode there was nothing to go back to."""
    from gradroute.router._second_run import Beginning

    module = nn.BatchNorm1d(3)
    beginning = Beginning(module)
    beginning._attributes, beginning._random = [], None  # as compiled code leaves it
    beginning.refuse_random_numbers()
    with beginning.once_more():
        assert set(beginning.buffers()) == set(dict(module.named_buffers()))


@pytest.mark.xfail(
    strict=True, reason="nothing of gradroute runs in compiled code, so that it cannot ask whose recomputation it is in"
)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("level", ["activations", "parameters"])
def test_a_compiled_model_in_a_checkpoint_of_eager_code_with_backward_in_another_block(level, reentrant):
    """Recomputed, it takes the labels of the block that backward is in."""
    torch._dynamo.reset()
    module = nn.Linear(3, 3)
    router = gr.Router(module, {"": gr.Site(gr.RoutingSpec.one_per_label(3), level=level)})
    compiled = torch.compile(module, backend="eager")
    with router(torch.tensor([0, 0])):
        loss = checkpoint(compiled, torch.randn(2, 3, requires_grad=True), use_reentrant=reentrant).sum()
    try:
        with router(torch.tensor([1, 1])):
            loss.backward()
    except gr.RoutingError:
        return
    assert module.bias.grad.tolist() == [2, 0, 0]
