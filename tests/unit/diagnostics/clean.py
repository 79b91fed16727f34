"""A model without bypasses, and what an audit found."""

from torch import nn

from gradroute.diagnostics import AuditReport
from planted import READS, SPEC, WIDTH


def found(report: AuditReport) -> set[tuple[str, str]]:
    return {(bypass.target, bypass.kind) for bypass in report.bypasses}


def net() -> nn.Sequential:
    """Clean: writers behind a site, readers under one, no bias that all share."""
    return nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))


SITES = {"0": SPEC, "2": READS}


def step_of(model: nn.Module):
    return lambda x: model(x).square().mean()
