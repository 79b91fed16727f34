"""Laws of surgery, for any spec, any site on a chain of layers, and any label."""

import copy
from itertools import combinations

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

import gradroute as gr
from gradroute.errors import SiteError
from gradroute.surgery import ablate_, add_units_, contract, remove_units_
from gradroute.surgery.graph._axis_rules import regroup
from gradroute.testing import specs
from gradroute.unit_dims import n_units
from surgery_cases import Sized

pytestmark = pytest.mark.long

ACTIVATIONS = [nn.ReLU(), nn.GELU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.SiLU(), nn.Softsign(), nn.PReLU()]
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
SOME = st.integers(1, 4)


@st.composite
def routed(draw):
    """A chain of layers, a router with a site of any spec on one of them, an input, and labels that own units.

    The units are the output of the first layer; the last one reads them.
    """
    spec = draw(specs())
    n = spec.width
    torch.manual_seed(draw(st.integers(0, 5)))
    images = draw(st.booleans())
    norm = nn.BatchNorm2d if images else nn.BatchNorm1d
    between = draw(st.lists(st.sampled_from([norm, nn.Dropout, *ACTIVATIONS]), min_size=1, max_size=3))
    between = [norm(n) if kind is norm else kind() if kind is nn.Dropout else kind for kind in between]
    for module in between:
        if isinstance(module, norm):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                nn.init.uniform_(tensor, 0.5, 1.5)
    position = draw(st.integers(0, len(between) + 1))
    name, on = str(position), "input" if position == len(between) + 1 else "output"
    if images:
        first = draw(st.sampled_from([nn.Conv2d, nn.ConvTranspose2d]))(4, n, 3)
        # A kernel of 1 spreads a constant that off units are worth evenly, and a transposed one of another size does not.
        behind = nn.Sequential(*between[position:]).eval()
        with torch.no_grad():
            kernel = 1 if behind(torch.zeros(1, n, 1, 1)).any() else draw(st.sampled_from([1, 2]))
        last = draw(st.sampled_from([nn.Conv2d(n, 2, 2), nn.ConvTranspose2d(n, 2, kernel)]))
        model, dim, x = nn.Sequential(first, *between, last), 1, IMAGES
    else:
        model, dim, x = nn.Sequential(nn.Linear(4, n), *between, nn.Linear(n, 2)), -1, X
    assume(list(model).count(model[int(name)]) == 1)  # a module that is called twice is a site twice
    router = gr.Router(model.eval(), {name: gr.Site(spec, on=on, dim=dim)})
    labels = draw(st.lists(st.sampled_from(spec.labels), min_size=1, max_size=2, unique=True))
    assume(spec.exclusive(*labels))
    return model, router, labels, x, name


