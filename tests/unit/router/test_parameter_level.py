"""Level "parameters": what is refused, what comes off, whole modules, heads, and where a mask could be lost."""

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.router._parameter_level import OwnForward

SPEC = gr.RoutingSpec.one_per_label(4)
LABELS = torch.tensor([0, 2])


def own(spec: gr.RoutingSpec = SPEC, **options: object) -> gr.Site:
    return gr.Site(spec, level="parameters", **options)


class TestMisuse:
    def test_a_module_without_parameters_is_refused(self) -> None:
        with pytest.raises(gr.errors.SiteError, match="a ReLU has none"):
            gr.Router(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), {"1": own()})

    def test_the_input_of_an_embedding_is_refused(self) -> None:
        with pytest.raises(gr.errors.SiteError, match="indices, not units"):
            gr.Router(nn.Embedding(5, 4), {"": own(on="input")})

    def test_a_refused_router_leaves_nothing_behind(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        with pytest.raises(gr.errors.SiteError):
            gr.Router(model, {"0": own(), "1": own()})
        assert "forward" not in model[0].__dict__

    @pytest.mark.parametrize("on", ["output", "input"])
    def test_a_spec_of_another_width_names_the_site(self, on: str) -> None:
        model = nn.Sequential(nn.Linear(7, 7))
        with gr.Router(model, {"0": own(on=on)})(LABELS), pytest.raises(gr.RoutingError, match="site '0': .*4 units"):
            model(torch.ones(2, 7))

    def test_labels_that_do_not_fit_raise_in_the_forward_pass(self) -> None:
        model = nn.Linear(3, 4)
        with (
            gr.Router(model, {"": own()})(torch.tensor([0, 1, 2])),
            pytest.raises(gr.errors.LabelError, match="expected"),
        ):
            model(torch.ones(2, 3))

    def test_an_input_site_on_a_module_of_several_outputs_says_what_to_do(self) -> None:
        model = nn.GRU(4, 4, batch_first=True)
        with (
            gr.Router(model, {"": own(on="input")})(LABELS),
            pytest.raises(gr.errors.SiteError, match="returns a tuple. Put sites on the layers inside"),
        ):
            model(torch.ones(2, 3, 4))

    def test_dropout_in_a_transform_says_what_to_do(self) -> None:
        """Two runs inside of a transform would draw different numbers; compiled code goes back to eager there."""
        model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        with (
            gr.Router(model, {"": own()})(LABELS),
            pytest.raises(gr.errors.UsageError, match="draws random numbers .dropout that is on"),
        ):
            torch.func.grad(lambda x: model(x).sum())(torch.ones(2, 4))


def test_an_embedding_learns_by_route() -> None:
    model = nn.Embedding(5, 4)
    with gr.Router(model, {"": own()})(LABELS):
        model(torch.tensor([1, 3])).sum().backward()
    assert model.weight.grad.nonzero().tolist() == [[1, 0], [3, 2]]


def test_an_embedding_as_a_whole() -> None:
    model = nn.Embedding(5, 4)
    one = gr.RoutingSpec({"retain": 0, "forget": []}, 1)
    with gr.Router(model, {"": own(one)})(torch.tensor([0, 1])):
        model(torch.tensor([1, 3])).sum().backward()
    assert model.weight.grad.nonzero()[:, 0].unique().tolist() == [1], "the example of label 0 learns, and it alone"


@pytest.mark.parametrize("kind", ["known", "other"])
def test_a_spec_of_one_unit_routes_a_module_as_a_whole(kind: str) -> None:
    """Two experts in one mixed batch: each learns from its own examples, and what is upstream from all."""
    torch.manual_seed(0)
    make = (lambda: nn.Linear(3, 4)) if kind == "known" else (lambda: nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4)))
    experts = nn.ModuleDict({"retain": make(), "forget": make()})
    names = list(experts)
    sites = {name: own(gr.RoutingSpec({label: [0] if label == name else [] for label in names}, 1)) for name in names}
    x = torch.randn(2, 3, requires_grad=True)
    with gr.Router(experts, sites)(torch.tensor([0, 1])):
        sum(expert(x) for expert in experts.values()).square().sum().backward()
    for i, name in enumerate(names):
        leaf = x.detach()[i : i + 1]
        output = sum(expert(leaf) for expert in experts.values())
        expected = torch.autograd.grad(output.square().sum(), list(experts[name].parameters()))
        torch.testing.assert_close([p.grad for p in experts[name].parameters()], list(expected))
    assert x.grad.all()


