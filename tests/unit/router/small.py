"""The spec, labels and model of three layers that the router's tests share."""

import torch
from torch import nn

import gradroute as gr

SPEC = gr.RoutingSpec.one_per_label(3)
LABELS = torch.tensor([0, 2])
UNLABELED = torch.full((2,), gr.UNLABELED)


def mlp():
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1))


def bias_gradient(model, layer=0, x=None):
    model.zero_grad()
    model(torch.ones(2, 2) if x is None else x).sum().backward()
    return model[layer].bias.grad.clone()
