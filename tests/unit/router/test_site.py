"""`Site`: its checks, and how patterns find modules."""

import copy
import pickle

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import LabelError, SiteError, UsageError
from gradroute.router._site import routed_parameters

SPEC = gr.RoutingSpec.one_per_label(3)
QUIET = gr.RoutingSpec.one_per_label(3, silent="others")
LABELS = torch.tensor([0, 2])


def model():
    return nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(2, 3), nn.ReLU()), "decoder": nn.Linear(3, 2)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spec": {0: 0}}, "a site needs a RoutingSpec; got dict"),
        ({"on": "outputs"}, "on must be 'output' or 'input'; got 'outputs'"),
        ({"level": "weights"}, "level must be 'activations' or 'parameters'; got 'weights'"),
        ({"dim": "1"}, "dim must be an integer or None; got '1'"),
        ({"dim": (2, 3)}, "dim must be an integer or None; got .* put the site there, as on the input of the output"),
        ({"dim": None}, "dim=None takes the whole tensor for one unit, and the spec has 3"),
        ({"index": 1.5}, "index must be an integer, a string, a tuple of these or None; got 1.5"),
    ],
)
def test_misuse_is_an_error_at_construction(arguments, message):
    with pytest.raises(SiteError, match=message):
        gr.Site(**{"spec": SPEC} | arguments)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("encodr", "pattern 'encodr' matches no module of ModuleDict. Did you mean 'encoder'"),
        ("encoder.5", "Did you mean 'encoder.1' or 'encoder.0'"),
        ("head.*", "pattern 'head.*' matches no module"),
        ("encoder*", r"'encoder\*' matches 'encoder' and also modules inside it \('encoder.0', 'encoder.1'\)"),
    ],
)
def test_patterns_that_do_not_name_one_level_of_modules_are_refused(pattern, message):
    built = model()
    with pytest.raises(SiteError, match=message):
        gr.Router(built, {"decoder": SPEC, pattern: SPEC})
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in built.modules()), "no hook is left"


def test_patterns_match_across_dots_and_never_the_model_itself():
    assert list(gr.Router(model(), {"*.0": SPEC}).sites) == ["encoder.0"]
    assert list(gr.Router(nn.Sequential(nn.ReLU(), nn.ReLU()), {"*": SPEC}).sites) == ["0", "1"]
    assert list(gr.Router(nn.ReLU(), {"": SPEC}).sites) == [""]


@pytest.mark.parametrize("on", ["output", "input"])
def test_a_spec_of_one_unit_is_not_taken_for_a_whole_tensor_unless_that_is_said(on):
    one = gr.RoutingSpec({"a": 0, "b": []}, 1)
    with gr.Router(model(), {"decoder": gr.Site(one, on=on)})(LABELS[:1]) as router:
        size = 2 if on == "output" else 3
        message = rf"'decoder': the spec routes one unit, .* has {size} along dim 1.*Site\(..., dim=None\), .*repeat\({size}\)"
        with pytest.raises(LabelError, match=message):
            router.model["decoder"](torch.ones(1, 3))


def test_what_a_site_says_of_whole_tensors():
    one = gr.RoutingSpec({"a": 0, "b": []}, 1)
    whole = gr.Site(one, dim=None)
    assert (whole.is_whole, whole.axis) == (True, -1)
    assert gr.Site(one, level="parameters", dim=1).is_whole
    assert not gr.Site(one).is_whole
    assert not gr.Site(SPEC, level="parameters").is_whole
    assert eval(repr(whole), {"Site": gr.Site, "RoutingSpec": gr.RoutingSpec, "Route": gr.Route}) == whole


def test_a_module_with_two_names_is_one_site_and_answers_to_both():
    shared = nn.Linear(3, 3)
    both = nn.ModuleDict({"a": shared, "b": shared})
    assert list(gr.Router(both, {"*": SPEC}).sites) == ["a"]
    assert list(gr.Router(both, {"b": SPEC}).sites) == ["b"]


class Bridge(nn.Module):
    """As TransformerLens builds one: its hook points go by other names than those by which torch finds them."""

    def __init__(self, layers=2):
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.Identity()) for _ in range(layers)))

    @property
    def hook_dict(self):
        points = {f"blocks.{n}.mlp.hook_post": block[1] for n, block in enumerate(self.blocks)}
        return points | {
            "blocks.0.hook_mlp_out": self.blocks[0][1],
            "blocks.0.elsewhere": nn.Identity(),
            "blocks.0.0": nn.Identity(),
        }

    def forward(self, x):
        return self.blocks(x)


@pytest.mark.parametrize("around", [lambda bridge: bridge, nn.Sequential], ids=["itself", "inside"])
@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("blocks.*.mlp.hook_post", ["blocks.0.1", "blocks.1.1"]),
        ("blocks.1.mlp.hook_post", ["blocks.1.1"]),
        ("blocks.0.hook_mlp_out", ["blocks.0.1"]),
        (
            "*blocks.0.*",
            ["blocks.0.0", "blocks.0.1"],
        ),  # by both kinds of names, and no hook point that is not in the model
    ],
)
def test_hook_points_answer_to_the_names_of_hook_dict(around, pattern, found):
    model = around(Bridge())
    prefix = "" if isinstance(model, Bridge) else "0."
    pattern = pattern if pattern.startswith("*") else prefix + pattern
    assert list(gr.Router(model, {pattern: SPEC}).sites) == [prefix + name for name in found]


