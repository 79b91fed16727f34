"""Which entries of which parameters belong to a site's units."""

import copy

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import SiteError, UsageError
from gradroute.optim import Isolation
from gradroute.optim._parameter_units import places_of
from unit.optim.neurons import (
    FORGET,
    OPTIMIZERS,
    RETAIN,
    SPEC,
    WRITER,
    Neurons,
    gradients_everywhere,
    moved_units,
    teach,
)


class TestWholeParameters:
    def test_belong_to_the_one_unit_of_a_site_on_a_whole_module(self):
        one = gr.RoutingSpec({"retain": (), "forget": 0}, 1)
        model = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 2)), nn.Linear(2, 2))
        sites = {"0": gr.Site(one, level="parameters", index=0), "1": gr.Site(one, level="parameters")}
        router = gr.Router(model, sites)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        Isolation(router, optimizer)
        for labels, stays in ((RETAIN, True), (FORGET, False)):
            gradients_everywhere(model)
            before = [parameter.detach().clone() for parameter in model.parameters()]
            teach(router, labels)
            optimizer.step()
            assert all(torch.equal(*pair) is stays for pair in zip(model.parameters(), before, strict=True))
            assert bool(optimizer.state[model[1].bias]) is not stays

    @pytest.mark.parametrize("on", ["output", "input"])
    def test_belong_to_a_site_on_a_whole_tensor_as_to_one_whose_units_repeat(self, on):
        one = gr.RoutingSpec({"retain": (), "forget": 0}, 1)
        moved = []
        for level in ("activations", "parameters") if on == "output" else ("parameters",):
            for repeated in (False, True):
                model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.ReLU())
                site = gr.Site(one.repeat(3) if repeated else one, on=on, level=level, dim=-1 if repeated else None)
                optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
                router = gr.Router(model, {"1": site})
                Isolation(router, optimizer)
                before = [parameter.detach().clone() for parameter in model.parameters()]
                gradients_everywhere(model)
                teach(router, RETAIN)
                optimizer.step()
                moved.append([not torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True)])
        assert moved == [[True, True, False, on == "input"]] * len(moved), "a bias reads nothing"

    def test_belong_to_the_one_unit_of_a_site_on_the_model_itself(self):
        one = gr.RoutingSpec({"retain": (), "forget": 0}, 1)
        model = Neurons()
        router = gr.Router(model, {"": gr.Site(one, level="parameters")})
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        Isolation(router, optimizer)
        for labels, expected in ((RETAIN, []), (FORGET, list(range(7)))):
            gradients_everywhere(model)
            teach(router, labels)
            assert moved_units(model, optimizer.step) == expected


