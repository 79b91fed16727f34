"""Whether other code than a layer reads its weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradroute as gr
from gradroute.errors import SiteError
from gradroute.router._attachment import attachment_of
from gradroute.surgery._weight_reads import code_besides_layers, refused_elsewhere

SPEC = gr.RoutingSpec.one_per_label(4)


class Reads(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.how = how

    def forward(self, x):
        return self.how(self, x)


def run(how):
    model = Reads(how)
    (site,) = attachment_of(gr.Router(model, {"layer": SPEC})).sites
    with refused_elsewhere(dict.fromkeys(model.layer.parameters(), site)):
        model(torch.randn(2, 3))


ELSEWHERE = {
    "functional": lambda m, x: F.linear(x, m.layer.weight),
    "a view of it": lambda m, x: m.layer(x) + m.layer.weight[1].sum(),
    "its data": lambda m, x: m.layer(x) * m.layer.weight.detach().norm(),
    "in a list": lambda m, x: m.layer(x) + torch.cat([m.layer.weight, m.layer.weight]).sum(),
    "by name": lambda m, x: torch.add(input=m.layer(x), other=m.layer.bias),
}
HERE = {
    "the layer itself": lambda m, x: m.layer(x),
    "twice": lambda m, x: m.layer(x) + m.layer(-x),
    "its shape": lambda m, x: m.layer(x) / m.layer.weight.size(0) / m.layer.weight.shape[1],
}


@pytest.mark.parametrize("how", ELSEWHERE.values(), ids=ELSEWHERE)
def test_other_code_that_reads_a_weight_is_refused(how):
    with pytest.raises(SiteError, match="site 'layer': the weights of this Linear are read by other code"):
        run(how)


@pytest.mark.parametrize("how", HERE.values(), ids=HERE)
def test_the_layer_itself_may_read_them(how):
    run(how)


def test_layers_of_torch_in_sequentials_are_proved_and_nothing_else_is():
    proved = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    assert code_besides_layers(proved) is None
    gr.Router(proved, {"0": SPEC})
    assert code_besides_layers(proved) is None, "a router's own hooks"
    assert "is a Reads" in code_besides_layers(Reads(HERE["twice"]))
    assert "is a Reads" in code_besides_layers(nn.Sequential(Reads(HERE["twice"])))
    proved[0].register_forward_hook(lambda *_: None)
    assert "has hooks" in code_besides_layers(proved)


def test_another_forward_method_may_read_anything():
    model = nn.Sequential(nn.Linear(3, 4))
    model[0].forward = lambda x: x
    assert "another forward method" in code_besides_layers(model)
