"""What a type checker must refuse: the lines that end in ``# E``, with the codes after it where it names some.

Never run. It shows that what `uses_every_name` passes is checked at all, and that nothing public is `Any` in disguise.
"""

from typing import assert_type

import torch
from torch import nn

import gradroute as gr
from gradroute.blocks import block_sites
from gradroute.optim import Isolation, clip_grad_norm_per_route_
from gradroute.surgery import add_units_, contract, remove_units_


def arguments(spec: gr.RoutingSpec, router: gr.Router, model: nn.Module) -> None:
    gr.Route("retain")  # E: arg-type
    gr.RoutingSpec({0: 0}, "10")  # E: arg-type
    gr.RoutingSpec({0: 0}, 1, unlabeled="some")  # E: arg-type
    gr.RoutingSpec({0: 0}, 1, 0)  # E
    gr.route(torch.ones(1), [0], spec)  # E: arg-type
    gr.route(torch.ones(1), torch.tensor([0]), spec, 1)  # E
    gr.Site(spec, on="outputs")  # E: arg-type
    gr.Site(spec, level="weights")  # E: arg-type
    gr.Site(spec, "input")  # E
    gr.Router(model, spec)  # E: arg-type
    router([0, 1])  # E: arg-type
    Isolation(router, model)  # E: arg-type
    add_units_(model, model, "2")  # E: arg-type
    contract(router, "forget")  # E: call-arg
    spec.width = 3  # E
    router.labels = torch.tensor([0])  # E
    with router:  # E: attr-defined, attr-defined
        pass


def results(spec: gr.RoutingSpec, router: gr.Router, model: nn.Module) -> None:
    assert_type(gr.UNLABELED, str)  # E: assert-type
    assert_type(gr.route(torch.ones(1), torch.tensor([0]), spec), str)  # E: assert-type
    assert_type(spec.mask(torch.tensor([0])), str)  # E: assert-type
    assert_type(router.sites, str)  # E: assert-type
    assert_type(clip_grad_norm_per_route_(router, 1.0), str)  # E: assert-type
    assert_type(block_sites(model, mlp=spec), str)  # E: assert-type
    assert_type(contract(router, example=torch.ones(1)), str)  # E: assert-type
    remove_units_(model, model, 3)  # E: arg-type
