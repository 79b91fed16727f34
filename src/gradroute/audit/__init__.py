"""Audit: where the gradient of each label goes, and what it trains although its route leaves it out.

`audit` runs the user's step on the examples of one label at a time (`groups`, `runs`), with nothing left changed
(`untouched`), and looks at the tensors of the sites on the way (`probes`). What belongs to a site's units and to
nothing else is found by experiment (`ownership`): what writes them by gradients, what reads them (`readers`) by nudging
them, in a model without kinks (`kinks`). What a label trains of that off its route is a bypass (`leaks`), and the graph
of the loss says by which path (`paths`). The outcome is a `report`.
"""

from .core import audit
from .report import AuditReport, Bypass, ParameterGradients, SiteGradients

__all__ = ["AuditReport", "Bypass", "ParameterGradients", "SiteGradients", "audit"]
