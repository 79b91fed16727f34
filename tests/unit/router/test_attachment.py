"""What a router and its model know of each other: when they are copied, and when the router is gone."""

import copy
import pickle

import pytest
import torch

import gradroute as gr
from gradroute.errors import UsageError
from unit.router.small import LABELS, SPEC, bias_gradient, mlp


class TestLife:
    def test_a_removed_router_refuses_to_route(self):
        router = gr.Router(mlp(), {"0": SPEC})
        router.remove()
        for use in (lambda: router(LABELS), lambda: router.ablated(0)):
            with pytest.raises(UsageError, match="this router was removed"):
                use()
        assert repr(router) == "Router(removed)"

    @pytest.mark.parametrize(
        "again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
    )
    def test_a_copy_made_inside_of_an_ablated_block_has_nothing_off(self, again):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        with router.ablated(0):
            copied, its_router = again((model, router))
        with router(LABELS), its_router(LABELS):
            assert torch.equal(copied(torch.ones(2, 2)), model(torch.ones(2, 2)))

    @pytest.mark.parametrize("again", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
    def test_a_copy_of_model_and_router_together_routes_on_its_own(self, again):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        with router(LABELS):
            expected = bias_gradient(model)
            twin, twin_router = again((model, router))
            assert twin_router.labels is None
        with twin_router(LABELS):
            assert torch.equal(bias_gradient(twin), expected)
        twin_router.remove()
        assert not twin[0]._forward_hooks
        assert model[0]._forward_hooks
        with pytest.raises(UsageError, match="this router was removed"):
            again((twin, twin_router))[1](LABELS)