class TestWhoElseUsesAParameter:
    def test_an_unrouted_module_that_shares_it_keeps_it_from_being_frozen(self):
        model = Neurons()
        model.tied = nn.Linear(4, SPEC.width)
        model.tied.weight = model.writer.weight
        router = gr.Router(model, WRITER)
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        Isolation(router, optimizer)
        gradients_everywhere(model)
        teach(router, FORGET)
        before = model.writer.bias.detach().clone()
        assert moved_units(model, optimizer.step) == list(range(7))
        assert (model.writer.bias != before).nonzero().flatten().tolist() == [3, 4, 5, 6]
        with pytest.raises(UsageError, match="parameter that an unrouted module shares is never frozen"):
            Isolation(router, torch.optim.SGD([model.writer.weight], lr=0.1))

    def test_two_routed_modules_freeze_what_both_freeze(self):
        model = Neurons()
        model.tied = nn.Linear(4, SPEC.width)
        model.tied.weight = model.writer.weight
        other = gr.RoutingSpec({"retain": [0, 3], "forget": [4]}, SPEC.width)
        router = gr.Router(model, {"writer": SPEC, "tied": other})
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        Isolation(router, optimizer)
        gradients_everywhere(model)
        teach(router, RETAIN)
        assert moved_units(model, optimizer.step) == [0, 1, 2, 3, 4, 6]

    def test_rows_of_one_and_columns_of_the_other_freeze_where_they_cross(self):
        rows, columns = gr.RoutingSpec({"a": 0, "b": [1, 2]}, 3), gr.RoutingSpec({"a": [0, 2], "b": 1}, 3)
        model = nn.ModuleDict({"embed": nn.Embedding(3, 3), "head": nn.Linear(3, 3, bias=False)})
        model["head"].weight = model["embed"].weight
        router = gr.Router(model, {"embed": columns, "head": gr.Site(rows, level="parameters")})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Isolation(router, optimizer)
        model["head"].weight.grad = torch.ones(3, 3)
        before = model["head"].weight.detach().clone()
        with router(torch.tensor([0])):
            pass
        optimizer.step()
        assert (model["head"].weight == before).tolist() == [
            [False, False, False],
            [False, True, False],
            [False, True, False],
        ]

    def test_several_sites_and_routers_on_one_module_each_freeze_theirs(self):
        other = gr.RoutingSpec({"retain": [0, 3], "forget": [4]}, SPEC.width)
        for split in (False, True):
            model = Neurons()
            sites = [{"writer": SPEC}, {"writer": other}] if split else [{"writer": [gr.Site(SPEC), gr.Site(other)]}]
            routers = [gr.Router(model, given) for given in sites]
            optimizer = OPTIMIZERS["AdamW"](model.parameters())
            for router in routers:
                Isolation(router, optimizer)
            gradients_everywhere(model)
            for router in routers:
                teach(router, RETAIN)
            assert moved_units(model, optimizer.step) == [0]

    def test_a_module_under_two_names_is_one_user(self):
        model = Neurons()
        model.again = model.writer
        router = gr.Router(model, {"writer": SPEC})
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        Isolation(router, optimizer)
        gradients_everywhere(model)
        teach(router, FORGET)
        assert moved_units(model, optimizer.step) == [3, 4, 5, 6]


class TestUnits:
    @pytest.mark.parametrize(
        ("module", "dim"),
        [
            (nn.Conv1d(2, 7, 3), 1),
            (nn.Conv2d(2, 7, 3), 1),
            (nn.Conv2d(2, 7, 3), -3),
            (nn.Conv3d(2, 7, 1), -4),
            (nn.Embedding(4, 7), -1),
            (nn.LayerNorm(7), -1),
            (nn.BatchNorm2d(7), 1),
            (nn.GroupNorm(7, 7), 1),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
    )
    def test_are_rows_of_weights_whatever_the_layer(self, module, dim):
        router = gr.Router(module, {"": gr.Site(SPEC, dim=dim)})
        optimizer = OPTIMIZERS["AdamW"](module.parameters())
        Isolation(router, optimizer)
        gradients_everywhere(module)
        before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        teach(router, FORGET)
        optimizer.step()
        for name, parameter in module.named_parameters():
            units = parameter.shape.index(SPEC.width)
            moved = (parameter != before[name]).movedim(units, 0).flatten(1) if parameter.ndim > 1 else None
            moved = (parameter != before[name]) if moved is None else moved.all(1)
            assert moved.nonzero().flatten().tolist() == [3, 4, 5, 6]

    @pytest.mark.parametrize(
        ("sites", "message"),
        [
            ({"0": gr.Site(SPEC, on="input")}, "site '0': no parameters .*: it masks what the modules before it learn"),
            ({"1": SPEC}, r"site '1': no parameters .*: those of a GLU are not known.*sites=\[\.\.\.\]"),
            (
                {"": gr.Site(gr.RoutingSpec({"retain": 0, "forget": ()}, 1), on="input", level="parameters")},
                "site '': no parameters .*: those of a Sequential are not known",  # its biases read nothing
            ),
            ({"0": gr.Site(SPEC, dim=1)}, "site '0': dim 1 of the output of a Linear .*: expected dim=-1"),
            (
                {"0": gr.RoutingSpec({"retain": 0, "forget": 1}, 5)},
                "site '0': the spec routes 5 units, but the weight has 7 along its dim 0",
            ),
        ],
    )
    def test_that_no_parameters_are_known_to_belong_to_are_refused(self, sites, message):
        model = nn.Sequential(nn.Linear(4, 7), nn.GLU())
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        router = gr.Router(model, sites)
        with pytest.raises(SiteError, match=message):
            Isolation(router, optimizer)

    @pytest.mark.parametrize("end", ["output", "input"])
    def test_of_heads_and_features_may_be_any_set_that_no_product_gives(self, end):
        """Two old heads of three old features, in four heads of five: what is new is an L, and stays still for "old"."""
        old = [head * 5 + feature for head in range(2) for feature in range(3)]
        spec = gr.RoutingSpec({"old": old, "new": [unit for unit in range(20) if unit not in old]}, 20)
        model = nn.Linear(3, 20) if end == "output" else nn.Linear(20, 3)
        router = gr.Router(model, {"": gr.Site(spec, on=end, level="parameters")})
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        Isolation(router, optimizer)
        for names in (["old", "new"], ["old"], ["new"]):
            optimizer.zero_grad()
            with router(spec.encode(names)):
                model(torch.ones(len(names), 3 if end == "output" else 20)).square().sum().backward()
            before = model.weight.detach().clone()
            optimizer.step()
            moved = (model.weight != before).any(1 if end == "output" else 0).nonzero().flatten().tolist()
            assert moved == sorted(unit for name in names for unit in spec.indices(name))

    def test_of_some_sites_alone_can_be_held(self):
        model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 7))
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        router = gr.Router(model, {"0": SPEC, "1": SPEC, "2": SPEC})
        Isolation(router, optimizer, sites=["0"])
        gradients_everywhere(model)
        before = copy.deepcopy(model)
        teach(router, FORGET)
        optimizer.step()
        assert (model[0].bias != before[0].bias).nonzero().flatten().tolist() == [3, 4, 5, 6]
        assert (model[2].bias != before[2].bias).all()
        with pytest.raises(SiteError, match="names 'zero', no site of this router"):
            Isolation(router, optimizer, sites=["zero"])

    def test_of_another_model_than_the_optimizers_are_refused(self):
        router = gr.Router(Neurons(), WRITER)
        with pytest.raises(UsageError, match="holds no parameter that belongs to units of this router"):
            Isolation(router, OPTIMIZERS["AdamW"](Neurons().parameters()))
        router.remove()
        with pytest.raises(UsageError, match="was removed"):
            Isolation(router, OPTIMIZERS["AdamW"](Neurons().parameters()))


