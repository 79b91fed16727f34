"""nn.DataParallel: its replicas share one router, whose labels are those of one batch. An error is the right answer."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

import gradroute as gr
from composition.forms import Routed, assert_same, batch, expected_gradients


@pytest.mark.supports("`nn.DataParallel` without a second device")
def test_without_gpus_data_parallel_is_the_module_and_routes(routed: Routed) -> None:
    x, labels = batch()
    routed(x, labels, via=nn.DataParallel(routed.module, device_ids=[])).square().sum().backward()
    assert_same(routed.gradients(), expected_gradients(x, labels))


@pytest.mark.refuses("`nn.DataParallel` over several devices", "UsageError", forms=["router"])
def test_a_replica_in_another_thread_refuses_the_labels_of_this_one() -> None:
    """What DataParallel does with a block around it: each replica runs in a thread of its own."""
    x, labels = batch()
    routed = Routed("router")
    replica = routed.net._replicate_for_data_parallel()
    replica.encoder = routed.net.encoder._replicate_for_data_parallel()
    replica.encoder.weight, replica.encoder.bias = routed.net.encoder.weight, routed.net.encoder.bias
    with routed.router(labels), ThreadPoolExecutor(1) as pool, pytest.raises(gr.RoutingError, match="another thread"):
        pool.submit(replica, x).result()


def test_a_replica_at_level_parameters_is_refused() -> None:
    """Its forward would be that of the module it was copied from, on that one's parameters."""
    layer = nn.Linear(3, 4)
    router = gr.Router(layer, {"": gr.Site(gr.RoutingSpec.one_per_label(4), level="parameters")})
    replica = layer._replicate_for_data_parallel()
    replica.weight, replica.bias = layer.weight.clone(), layer.bias.clone()
    with router(torch.tensor([0, 1])), pytest.raises(gr.RoutingError, match="nn.DataParallel make such copies"):
        replica(torch.ones(2, 3))


@pytest.mark.refuses("`nn.DataParallel` over several devices", "UsageError", forms=["routed_module"])
def test_two_threads_in_one_routed_module_never_exchange_their_labels() -> None:
    """At the same time in both threads, one of them is refused; whatever is not refused is routed rightly."""
    routed = Routed("routed_module")
    meet = Barrier(2, timeout=120)

    def wait(module: nn.Module, args: object) -> None:
        meet.wait()

    routed.net.encoder.register_forward_pre_hook(wait)

    def run(seed: int) -> torch.Tensor:
        try:
            return routed(*batch(seed=seed))
        except gr.RoutingError:
            meet.abort()
            raise

    with ThreadPoolExecutor(2) as pool:
        errors = [future.exception() for future in [pool.submit(run, seed) for seed in range(2)]]
    assert any(isinstance(error, gr.RoutingError) for error in errors), errors


@pytest.mark.supports("`nn.DataParallel` over several devices", forms=["functional"])
def test_labels_that_are_arguments_are_safe_in_threads() -> None:
    routed = Routed("functional")
    with ThreadPoolExecutor(2) as pool:
        losses = list(pool.map(lambda seed: routed(*batch(seed=seed)).square().sum(), range(8)))
    for seed, loss in enumerate(losses):
        routed.zero_grad()
        loss.backward()
        assert_same(routed.gradients(), expected_gradients(*batch(seed=seed)))
