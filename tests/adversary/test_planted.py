"""The machine is strong enough: of each fault that is planted in gradroute, a bounded number of lives finds a trace."""

import pytest
from hypothesis import Phase

from adversary.passes import Lost
from adversary.test_machine import live
from gradroute.autograd import _functional as functional
from gradroute.router import _guards as guards
from gradroute.router._site_mask import SiteMask

FAULTS = {
    "masks of activations": (functional, "masked_by", lambda grad, mask, dim: grad),
    "silent units": (functional, "silenced", lambda x, mask, dim, **_: x),
    "masks of parameters": (SiteMask, "on", lambda self, x: x),
    "labels of recomputations": (guards, "refuse_other_labels_in_recomputation", lambda *_, **__: None),
    "missing labels": (guards, "warn_of_missing_labels", lambda hook: None),
    "stray copies": (guards, "refuse_stray_copy", lambda hook, module, tensors: None),
    "bypassed modules": (guards.Silence, "_warn_bypassed", lambda self, positions: None),
    "replaced modules": (guards.Placed, "check", lambda self: None),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch):
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(Lost):
        # As it comes, and not the smallest one: to shrink it takes minutes.
        live(max_examples=2500, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False)
