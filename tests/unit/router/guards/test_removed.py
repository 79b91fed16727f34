"""A router that is removed inside of its block, or before a forward pass of it is recomputed."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import gradroute as gr
from gradroute.errors import UsageError
from unit.router.small import LABELS, SPEC, mlp


class TestRemovedBeforeTheRecomputation:
    @staticmethod
    def checkpointed(spec, *, reentrant, level="activations", ablated=False):
        model = mlp()
        router = gr.Router(model, {"0": gr.Site(spec, level=level)})
        x = torch.ones(2, 2, requires_grad=True)
        with router(LABELS):
            if ablated:
                with router.ablated(1):
                    loss = checkpoint(model, x, use_reentrant=reentrant).sum()
            else:
                loss = checkpoint(model, x, use_reentrant=reentrant).sum()
        return model, router, loss

    @pytest.mark.parametrize("level", ["activations", "parameters"])
    def test_a_reentrant_pass_raises_in_backward(self, level):
        _, router, loss = self.checkpointed(SPEC, reentrant=True, level=level)
        router.remove()
        with pytest.raises(UsageError, match="the router that it first ran under was removed"):
            loss.backward()

    @pytest.mark.filterwarnings("error::gradroute.UnroutedWarning")
    def test_another_is_routed_as_it_was(self):
        model, router, loss = self.checkpointed(SPEC, reentrant=False)
        router.remove()
        loss.backward()
        assert model[0].bias.grad.ne(0).tolist() == [True, False, True]

    def test_another_at_level_parameters_raises_in_backward(self):
        _, router, loss = self.checkpointed(SPEC, reentrant=False, level="parameters")
        router.remove()
        with pytest.raises(torch.utils.checkpoint.CheckpointError):
            loss.backward()

    @pytest.mark.parametrize("ablated", [False, True])
    def test_another_with_units_that_were_off_is_warned_of(self, ablated):
        quiet = gr.RoutingSpec.one_per_label(3, silent="others")
        _, router, loss = self.checkpointed(SPEC if ablated else quiet, reentrant=False, ablated=ablated)
        with pytest.warns(gr.UnroutedWarning, match="removed while activation checkpointing is still to run"):
            router.remove()
        del loss

    @pytest.mark.filterwarnings("error::gradroute.UnroutedWarning")
    @pytest.mark.parametrize("after", ["backward", "the graph is gone"])
    def test_nothing_is_said_of_a_pass_that_nobody_runs_again(self, after):
        quiet = gr.RoutingSpec.one_per_label(3, silent="others")
        _, router, loss = self.checkpointed(quiet, reentrant=False)
        if after == "backward":
            loss.backward()
        else:
            del loss
        router.remove()


class TestRemovedInABlock:
    @pytest.mark.parametrize(
        "block", [lambda router: router(LABELS), lambda router: router.deferred(), lambda router: router.ablated(1)]
    )
    def test_is_warned_of_where_it_happens(self, block):
        model = mlp()
        router = gr.Router(model, {"0": SPEC})
        with (
            pytest.warns(gr.UnroutedWarning, match="removed inside of a `with` block of its own") as caught,
            block(router),
        ):
            router.remove()
        assert caught[0].filename == __file__

    @pytest.mark.filterwarnings("error")
    def test_is_not_where_the_blocks_have_ended(self):
        router = gr.Router(mlp(), {"0": SPEC})
        with router(LABELS):
            pass
        router.remove()
        router.remove()
