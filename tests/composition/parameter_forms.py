"""The network of `forms` with sites of level "parameters" on what writes and what reads its units, and its oracle."""

import torch
from torch import Tensor
from torch.nn import functional as F

import gradroute as gr
from composition.forms import SPEC, Net, Routed, oracle_off, oracle_rows
from gradroute.testing._oracle import silenced


def sites(spec: gr.RoutingSpec) -> dict[str, gr.Site]:
    return {
        "encoder": gr.Site(spec, level="parameters"),
        "decoder": gr.Site(spec, on="input", level="parameters"),
    }


class Oracle(Net):
    """For each example, parameters that learn by its mask: a part with the parameters, a part with fixed ones."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        mask = oracle_rows(labels, self.spec)
        fixed = {name: parameter.detach() for name, parameter in self.named_parameters()}
        learning, rest = self.encoder(x), F.linear(x, fixed["encoder.weight"], fixed["encoder.bias"])
        z = scaled(learning, mask) + scaled(rest, 1 - mask) - rest.detach()
        h = torch.tanh(silenced(z, oracle_off(labels, self.spec)) if self.spec.silent else z)
        # tanh is smooth, so a value that is off by rounding would be seen; the sum above is exact up to rounding.
        return F.linear(h * mask, self.decoder.weight, self.decoder.bias) + F.linear(
            h * (1 - mask), fixed["decoder.weight"]
        )


def scaled(x: Tensor, mask: Tensor) -> Tensor:
    """The value of x, with its derivatives times the mask."""
    return mask * x + ((1 - mask) * x).detach()


def routed(form: str, spec: gr.RoutingSpec = SPEC) -> Routed:
    return Routed(form, sites=sites(spec), spec=spec)


def oracle(spec: gr.RoutingSpec = SPEC) -> Routed:
    return Routed("oracle", Oracle, spec=spec)


def expected(x: Tensor, labels: Tensor, spec: gr.RoutingSpec = SPEC) -> dict[str, Tensor | None]:
    model = oracle(spec)
    model.net.to(x.dtype)
    model(x, labels).square().sum().backward()
    return model.gradients()