def test_a_hook_point_by_its_other_name_is_routed_as_by_its_own():
    gradients = []
    for pattern in ("blocks.*.mlp.hook_post", "blocks.?.1"):
        torch.manual_seed(0)
        bridge = Bridge()
        with gr.Router(bridge, {pattern: SPEC})(LABELS):
            bridge(torch.ones(2, 3)).square().sum().backward()
        gradients.append([parameter.grad for parameter in bridge.parameters()])
    assert all(map(torch.equal, *gradients))
    assert gradients[0][2][1].eq(0).all(), "no example teaches unit 1"


def test_a_mistyped_hook_point_is_told_the_nearest():
    with pytest.raises(SiteError, match="matches no module of Bridge. Did you mean 'blocks.0.mlp.hook_post'"):
        gr.Router(Bridge(), {"blocks.0.mlp.hook_pst": SPEC})


def test_a_hook_point_that_came_later_is_refused():
    bridge = Bridge()
    router = gr.Router(bridge, {"blocks.*.mlp.hook_post": SPEC})
    bridge.blocks.append(nn.Sequential(nn.Linear(3, 3), nn.Identity()))
    with pytest.raises(UsageError, match=r"also matches 'blocks.2.mlp.hook_post', which came into the model after"):
        router(LABELS).__enter__()


@pytest.mark.parametrize(
    ("module", "site"),
    [
        (nn.LSTM(3, 3), gr.Site(SPEC, index=0)),
        (nn.GRU(3, 3, batch_first=True), gr.Site(SPEC, index=1)),
        (nn.TransformerEncoderLayer(3, 1, 4), gr.Site(SPEC)),
    ],
    ids=["time-first lstm", "final states", "time-first encoder layer"],
)
def test_labels_per_example_are_refused_where_the_first_dimension_is_time_or_layers(module, site):
    # With as many steps as examples the shapes agree, and each step would silently follow an example's label.
    x = torch.randn(2, 2, 3)
    module = module if not isinstance(module, nn.GRU) else nn.GRU(3, 3, num_layers=2, batch_first=True)
    if isinstance(module, nn.GRU):
        site = gr.Site(SPEC, index=(1,))
    router = gr.Router(module, {"": site})
    with router(LABELS), pytest.raises(LabelError, match=r"is time or layers, not the batch.*labels.expand\(2, -1\)"):
        module(x)
    with router(LABELS.expand(2, -1)):
        module(x)


class TestNamedParameters:
    BIAS = gr.Site(SPEC, level="parameters", parameters=("bias",))

    def test_are_part_of_the_value(self):
        assert gr.Site(SPEC, level="parameters", parameters=["bias", "bias"]) == self.BIAS
        assert gr.Site(SPEC, level="parameters") != self.BIAS
        assert hash(self.BIAS) == hash(pickle.loads(pickle.dumps(self.BIAS)))
        assert pickle.loads(pickle.dumps(self.BIAS)) == self.BIAS == copy.deepcopy(self.BIAS)
        assert eval(repr(self.BIAS), vars(gr)) == self.BIAS
        assert "parameters=" not in repr(gr.Site(SPEC))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"level": "activations", "parameters": ("bias",)}, "needs level='parameters'"),
            ({"parameters": "bias"}, r"must be a tuple of names, such as \('bias',\); got 'bias'"),
            ({"parameters": 3}, "must be a tuple of names"),
            ({"parameters": ()}, "at least one name"),
            ({"parameters": (0,)}, "at least one name"),
            ({"parameters": ("bias", "0.bias"), "on": "input"}, "a bias reads nothing of a module's input"),
            (
                {"parameters": ("bias",), "spec": QUIET},
                r"no unit here is taught by its own labels alone.*without silent=",
            ),
        ],
    )
    def test_misused_are_an_error_at_construction(self, arguments, message):
        with pytest.raises(SiteError, match=message):
            gr.Site(**{"spec": SPEC, "level": "parameters"} | arguments)

    @pytest.mark.parametrize(
        ("pattern", "site", "message"),
        [
            ("encoder.0", {"parameters": ("biass",)}, "'biass' is no parameter of this Linear. Did you mean 'bias'"),
            ("encoder", {"parameters": ("bias",)}, "'bias' is no parameter of this Sequential. Did you mean '0.bias'"),
            ("encoder.1", {"parameters": ("bias",)}, "a ReLU has none"),
        ],
    )
    def test_that_are_not_there_are_refused_when_the_router_is_attached(self, pattern, site, message):
        built = model()
        with pytest.raises(SiteError, match=message):
            gr.Router(built, {pattern: gr.Site(SPEC, level="parameters", **site)})
        assert "forward" not in vars(built["encoder"][0])

    def test_that_have_no_entries_for_these_units_are_refused(self):
        class Named(nn.LayerNorm):
            """Not the very class, so that nothing is known of it."""

        site = gr.Site(SPEC, on="input", level="parameters", parameters=("weight",))
        gr.Router(Named(3), {"": site})
        with pytest.raises(SiteError, match="'weight' of a GroupNorm|has no entries|a bias reads nothing"):
            gr.Router(nn.Linear(3, 3), {"": gr.Site(SPEC, on="input", level="parameters", parameters=("bias",))})

    def test_answer_to_each_of_their_names(self):
        tied = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        tied["b"].weight = tied["a"].weight
        assert list(routed_parameters(tied, ("b.weight", "b.bias"))) == ["a.weight", "b.bias"]
        assert routed_parameters(tied, None) == dict(tied.named_parameters())