class TestNamedParameters:
    TWO = gr.RoutingSpec({"retain": slice(0, 2), "forget": 2}, 3)

    def test_alone_belong_to_the_units_of_a_site_that_names_them(self):
        layer = nn.Linear(2, 3)
        router = gr.Router(layer, {"": gr.Site(self.TWO, level="parameters", parameters=("bias",))})
        assert places_of(router, None) == {layer.bias: (((0, 0),),)}
        inner = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)), nn.Linear(3, 3))
        one = gr.RoutingSpec({"retain": 0, "forget": []}, 1)
        router = gr.Router(inner, {"0": gr.Site(one, level="parameters", parameters=("0.bias", "1.weight"))})
        assert places_of(router, None) == {inner[0][0].bias: (((None, 0),),), inner[0][1].weight: (((None, 0),),)}

    def test_alone_are_held_watched_and_clipped_by_route(self):
        layer = nn.Linear(2, 3)
        router = gr.Router(layer, {"": gr.Site(self.TWO, level="parameters", parameters=("bias",))})
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
        x, retain = torch.randn(4, 2), torch.zeros(4, dtype=torch.long)

        def step(labels):
            optimizer.zero_grad()
            with router(labels):
                layer(x).square().sum().backward()
            norms = gr.optim.clip_grad_norm_per_route_(router, 0.1)
            optimizer.step()
            return norms

        step(torch.full((4,), gr.UNLABELED))
        with gr.watch(layer, optimizer, router) as watcher:
            norms = step(retain)
        assert {move.target: move.units for move in watcher.report.moves} == {"bias": (2,)}
        assert norms["forget",] == 0
        optimizer.zero_grad()
        Isolation(router, optimizer)
        before = {name: p.detach().clone() for name, p in layer.named_parameters()}
        step(retain)
        assert (layer.bias == before["bias"]).tolist() == [False, False, True]
        assert (layer.weight != before["weight"]).all()
