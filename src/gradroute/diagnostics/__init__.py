"""What happened to the gradients: audits, a watch on the optimizer, and what each label's units have learned.

The three functions are `gradroute.audit`, `gradroute.watch` and `gradroute.specialization`. Here are what they return,
and the audit that repeats itself while training.
"""

from ._specialization_report import Estimate, Slice, SpecializationReport
from ._watch import Watch
from ._watch_report import Move, WatchReport
from .audit import (
    AuditReport,
    Bypass,
    BypassWarning,
    ParameterGradients,
    PeriodicAudit,
    SiteGradients,
    lightning_callback,
    transformers_callback,
)

__all__ = [
    "AuditReport",
    "Bypass",
    "BypassWarning",
    "Estimate",
    "Move",
    "ParameterGradients",
    "PeriodicAudit",
    "SiteGradients",
    "Slice",
    "SpecializationReport",
    "Watch",
    "WatchReport",
    "lightning_callback",
    "transformers_callback",
]