def test_heads_by_repeat() -> None:
    heads = gr.RoutingSpec({"retain": [0, 1], "forget": 2}, 3).repeat(4)
    model = nn.Linear(5, 12)
    with gr.Router(model, {"": own(heads)})(torch.tensor([1])):
        model(torch.ones(1, 5)).sum().backward()
    assert model.bias.grad.nonzero().flatten().tolist() == [8, 9, 10, 11]


def test_users_hooks_see_the_routed_output_and_stay() -> None:
    model = nn.Linear(3, 4)
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(output))
    model.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append(grad_output[0]))
    router = gr.Router(model, {"": own()})
    with router(LABELS):
        output = model(torch.ones(2, 3, requires_grad=True))
        output.sum().backward()
    assert torch.equal(seen[0], output)
    assert torch.equal(seen[1], torch.ones(2, 4))  # the whole gradient: only what is made of it is masked
    router.remove()
    model(torch.ones(2, 3, requires_grad=True)).sum().backward()
    assert len(seen) == 4


def test_a_forward_that_somebody_else_put_there_is_run_and_put_back() -> None:
    model = nn.Linear(3, 4)
    plain = model.forward
    model.forward = lambda x: plain(x) * 2
    theirs = model.forward
    router = gr.Router(model, {"": own()})
    with router(LABELS):
        output = model(torch.ones(2, 3))
        output.sum().backward()
    torch.testing.assert_close(output, plain(torch.ones(2, 3)) * 2)
    torch.testing.assert_close(model.bias.grad, 2 * SPEC.mask(LABELS).sum(0))
    router.remove()
    assert model.forward is theirs


def test_the_signature_stays_readable() -> None:
    import inspect

    model = nn.Linear(3, 4)
    before = inspect.signature(model.forward)
    router = gr.Router(model, {"": own()})
    assert inspect.signature(model.forward) == before
    assert isinstance(model.forward, OwnForward)
    router.remove()
    assert "forward" not in model.__dict__


def test_a_keyword_argument_is_routed_too() -> None:
    model = nn.Linear(3, 4)
    with gr.Router(model, {"": own()})(LABELS):
        model(input=torch.ones(2, 3)).sum().backward()
    assert torch.equal(model.bias.grad, SPEC.mask(LABELS).sum(0))


def test_a_training_pass_without_labels_warns() -> None:
    model = nn.Linear(3, 4)
    router = gr.Router(model, {"": own()})
    with pytest.warns(gr.UnroutedWarning, match="no labels set"):
        model(torch.ones(2, 3))
    router.remove()


@pytest.mark.parametrize("on", ["output", "input"])
def test_a_forward_that_is_replaced_later_is_refused_and_one_that_wraps_is_not(on: str) -> None:
    spec = gr.RoutingSpec.split({"retain": 2, "forget": 1})
    layer = nn.Linear(3, 3)
    router = gr.Router(layer, {"": gr.Site(spec, on=on, level="parameters")})
    standing = layer.forward
    layer.forward = lambda x: standing(1 * x)
    with router(torch.zeros(2, dtype=torch.int64)):
        layer(torch.ones(2, 3)).sum().backward()
    grad = layer.weight.grad if on == "output" else layer.weight.grad.T
    assert grad[:2].all()
    assert not grad[2].any()
    layer.forward = lambda x: nn.functional.linear(x, layer.weight)
    with (
        router(torch.zeros(2, dtype=torch.int64)),
        pytest.raises(gr.errors.UsageError, match="forward method.*replaced"),
    ):
        layer(torch.ones(2, 3))


def test_what_reads_a_batch_of_data_warns_without_labels() -> None:
    layer = nn.Linear(3, 2)
    gr.Router(layer, {"": gr.Site(gr.RoutingSpec.one_per_label(3), on="input", level="parameters")})
    with pytest.warns(gr.UnroutedWarning, match="no labels set"):
        layer(torch.ones(1, 3))
