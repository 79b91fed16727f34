"""A hook that came to stand before a site's own is warned of."""

import copy
import pickle

import pytest
import torch
from torch import nn

import gradroute as gr
from unit.router.small import LABELS, SPEC, mlp


@pytest.fixture
def for_all_modules():
    """Registers hooks for all modules, and takes them off again."""
    handles = []
    yield lambda hook: handles.append(nn.modules.module.register_module_forward_hook(hook))
    for handle in handles:
        handle.remove()


class TestHooksInFront:
    """A hook that came to stand before a site's own sees what is not routed yet; a loss on that teaches every unit."""

    @staticmethod
    def taught(model, router, seen):
        """What a loss on what the hook saw teaches the unit of label 1, in a batch without it."""
        model.zero_grad()
        with router(LABELS):
            model(torch.ones(2, 2))
            sum(each.sum() for each in seen).backward()
        return bool(model[0].bias.grad[1])

    @pytest.mark.parametrize("began_before", [False, True])
    @pytest.mark.parametrize("where", ["on the module", "for all modules"])
    def test_are_warned_of_once_by_the_next_block(self, for_all_modules, where, began_before):
        model, seen = mlp(), []
        router = gr.Router(model, {"0": SPEC})
        if began_before:
            with router(LABELS):
                model(torch.ones(2, 2))

        def keep(module, args, output):
            if module is model[0]:
                seen.append(output)

        if where == "on the module":
            model[0].register_forward_hook(keep, prepend=True)
        else:
            for_all_modules(keep)
        with pytest.warns(
            gr.UnroutedWarning, match="site '0': the forward hook '.*keep' sees what .* before it is rou"
        ):
            assert self.taught(model, router, seen)
        with router(LABELS):
            model(torch.ones(2, 2))

    @pytest.mark.filterwarnings("error::gradroute.UnroutedWarning")
    @pytest.mark.parametrize("when", ["before the router", "after the router", "by another router", "from torch"])
    def test_are_none_where_nothing_of_others_stands_before(self, when):
        model, seen = mlp(), []

        def keep(module, args, output):
            seen.append(output)

        if when == "before the router":
            model[0].register_forward_hook(keep, prepend=True)
        router = gr.Router(model, {"0": SPEC})
        if when == "after the router":
            model[0].register_forward_hook(keep)
        elif when == "by another router":
            gr.Router(model, {"0": SPEC})
        elif when == "from torch":
            model[0].register_forward_hook(torch.nn.functional.relu, prepend=True)
        if when.endswith("the router"):
            assert not self.taught(model, router, seen)
        else:
            with router(LABELS):
                pass

    @pytest.mark.filterwarnings("error::gradroute.UnroutedWarning")
    def test_at_level_parameters_see_what_is_routed(self):
        model, seen = mlp(), []
        router = gr.Router(model, {"0": gr.Site(SPEC, level="parameters")})
        model[0].register_forward_hook(lambda module, args, output: seen.append(output), prepend=True)
        assert not self.taught(model, router, seen)

    @pytest.mark.parametrize("again", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
    def test_are_seen_on_a_copy_too(self, again):
        original = mlp()
        model, router = again((original, gr.Router(original, {"0": SPEC})))
        model[0].register_forward_hook(lambda module, args, output: None, prepend=True)
        with pytest.warns(gr.UnroutedWarning, match="before it is routed"), router(LABELS):
            model(torch.ones(2, 2))
