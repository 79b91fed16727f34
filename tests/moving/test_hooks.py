"""docs/moving.md, "From hooks of your own": the same gradients, and where they differ."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradroute as gr
from gradroute.testing import label_tensors, specs

from .comparing import assert_same
from .hook_points import learned

BATCH, WIDTH = 4, 5


def net(activation: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, WIDTH), activation or nn.Tanh(), nn.Linear(WIDTH, 2)).double()


X = torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def loss(model: nn.Module, x: Tensor = X) -> Tensor:
    return (model(x) - 1).square().sum()


def on_output(model: nn.Sequential, mask: Tensor) -> None:
    model[0].register_full_backward_pre_hook(lambda module, gradients: (gradients[0] * mask,))


def on_tensor(model: nn.Sequential, mask: Tensor) -> None:
    def hook(module: nn.Module, args: object, output: Tensor) -> None:
        output.register_hook(lambda gradient: gradient * mask)

    model[0].register_forward_hook(hook)


def on_input(model: nn.Sequential, mask: Tensor) -> None:
    model[2].register_full_backward_hook(lambda module, gradients, _: (gradients[0] * mask,))


#: A hook, and the site that is the same.
HOOKS = {
    "register_full_backward_pre_hook": (on_output, "0", "output"),
    "Tensor.register_hook": (on_tensor, "0", "output"),
    "register_full_backward_hook": (on_input, "2", "input"),
}


@pytest.mark.parametrize("kind", HOOKS)
@settings(max_examples=10)
@given(st.data())
def test_a_hook_that_returns_a_masked_gradient_is_a_site(kind: str, data: st.DataObject) -> None:
    register, name, on = HOOKS[kind]
    spec = data.draw(specs(width=WIDTH, silent=False))
    labels = data.draw(label_tensors(spec, (BATCH,)))
    hooked, routed = net(), net()
    register(hooked, spec.mask(labels).double())
    router = gr.Router(routed, {name: gr.Site(spec, on=on)})
    with router(labels):
        ours = loss(routed)
    assert_same(learned(hooked, loss(hooked)), learned(routed, ours))


@pytest.mark.parametrize("kind", HOOKS)
def test_code_that_was_compiled_before_ignores_a_hook_and_obeys_a_router(kind: str) -> None:
    register, name, on = HOOKS[kind]
    spec, labels = gr.RoutingSpec.split({"retain": 3, "forget": 2}), torch.tensor([0, 1, 1, 0])
    plain, hooked, routed = net(), net(), net()
    unrouted = learned(plain, loss(plain))
    register(plain, spec.mask(labels).double())
    masked = learned(plain, loss(plain))
    # PyTorch's own setting, which the first router of a process changes.
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=True):
        compiled = torch.compile(hooked, backend="aot_eager")
        loss(compiled).backward()
        register(hooked, spec.mask(labels).double())
        assert_same(learned(hooked, loss(compiled)), unrouted)
        compiled = torch.compile(routed, backend="aot_eager")
        loss(compiled).backward()
        with gr.Router(routed, {name: gr.Site(spec, on=on)})(labels):
            ours = loss(compiled)
        assert_same(learned(routed, ours), masked)
    torch.compiler.reset()
    assert_same(masked, unrouted, but=("0.weight", "0.bias"))


def test_a_hook_that_looks_its_labels_up_in_backward_finds_those_of_the_last_batch() -> None:
    spec = gr.RoutingSpec.split({"retain": 3, "forget": 2})
    batches = torch.tensor([0] * BATCH), torch.tensor([1] * BATCH)
    hooked, routed = net(), net()
    now: dict[str, Tensor] = {}
    hooked[0].register_full_backward_pre_hook(lambda m, gradients: (gradients[0] * spec.mask(now["labels"]),))
    router = gr.Router(routed, {"0": spec})
    theirs, ours = torch.zeros(()), torch.zeros(())
    for labels in batches:  # backward comes after both
        now["labels"] = labels
        theirs = theirs + loss(hooked)
        with router(labels):
            ours = ours + loss(routed)
    theirs, ours = learned(hooked, theirs), learned(routed, ours)
    assert not theirs["0.weight"][:3].any()
    assert theirs["0.weight"][3:].any()
    assert ours["0.weight"].any(1).all()


@pytest.mark.parametrize("register", ["register_full_backward_pre_hook", "register_full_backward_hook"])
def test_an_in_place_activation_behind_a_backward_hook_raises_and_behind_a_router_works(register: str) -> None:
    """PyTorch's backward hooks hand out views, and a site does not."""
    spec, labels = gr.RoutingSpec.one_per_label(WIDTH), torch.tensor([0, 1, 2, 3])
    hooked, routed, plain = (net(nn.ReLU(inplace=inplace)) for inplace in (True, True, False))
    getattr(hooked[0], register)(lambda *_: None)
    with pytest.raises(RuntimeError, match="view"):
        loss(hooked)
    on_output(plain, spec.mask(labels).double())
    router = gr.Router(routed, {"0": spec})
    with router(labels):
        ours = loss(routed)
    assert_same(learned(plain, loss(plain)), learned(routed, ours))


