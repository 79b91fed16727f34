"""Audit: where the gradient of each label goes, and what it trains although its route leaves it out.

`audit` runs the user's step on the examples of one label at a time (`harness`), with nothing left changed, and looks at
the tensors of the sites on the way. What belongs to a site's units and to nothing else is found by experiment
(`_ownership`): what writes them by gradients, what reads them (`_weight_reads`) by nudging them, in a model without
kinks (`_smooth_activations`). What a label trains of that off its route is a bypass (`_bypasses`), and the graph of the
loss says by which path (`_graph_paths`). The outcome is a `_report`; `_periodic` repeats it while training.
"""

from ._audit import audit
from ._periodic import BypassWarning, PeriodicAudit, lightning_callback, transformers_callback
from ._report import AuditReport, Bypass, ParameterGradients, SiteGradients

__all__ = [
    "AuditReport",
    "Bypass",
    "BypassWarning",
    "ParameterGradients",
    "PeriodicAudit",
    "SiteGradients",
    "audit",
    "lightning_callback",
    "transformers_callback",
]
