"""The mixture of the page on experts, against one that is written from the definition: token by token, with detached weights."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import gradroute as gr
from docs.pages import ROOT
from gradroute.optim import Isolation

PAGE = (ROOT / "docs" / "how_to" / "experts.md").read_text(encoding="utf-8")


def page() -> dict[str, object]:
    """The names that the first blocks of the page define: the mixture, and how it is routed."""
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)[:2]:
        exec(block, names)
    return names


def by_definition(mixture: nn.Module, tokens: Tensor, labels: list[str], teaches: dict[str, list[int]]) -> Tensor:
    """Each token by itself; an expert that its label may not teach, and a row of the gate, enter as constants."""
    rows = []
    for token, label in zip(tokens, labels, strict=True):
        may = [expert in teaches[label] for expert in range(len(mixture.experts))]
        weight = torch.stack([row if ok else row.detach() for row, ok in zip(mixture.gate.weight, may, strict=True)])
        bias = torch.stack([entry if ok else entry.detach() for entry, ok in zip(mixture.gate.bias, may, strict=True)])
        weights, chosen = (weight @ token + bias).softmax(-1).topk(mixture.top_k)
        out = torch.zeros_like(token)
        for scale, expert in zip(weights, chosen.tolist(), strict=True):
            module = mixture.experts[expert]
            state = {n: p if may[expert] else p.detach() for n, p in module.named_parameters()}
            out = out + scale * functional_call(module, state, (token[None],))[0]
        rows.append(out)
    return torch.stack(rows)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_mixture_of_the_page_has_the_gradients_of_the_definition(seed: int, stacked: bool) -> None:
    """Labels per token, all in one batch; stacked, so that what is upstream of a mixture sees the whole gradient."""
    torch.manual_seed(seed)
    names = page()
    teaches = names["teaches"]
    first, mixture = nn.Linear(8, 8).double(), names["routed"](names["Mixture"]().double())
    second = names["routed"](names["Mixture"]().double()) if stacked else None
    x = torch.randn(4, 6, 8, dtype=torch.float64)
    labels = [list(teaches)[i] for i in torch.randint(len(teaches), (24,)).tolist()]
    ids = names["gate_spec"].encode(labels).view(4, 6)
    parameters = [p for module in (first, mixture, second) if module is not None for p in module.parameters()]

    y = mixture(first(x), ids)
    y = y if second is None else second(y, ids)
    mine = torch.autograd.grad(y.square().sum(), parameters, materialize_grads=True)
    for made in (mixture, second):
        for router in () if made is None else made.blocks.values():
            router.remove()
    z = by_definition(mixture, first(x).flatten(0, 1), labels, teaches)
    z = z if second is None else by_definition(second, z, labels, teaches)
    torch.testing.assert_close(y.flatten(0, 1), z, rtol=1e-12, atol=1e-12)
    theirs = torch.autograd.grad(z.square().sum(), parameters, materialize_grads=True)
    unrouted = torch.autograd.grad(mixture(first(x)).square().sum(), parameters, allow_unused=True)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert any(u is not None and not torch.allclose(one, u) for one, u in zip(mine, unrouted, strict=True))


def test_labels_of_all_tokens_are_refused_by_an_expert_that_is_given_some() -> None:
    names = page()
    mixture = names["routed"](names["Mixture"]())
    for shape in ((24,), (4, 6)):
        with (
            mixture.blocks[0](torch.zeros(shape, dtype=torch.long)),
            pytest.raises(gr.RoutingError, match=r"labels of shape \(.*tensor of shape \(3, 8\).*of the selected ones"),
        ):
            mixture.experts[0](torch.randn(3, 8))


def test_an_isolation_for_each_router_holds_the_experts_that_no_token_may_teach() -> None:
    """Bit for bit against momentum and decay, though the experts run; without it they move."""
    for isolated in (True, False):
        names = page()
        mixture = names["routed"](names["Mixture"]())
        optimizer = torch.optim.AdamW(mixture.parameters(), lr=0.1, weight_decay=0.1)
        held = [Isolation(router, optimizer) for router in mixture.blocks.values()] if isolated else []
        x = torch.randn(8, 6, 8)
        for label in ("other", "biology"):
            before = {name: parameter.detach().clone() for name, parameter in mixture.named_parameters()}
            optimizer.zero_grad()
            mixture(x, names["gate_spec"].encode([label] * 8)[:, None].expand(8, 6)).square().sum().backward()
            optimizer.step()
        moved = [
            not all(torch.equal(p, before[f"experts.{i}.{n}"]) for n, p in expert.named_parameters())
            for i, expert in enumerate(mixture.experts)
        ]
        rows = (mixture.gate.weight != before["gate.weight"]).any(1).tolist()
        assert moved == rows == ([True, True, False, False] if isolated else [True] * 4)
        assert len(held) == (5 if isolated else 0)


def test_a_gate_whose_bias_says_so_never_chooses_an_expert() -> None:
    mixture = page()["Mixture"]()
    calls: list[int] = []
    mixture.experts[3].register_forward_hook(lambda *args: calls.append(len(args[2])))
    x = torch.randn(4, 6, 8)
    mixture(x)
    assert calls
    calls.clear()
    with torch.no_grad():
        mixture.gate.bias[3] = -torch.inf
    assert mixture(x).isfinite().all()
    assert not calls