def test_a_parameter_s_hook_masks_a_whole_batch_and_a_site_each_example() -> None:
    spec = gr.RoutingSpec.split({"retain": 3, "forget": 2})
    hooked, routed = net(), net()
    row = spec.table[1].double()  # all "forget"
    hooked[0].weight.register_hook(lambda gradient: gradient * row[:, None])
    hooked[0].bias.register_hook(lambda gradient: gradient * row)
    router = gr.Router(routed, {"0": gr.Site(spec, level="parameters")})
    with router(torch.tensor([1] * BATCH)):
        ours = loss(routed)
    assert_same(learned(hooked, loss(hooked)), learned(routed, ours))
    with router(torch.tensor([1, 0, 1, 0])):
        ours = loss(routed)
    assert learned(routed, ours)["0.weight"].any(1).all()


# ------------------------------------------------------------------ a loss for each module


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def pair() -> Pair:
    torch.manual_seed(0)
    return Pair().double()


def whole(label: str) -> gr.Site:
    routes = {name: 0 if name == label else [] for name in ("first", "second")}
    return gr.Site(gr.RoutingSpec(routes, 1), level="parameters")


def by_inputs(model: Pair, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way of PyTorch: a backward pass for each loss, into the parameters of its module."""
    for name, value in losses.items():
        value.backward(inputs=list(model.get_submodule(name).parameters()), retain_graph=True)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_a_loss_that_is_of_some_examples_teaches_one_module() -> None:
    old, new, labels = pair(), pair(), torch.tensor([0, 1, 1, 0])
    out = old(X)
    theirs = by_inputs(old, {"first": out[labels == 0].square().sum(), "second": out[labels == 1].exp().sum()})
    router = gr.Router(new, {name: whole(name) for name in ("first", "second")})
    with router(labels):
        out = new(X)
        ours = learned(new, out[labels == 0].square().sum() + out[labels == 1].exp().sum())
    assert_same(theirs, ours)


def test_two_losses_of_the_same_examples_need_the_examples_twice() -> None:
    old, new = pair(), pair()
    out = old(X)
    theirs = by_inputs(old, {"first": out.square().sum(), "second": out.exp().sum()})
    router = gr.Router(new, {name: whole(name) for name in ("first", "second")})
    with router(torch.tensor([0] * BATCH + [1] * BATCH)):
        first, second = new(torch.cat([X, X])).split(BATCH)
        ours = learned(new, first.square().sum() + second.exp().sum())
    assert_same(theirs, ours)


# ------------------------------------------------------------------ gradient reversal


class Reverse(torch.autograd.Function):
    """Forward: identity. Backward: the gradient times -strength (Ganin and Lempitsky, arXiv:1409.7495)."""

    @staticmethod
    def forward(ctx: object, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


class Domains(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.classes, self.domain = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 2)

    def loss(self, x: Tensor, reverse=lambda features: features) -> Tensor:
        features = self.trunk(x).tanh()
        return self.classes(features).square().sum() + self.domain(reverse(features)).exp().sum()


def domains() -> Domains:
    torch.manual_seed(0)
    return Domains().double()


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_gradient_reversal_is_a_negative_weight_on_the_input_of_the_head(strength: float) -> None:
    old, new = domains(), domains()
    theirs = learned(old, old.loss(X, lambda features: Reverse.apply(features, strength)))
    spec = gr.RoutingSpec({0: gr.Route(slice(None), weight=-1.0)}, WIDTH)
    router = gr.Router(new, {"domain": gr.Site(spec, on="input")})
    with router(torch.full((BATCH, 1), strength, dtype=torch.float64)):
        ours = new.loss(X)
    assert torch.equal(ours, old.loss(X))
    assert_same(theirs, learned(new, ours))
    plain = domains()
    assert_same(theirs, learned(plain, plain.loss(X)), but=("trunk.weight", "trunk.bias"))


def test_gradient_reversal_can_be_of_some_examples_only() -> None:
    old, new, reversed_ = domains(), domains(), torch.tensor([True, False, True, False])
    theirs = learned(
        old,
        old.loss(X, lambda features: torch.where(reversed_[:, None], Reverse.apply(features, 1.0), features)),
    )
    spec = gr.RoutingSpec({0: gr.Route(slice(None), weight=-1.0)}, WIDTH)
    router = gr.Router(new, {"domain": gr.Site(spec, on="input")})
    with router(torch.where(reversed_, 0, gr.UNLABELED)):
        assert_same(theirs, learned(new, new.loss(X)))