def of(layer, end, weight):
    """A layer's weight, with the units that it writes or reads first."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    return weight.movedim(int((end == "input") != transposed), 0)


def output(model, x):
    with torch.no_grad():
        return model(x)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# Each example exports a model, which takes a tenth of a second: to shrink a failing one would take minutes.
EXPORTED = settings(max_examples=40, phases=[Phase.explicit, Phase.reuse, Phase.generate])


@EXPORTED
@given(routed())
def test_an_ablation_for_good_is_the_ablated_model_and_nothing_else(case):
    model, router, labels, x, name = case
    module = model[int(name)]
    own = isinstance(
        module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d
    )  # of a BatchNorm1d, dim=-1 may be time
    before = copy.deepcopy(model.state_dict())
    with router.ablated(*labels):
        expected = output(model, x)
    ablate_(router, *labels, example=None if own else x)
    close(output(model, x), expected)
    spec = router.sites[name][0].spec
    kept = [unit for unit in range(spec.width) if unit not in spec.exclusive(*labels)]
    after = model.state_dict()
    last = str(len(model) - 1)
    assert {key: value.shape for key, value in after.items()} == {key: value.shape for key, value in before.items()}
    for key in after:
        if key in dict(model.named_buffers()):
            assert torch.equal(after[key], before[key])
        elif key == f"{last}.weight":
            assert torch.equal(of(model[-1], "input", after[key])[kept], of(model[-1], "input", before[key])[kept])
        elif key == "0.weight":
            assert torch.equal(of(model[0], "output", after[key])[kept], of(model[0], "output", before[key])[kept])
        elif after[key].shape[:1] == (spec.width,) and not key.startswith(last):
            assert torch.equal(after[key][kept], before[key][kept])
        elif key != f"{last}.bias":
            assert torch.equal(after[key], before[key])
    if own:  # and then no other layer changes
        assert all(torch.equal(after[key], before[key]) for key in after if not key.startswith(f"{name}."))


def silent(model, name, router, x, expected):
    """Whether all units of the site could be 0 on this input, and nobody would see it."""
    module, on = model[int(name)], router.sites[name][0].on
    if on == "output":
        handle = module.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    else:
        handle = module.register_forward_pre_hook(lambda module, args: (torch.zeros_like(args[0]),))
    with handle:
        return torch.equal(output(model, x), expected)


@EXPORTED
@given(routed())
def test_contracting_is_the_ablated_model_without_the_units(case):
    model, router, labels, x, name = case
    spec = router.sites[name][0].spec
    off = spec.exclusive(*labels)
    with router.ablated(*labels):
        expected = output(model, x)
    module = model[int(name)]
    if spec.width == 1 and router.sites[name][0].on == "output" and next(module.parameters(), None) is not None:
        if x is IMAGES and module is model[0]:  # a kernel of 3 without padding
            with pytest.raises(SiteError, match="may be of another shape for another input"):
                contract(router, *labels, example=x)
            return
        contracted = contract(router, *labels, example=x)
        close(output(contracted.model, x), expected)
        assert contracted.gone == tuple(key for key in model.state_dict() if key.startswith(f"{name}."))
        return
    if len(off) == spec.width:
        reason = "would be gone"
        if spec.width == 1:
            reason = "goes on being needed" if router.sites[name][0].on == "input" else "neither parameters nor buffers"
        with pytest.raises(SiteError, match=reason):
            contract(router, *labels, example=x)
        return
    if silent(model, name, router, x, expected):
        with pytest.raises(SiteError, match="the same whether the units of this"):
            contract(router, *labels, example=x)
        return
    contracted = contract(router, *labels, example=x)
    smaller, left = contracted.model, spec.width - len(off)
    close(output(smaller, x), expected)
    assert len(of(smaller[0], "output", smaller[0].weight)) == len(of(smaller[-1], "input", smaller[-1].weight)) == left
    before, after = model.state_dict(), smaller.state_dict()
    for key, kept in contracted.kept.items():
        if key != f"{len(model) - 1}.bias":
            (dim, positions), *rest = kept.items()
            assert not rest
            assert torch.equal(after[key], before[key].index_select(dim, torch.tensor(positions)))
    ablate_(router, *labels, example=x)
    close(output(smaller, x), output(model, x))


class Add(nn.Module):
    """A residual connection around something."""

    def __init__(self, add):
        super().__init__()
        self.add = add

    def forward(self, x):
        return x + self.add(x)


BRANCHES = [
    lambda: nn.Linear(4, 4),
    lambda: nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 4, bias=False)),
    lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.Tanh()),
    lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.LayerNorm(4)),
    lambda: nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()),  # which makes something of zeros
    lambda: Add(nn.Linear(4, 4)),
    lambda: nn.Sequential(Add(nn.Linear(4, 4)), nn.Linear(4, 4)),
]


@EXPORTED
@given(specs(max_width=1), st.data(), st.integers(0, 2**16))
def test_a_module_that_is_taken_out_or_zeroed_is_one_that_is_ablated(spec, data, seed):
    """For inputs of other sizes too, and what goes on learning learns the same."""
    torch.manual_seed(seed)
    branches = data.draw(st.lists(st.sampled_from(BRANCHES), min_size=1, max_size=3))
    model = nn.Sequential(*(Add(make()) for make in branches), nn.Linear(4, 2)).eval()
    gone = data.draw(st.lists(st.integers(0, len(branches) - 1), min_size=1, unique=True))
    sites = {f"{number}.add": gr.Site(spec, dim=None) for number in gone}
    if data.draw(st.booleans()):
        sites = {name: gr.Site(spec, level="parameters") for name in sites}
    owners = [
        some for n in range(1, len(spec.labels) + 1) for some in combinations(spec.labels, n) if spec.exclusive(*some)
    ]
    assume(owners)  # not where the unit is shared
    labels = data.draw(st.sampled_from(owners))
    router, x, other = gr.Router(model, sites), X, torch.randn(2, 5, 4)
    with router.ablated(*labels):
        expected = output(model, other)
    smaller = contract(router, *labels, example=x).model
    close(output(smaller, other), expected)
    inside = tuple(f"{name}." for name in sites)
    assert {name for name, _ in smaller.named_parameters()} == {
        name for name, _ in model.named_parameters() if not name.startswith(inside)
    }
    with torch.random.fork_rng(), router.ablated(*labels):
        gradients = torch.autograd.grad(model(other).square().sum(), list(model.parameters()), allow_unused=True)
    smaller(other).square().sum().backward()
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        if name.startswith(inside):
            assert gradient is None or not gradient.any()
        else:
            close(smaller.get_parameter(name).grad, gradient)
    before = copy.deepcopy(model.state_dict())
    try:
        ablate_(router, *labels, example=x)
    except SiteError:  # zeros there would not do; and nothing was written
        assert any(branches[number] in BRANCHES[4:6] for number in gone)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        return
    close(output(model, other), expected)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) if not name.startswith(inside) else not tensor.any()


@st.composite
def pairs(draw):
    """Two layers of a model, what lies between them, the model, and an input."""
    width = draw(st.integers(1, 5))
    between = [draw(st.sampled_from(ACTIVATIONS[:-1]))]
    kind = draw(st.sampled_from(["linear", "convolution", "flattened"]))
    if kind == "linear":
        between += [nn.BatchNorm1d(width)] * draw(st.booleans())
        layers, x = (nn.Linear(4, width), nn.Linear(width, 2)), X
    elif kind == "convolution":
        between += [nn.BatchNorm2d(width), nn.MaxPool2d(2)] * draw(st.booleans())
        kinds = st.sampled_from([nn.Conv2d, nn.ConvTranspose2d])
        layers, x = (draw(kinds)(4, width, 2), draw(kinds)(width, 2, 2)), IMAGES
    else:
        between.append(nn.Flatten())
        layers, x = (nn.Conv2d(4, width, 2), nn.Linear(16 * width, 2)), IMAGES
    return layers, between, nn.Sequential(layers[0], *between, layers[1]).eval(), x


@given(pairs(), SOME)
def test_adding_units_changes_no_output_and_removing_them_undoes_it(pair, extra):
    (producer, consumer), between, model, x = pair
    width = n_units(producer, "output")
    expected, before = output(model, x), copy.deepcopy(model.state_dict())
    new = add_units_(producer, consumer, extra, between=between)
    assert list(range(width + extra))[new] == list(range(width, width + extra))
    assert n_units(producer, "output") == width + extra
    close(output(model, x), expected)
    remove_units_(producer, consumer, new, between=between)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@given(pairs(), st.data())
def test_removing_units_is_what_zero_columns_compute(pair, data):
    (producer, consumer), between, model, x = pair
    width = n_units(producer, "output")
    assume(width > 1)
    gone = data.draw(st.lists(st.integers(0, width - 1), min_size=1, max_size=width - 1, unique=True))
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        of(zeroed[-1], "input", zeroed[-1].weight).unflatten(0, (width, -1))[gone] = 0
    remove_units_(producer, consumer, gone, between=between)
    close(output(model, x), output(zeroed, x))


@given(st.data())
def test_values_follow_a_reshape_as_the_entries_do(data):
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    dim = data.draw(st.integers(0, len(sizes) - 1))
    order = []  # a partner of the same number of entries: neighbours merged, and sizes split
    for size in sizes:
        if order and data.draw(st.booleans()):
            order[-1] *= size
        elif size == 4 and data.draw(st.booleans()):
            order += [2, 2]
        else:
            order += [1] * data.draw(st.booleans()) + [size]
    values = torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=sizes[dim], max_size=sizes[dim])))
    full = values.view([-1 if d == dim else 1 for d in range(len(sizes))]).expand(sizes).reshape(order)
    for new_dim, found in regroup(values, dim, sizes, order, -1):
        rows = full.movedim(new_dim, 0).flatten(1) if full.ndim > 1 else full[:, None]
        for position, value in enumerate(found.tolist()):
            same = bool((rows[position] == rows[position, 0]).all())
            assert value == (rows[position, 0] if same else -1)


@EXPORTED
@given(st.integers(0, 2**12 - 1), st.sets(st.integers(0, 2)), st.sets(st.integers(0, 3)), st.booleans())
def test_of_heads_and_features_goes_what_leaves_a_product_and_no_other_part(drawn, heads, features, product):
    """Whole heads and the same features of all heads: then attention gets smaller, and stays that of the ablated one."""
    if product:
        off = {head * 4 + feature for head in range(3) for feature in range(4) if head in heads or feature in features}
    else:
        off = {unit for unit in range(12) if drawn >> unit & 1}
    kept = torch.tensor([unit not in off for unit in range(12)]).view(3, 4)
    is_product = torch.equal(kept, kept.any(1)[:, None] & kept.any(0))
    assume(off)
    torch.manual_seed(0)
    model, x = Sized().eval(), torch.randn(2, 5, 6)
    router = gr.Router(model, {"out": gr.Site(gr.RoutingSpec({0: sorted(off), 1: []}, 12), on="input")})
    with router.ablated(0):
        expected = output(model, x)
    if len(off) == 12 or not is_product:
        with pytest.raises(SiteError, match="would be gone|whole heads can be cut"):
            contract(router, 0, example=x)
    else:
        smaller = contract(router, 0, example=x).model
        close(output(smaller, x), expected)
        assert smaller.out.weight.shape[1] == smaller.v.weight.shape[0] == 12 - len(off)
        assert smaller.q.weight.shape[0] == 4 * int(kept.any(1).sum())
    ablate_(router, 0, example=x)
    close(output(model, x), expected)
