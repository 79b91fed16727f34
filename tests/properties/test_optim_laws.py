"""Laws of `Isolation`: frozen is frozen whatever spec and labels, and the rest trains as if the frozen were cut out."""

import contextlib
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradroute as gr
from gradroute.optim import Isolation, clip_grad_norm_per_route_
from gradroute.optim import _slices as entries
from gradroute.testing import label_tensors, specs
from gradroute.testing._strategies import KINDS
from gradroute.unit_dims import spread

SPEC = gr.RoutingSpec({"retain": slice(0, 3), "forget": [3, 5]}, 7, shared=[4, 6])
FROZEN = list(SPEC.exclusive("forget"))
KEPT = [unit for unit in range(SPEC.width) if unit not in FROZEN]

OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "AdamW fused amsgrad": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, amsgrad=True, fused=True),
    "Adam with coupled decay": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1, foreach=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.05, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, weight_decay=0.1, centered=True, momentum=0.9),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, weight_decay=0.1),
}


class Whole(nn.Module):
    """A layer upstream of the units, one that writes them, and one that reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.upstream = nn.Linear(4, 5)
        self.writer = nn.Linear(5, SPEC.width)
        self.reader = nn.Linear(SPEC.width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(torch.tanh(self.writer(torch.tanh(self.upstream(x)))))


class CutOut(nn.Module):
    """The network without the frozen units; what they add to its output, where they add something, is a constant.

    Constant in the parameters: through the fixed weights the gradient still flows to the layer upstream.
    """

    def __init__(self, whole: Whole, frozen_units_add: bool) -> None:
        super().__init__()
        self.upstream, self.writer = nn.Linear(4, 5), nn.Linear(5, len(KEPT))
        self.reader = nn.Linear(len(KEPT), 3)
        for name, parameter in self.named_parameters():
            parameter.data = kept(name, whole.get_parameter(name).detach()).clone()
        self.frozen_units_add = frozen_units_add
        fixed = whole.writer.weight[FROZEN], whole.writer.bias[FROZEN], whole.reader.weight[:, FROZEN]
        self.fixed = [tensor.detach().clone() for tensor in fixed]

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.upstream(x))
        y = self.reader(torch.tanh(self.writer(h)))
        if self.frozen_units_add:
            weight, bias, readers = self.fixed
            y = y + torch.tanh(h @ weight.T + bias) @ readers.T
        return y


def kept(name: str, tensor: Tensor) -> Tensor:
    """What is left of a parameter, or of its state, when the frozen units are cut out."""
    if tensor.ndim and name.startswith("writer"):
        return tensor[KEPT]
    return tensor[:, KEPT] if tensor.ndim and name == "reader.weight" else tensor


def frozen(model: nn.Module, optimizer: torch.optim.Optimizer, *, readers: bool) -> list[Tensor]:
    """Weights and state of the frozen units."""
    found = []
    for name, parameter in model.named_parameters():
        for tensor in (parameter.detach(), *optimizer.state[parameter].values()):
            if tensor.ndim and name.startswith("writer"):
                found.append(tensor[FROZEN])
            elif tensor.ndim and name == "reader.weight" and readers:
                found.append(tensor[:, FROZEN])
    return [tensor.clone() for tensor in found]


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 4, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)


@pytest.mark.parametrize("scaled", [False, True], ids=["", "under a GradScaler"])
@pytest.mark.parametrize("clipped", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("level", ["activations", "parameters"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rest_trains_as_if_the_frozen_units_were_cut_out(
    name: str, level: str, clipped: bool, scaled: bool
) -> None:
    """Level "activations" leaves the columns that read frozen units free, so these units are ablated meanwhile."""
    whole = Whole().double()
    sites = {"writer": gr.Site(SPEC, level=level)}
    if level == "parameters":
        sites["reader"] = gr.Site(SPEC, on="input", level=level)
    router = gr.Router(whole, sites)
    optimizer = OPTIMIZERS[name](whole.parameters())
    Isolation(router, optimizer)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled) for _ in range(2)]

    def step(
        model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, x: Tensor, y: Tensor
    ) -> None:
        optimizer.zero_grad()
        scaler.scale((model(x) - y).square().sum()).backward()
        if clipped:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()

    for _ in range(3):  # the state that is cut out is not one of zeros
        with router(torch.tensor([0, 1]).repeat(4)):
            step(whole, optimizer, scalers[0], *batch())
    cut = CutOut(whole, frozen_units_add=level == "parameters").double()
    cut_optimizer = OPTIMIZERS[name](cut.parameters())
    for parameter_name, parameter in cut.named_parameters():
        state = optimizer.state[whole.get_parameter(parameter_name)]
        cut_optimizer.state[parameter] = {key: kept(parameter_name, value).clone() for key, value in state.items()}
    before = frozen(whole, optimizer, readers=level == "parameters")
    ablated = router.ablated("forget") if level == "activations" else contextlib.nullcontext()
    for _ in range(5):
        x, y = batch()
        with router(torch.zeros(8, dtype=torch.long)), ablated:
            step(whole, optimizer, scalers[0], x, y)
        step(cut, cut_optimizer, scalers[1], x, y)
    assert all(map(torch.equal, frozen(whole, optimizer, readers=level == "parameters"), before))
    for parameter_name, parameter in cut.named_parameters():
        original = whole.get_parameter(parameter_name)
        torch.testing.assert_close(kept(parameter_name, original), parameter, rtol=1e-10, atol=1e-12)
        for key, value in cut_optimizer.state[parameter].items():
            mine = kept(parameter_name, optimizer.state[original][key])
            torch.testing.assert_close(mine, value, rtol=1e-9, atol=1e-12, msg=lambda t, key=key: f"{key}: {t}")


def test_without_isolation_the_frozen_units_move() -> None:
    """Fact: a gradient of zero freezes nothing. If this fails, the laws here show nothing."""
    whole = Whole().double()
    router = gr.Router(whole, {"writer": SPEC})
    optimizer = OPTIMIZERS["AdamW"](whole.parameters())
    for label in (1, 0):
        before = frozen(whole, optimizer, readers=False)
        with router(torch.full((8,), label)):
            whole(batch()[0]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (whole.writer.weight[FROZEN] - before[0]).abs().max() > 0.01


@given(specs(), st.data())
@settings(max_examples=60)
def test_what_no_example_teaches_stays_and_what_one_teaches_moves_as_without_isolation(spec, data) -> None:
    """For any spec and labels: real passes, the oracle being the same optimizer without isolation."""
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
    steps = [data.draw(label_tensors(spec, (3,), kind)) for kind in kinds]
    name = data.draw(st.sampled_from(sorted(OPTIMIZERS)))
    layer, bare_layer = nn.Linear(2, spec.width), nn.Linear(2, spec.width)
    bare_layer.load_state_dict(layer.state_dict())
    router = gr.Router(layer, {"": spec})
    optimizer, bare = OPTIMIZERS[name](layer.parameters()), OPTIMIZERS[name](bare_layer.parameters())
    Isolation(router, optimizer)
    ever_frozen = torch.zeros(spec.width, dtype=torch.bool)
    for labels in steps:
        optimizer.zero_grad()
        with router(labels):
            layer(torch.randn(3, 2)).square().sum().backward()
        for mine, its in zip(layer.parameters(), bare_layer.parameters(), strict=True):
            its.grad = mine.grad.clone()
        before = layer.weight.detach().clone(), layer.bias.detach().clone()
        optimizer.step()
        bare.step()
        untaught = ~spec.mask(labels).ne(0).any(0)
        ever_frozen |= untaught
        if untaught.all():
            break  # the bare one counts this step
        for mine, old, its in zip(layer.parameters(), before, bare_layer.parameters(), strict=True):
            assert torch.equal(mine[untaught], old[untaught])
            assert torch.equal(mine[~ever_frozen], its[~ever_frozen])


@given(specs(), st.data())
@settings(max_examples=60)
def test_clipping_a_route_depends_on_its_own_gradients_alone(spec, data) -> None:
    layer = nn.Linear(2, spec.width)
    router = gr.Router(layer, {"": spec})
    gradients = torch.randn(spec.width, 2), torch.randn(spec.width)
    max_norm = data.draw(st.sampled_from([0.1, 1.0, 10.0]))

    def clipped(label, scale: float) -> tuple[dict, Tensor]:
        layer.weight.grad, layer.bias.grad = (gradient.clone() for gradient in gradients)
        for gradient in (layer.weight.grad, layer.bias.grad):
            gradient[list(spec.exclusive(label))] *= scale
        norms = clip_grad_norm_per_route_(router, max_norm)
        return norms, torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)

    label = data.draw(st.sampled_from(spec.labels))
    calm_norms, calm = clipped(label, 1.0)
    norms, spiked = clipped(label, 1000.0)
    # What elsewhere-weights let a label teach too is in groups of several labels, as are the shared units.
    teaches = torch.stack([spec.table[i] != 0 for i in range(len(spec.labels))])
    mine = list(spec.exclusive(label))
    touched = {tuple(teaches[:, unit].tolist()) for unit in mine}
    for unit in range(spec.width):
        if tuple(teaches[:, unit].tolist()) not in touched:
            assert torch.equal(calm[unit], spiked[unit])
    assert norms.keys() == calm_norms.keys()
    for name, norm in norms.items():
        in_group = [u for u in range(spec.width) if _names(spec, teaches[:, u]) == name]
        assert spiked[in_group].norm() <= max_norm * 1.0001
        if not set(in_group) & set(mine):
            assert torch.equal(norm, calm_norms[name])


ACTIVATIONS = [nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Dropout, nn.Identity]


@given(specs(hard=True, silent=False), st.sampled_from(ACTIVATIONS), st.sampled_from(sorted(OPTIMIZERS)), st.data())
@settings(max_examples=60)
def test_a_site_on_an_activation_holds_and_clips_as_one_on_the_layer_before_it(spec, activation, name, data) -> None:
    """Bit for bit, weights and state; not where units are silent, of which a sigmoid makes 0.5. Weights are 1 and 0: times another, a gradient may round before or behind."""
    kinds = data.draw(st.lists(st.sampled_from([kind for kind in KINDS if kind != "mixture"]), min_size=1, max_size=3))
    steps = [(data.draw(label_tensors(spec, (3,), kind)), torch.randn(3, 2)) for kind in kinds]
    clipped = data.draw(st.booleans())
    behind = nn.Sequential(nn.Linear(2, spec.width), activation(), nn.Linear(spec.width, 2))
    runs = []
    for site, model in (("1", behind), ("0", copy.deepcopy(behind))):
        router, optimizer = gr.Router(model, {site: spec}), OPTIMIZERS[name](model.parameters())
        isolation = Isolation(router, optimizer)
        norms = []
        for labels, x in steps:
            optimizer.zero_grad()
            torch.manual_seed(0)
            with router(labels):
                model(x).square().sum().backward()
            if clipped:
                norms.append(clip_grad_norm_per_route_(router, 0.1))
            optimizer.step()
        isolation.remove()
        state = [value for p in model.parameters() for _, value in sorted(optimizer.state[p].items())]
        runs.append((norms, [*model.parameters(), *filter(torch.is_tensor, state)]))
    (norms, mine), (their_norms, theirs) = runs
    assert norms == their_norms
    assert all(torch.equal(*pair) for pair in zip(mine, theirs, strict=True))


@given(specs(max_width=4), st.data())
@settings(max_examples=30)
def test_a_site_behind_a_batch_norm_holds_it_and_the_layer_before_it(spec, data) -> None:
    """As sites on both would; the channels of a batch norm do not meet, so that no closed one learns."""
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
    steps = [(data.draw(label_tensors(spec, (3,), kind)), torch.randn(3, 2, 4, 4)) for kind in kinds]
    model = nn.Sequential(nn.Conv2d(2, spec.width, 3), nn.BatchNorm2d(spec.width), nn.ReLU())
    router = gr.Router(model, {"2": gr.Site(spec, dim=1)})
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    Isolation(router, optimizer)
    for labels, x in steps:
        optimizer.zero_grad()
        with router(labels):
            (model(x) * torch.randn(2, 2)).square().sum().backward()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.step()
        closed = ~spec.mask(labels).ne(0).any(0)
        for parameter, old in zip(model.parameters(), before, strict=True):
            assert (parameter.grad[closed] == 0).all()
            assert torch.equal(parameter[closed], old[closed])


UNITS = st.sampled_from([[0, 2], [0, 1, 3], [1, 2], [3], [0, 1, 2, 3]])  # consecutive or not


@given(st.permutations(range(3)), st.lists(UNITS, max_size=3))
@settings(max_examples=60)
def test_what_is_put_back_is_the_block_and_nothing_else(dims, chosen) -> None:
    shape = (4, 5, 6)
    block, inside = [], torch.ones(shape, dtype=torch.bool)
    for dim, units in zip(dims, map(torch.tensor, chosen), strict=False):
        block.append((dim, entries._index(units, units.device)))
        inside &= spread(torch.isin(torch.arange(shape[dim]), units), inside, dim)
    before, after = torch.randn(shape), torch.randn(shape)
    tensor = before.clone()
    values = entries.take(tensor, block)
    tensor.copy_(after)  # the step: what was taken must be a copy
    entries.put(tensor, block, values)
    assert torch.equal(tensor, torch.where(inside, before, after))


def _names(spec, teaches: Tensor) -> tuple:
    return tuple(label for label, taught in zip(spec.labels, teaches.tolist(), strict=True) if taught)
