import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradroute as gr
from common.gpt2 import TextSettings, build, example, logits, loss_per_byte, relearned, rest_sites, token_losses

TINY = TextSettings(context=8, layers=1, width=8, heads=2, neurons=16)
N_BYTES = torch.arange(1, 31)


def test_losses_are_those_of_each_token_given_what_is_before() -> None:
    model, tokens = (
        build(TINY, 30, seed=0).eval(),
        torch.randint(30, (3, 7), generator=torch.Generator().manual_seed(0)),
    )
    found = token_losses(model, tokens)
    assert found.shape == (3, 6)
    for row, losses in zip(tokens, found, strict=True):
        for place in range(6):
            likely = model(input_ids=row[None, : place + 1]).logits[0, -1].detach().softmax(-1)
            assert math.exp(-float(losses[place])) == pytest.approx(float(likely[row[place + 1]]), rel=1e-4)
    nats, n_bytes = float(found.sum()), int(N_BYTES[tokens[:, 1:]].sum())
    assert loss_per_byte(model, tokens, N_BYTES) == pytest.approx(nats / n_bytes, rel=1e-5)


def test_a_seed_gives_the_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one, same, other = (build(TINY, 30, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_what_belongs_to_no_unit_is_taught_by_one_label_alone() -> None:
    """All parameters outside of attention and MLP, each by its own gradient."""
    model = build(TINY, 30, seed=0)
    router = gr.Router(model, rest_sites(model, "core", ["one", "other"]))
    rest = [name for name, _ in model.named_parameters() if "attn" not in name and "mlp" not in name]
    assert len(rest) == 2 + 3 * 2  # the head is tied to the embedding
    for label, learns in enumerate((True, False, False)):
        model.zero_grad()
        with router(torch.tensor([label, label])):
            logits(model, example(model)["input_ids"]).log_softmax(-1)[..., 0].sum().backward()
        for name in rest:
            gradient = model.get_parameter(name).grad
            assert (gradient is not None and bool(gradient.any())) == learns, (label, name)


@given(st.integers(1, 40), st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True).map(sorted))
def test_relearning_is_looked_at_after_as_many_steps_as_asked_for(n: int, at: list[int]) -> None:
    model, tokens = build(TINY, 30, seed=0), torch.randint(30, (n, 5), generator=torch.Generator().manual_seed(0))
    weights: list[torch.Tensor] = []

    def look() -> float:
        weights.append(model.lm_head.weight.detach().clone())
        return float(len(weights))

    assert relearned(model, tokens, at, look) == [float(n + 1) for n in range(len(at))]
    again = build(TINY, 30, seed=0)
    optimizer, drawn = torch.optim.Adam(again.parameters(), 1e-3), 0
    for step in range(max(at) + 1):
        if step in at:
            torch.testing.assert_close(weights[at.index(step)], again.lm_head.weight.detach())
        batch = torch.stack([tokens[(drawn + i) % n] for i in range(16)])
        drawn += 16
        optimizer.zero_grad()
        (-again(input_ids=batch[:, :-1]).logits.log_softmax(-1).gather(-1, batch[:, 1:, None])).mean().backward()
        optimizer.step()
