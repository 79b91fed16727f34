"""Two layers around routed units, optimizers of all kinds, and what moves in a step."""

import torch
from torch import nn

import gradroute as gr

SPEC = gr.RoutingSpec({"retain": slice(0, 3), "forget": [3, 5]}, 7, shared=[4, 6], unlabeled="none")
RETAIN, FORGET = SPEC.encode(["retain"]), SPEC.encode(["forget"])
BOTH = SPEC.encode(["retain", "forget"])
NOBODY = torch.tensor([gr.UNLABELED])


class Neurons(nn.Module):
    """Two layers around the units, of which the first writes them; at level "parameters" the second reads them."""

    def __init__(self, bias=True):
        super().__init__()
        self.writer = nn.Linear(4, SPEC.width, bias=bias)
        self.reader = nn.Linear(SPEC.width, 3, bias=bias)

    def forward(self, x):
        return self.reader(torch.tanh(self.writer(x)))


WRITER = {"writer": SPEC}
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, dampening=0.5),
    "SGD nesterov foreach": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, foreach=True
    ),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, foreach=False),
    "Adam amsgrad maximize": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, amsgrad=True, maximize=True),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, amsgrad=True, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "AdamW tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1), weight_decay=0.1, foreach=False),
    "Adadelta": lambda p: torch.optim.Adadelta(p, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1, initial_accumulator_value=0.5),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1, fused=True),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.1, weight_decay=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1, weight_decay=0.1, t0=1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.1, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, weight_decay=0.1, centered=True, momentum=0.9),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["Muon"] = lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], lr=0.1, weight_decay=0.1)


def teach(router, labels):
    """A batch goes by whose examples have these labels; tests make up the gradients."""
    with router(labels):
        pass


def gradients_everywhere(model, scale=1.0):
    """Nonzero also for untaught units, as where somebody reads the weights past the router."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * scale


def tensors(model, optimizer):
    """All parameters and the state of the parameters' shape, by name: copies."""
    found = {}
    for name, parameter in model.named_parameters():
        found[name] = parameter.detach().clone()
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                found[f"{name}: {key}"] = value.clone()
    return found


STEPS = [RETAIN, BOTH, FORGET, RETAIN, NOBODY, RETAIN, BOTH]


def moved_units(model, step):
    """Which units' writers change in a call."""
    before = model.writer.weight.detach().clone()
    step()
    return (model.writer.weight != before).any(1).nonzero().flatten().tolist()
