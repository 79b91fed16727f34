"""The machine is strong enough: of each fault that is planted in gradroute, a bounded number of lives finds a trace."""

import contextlib

import pytest
from hypothesis import Phase, reject
from hypothesis import strategies as st

from adversary.life import Life
from adversary.models import NAMES, Dense
from adversary.passes import Crash, Lost
from adversary.test_machine import live
from gradroute.autograd import _functional as functional
from gradroute.router._site_mask import SiteMask
from gradroute.router.guards import _passes as passes
from gradroute.router.guards import _recomputations as recomputations
from gradroute.router.guards import _stray_copies as stray_copies
from gradroute.router.guards._placed import Placed
from gradroute.router.guards._uncalled import Uncalled

FAULTS = {
    "masks of activations": (functional, "masked_by", lambda grad, mask, dim: grad),
    "silent units": (functional, "silenced", lambda x, mask, dim, **_: x),
    "masks of parameters": (SiteMask, "on", lambda self, x: x),
    "labels of recomputations": (recomputations, "refuse_other_labels", lambda *_, **__: None),
    "missing labels": (passes, "warn_of_missing_labels", lambda hook: None),
    "stray copies": (stray_copies, "refuse_stray_copy", lambda hook, module, tensors: None),
    "bypassed modules": (Uncalled, "_warn_bypassed", lambda self, positions: None),
    "replaced modules": (Placed, "check", lambda self: None),
}


class Eager(Life):
    """A life without compilers, which take most of the time, and are not needed to meet any of the faults."""

    compiles_in = 0

    @contextlib.contextmanager
    def allowed(self, what):
        """A life in which the fault makes something crash is no trace of a lost mask: another one may be.

        Which lives come first hangs on what other tests have imported: Hypothesis tries the constants of these modules.
        """
        try:
            with super().allowed(what) as notes:
                yield notes
        except Crash:
            reject()


class EagerAndDense(Eager):
    """A life of models of which every module may be bypassed."""

    models = st.lists(
        st.sampled_from([name for name in NAMES if issubclass(NAMES[name], Dense)]), min_size=1, max_size=2
    )


class EagerAndAlone(Eager):
    """A life of models of one block: what is done to a block is done to one that has a site."""

    models = st.lists(st.sampled_from(list(NAMES)), min_size=1, max_size=1)


LIVES = {
    "bypassed modules": EagerAndDense,
    **dict.fromkeys(("replaced modules", "stray copies", "silent units"), EagerAndAlone),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch):
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(Lost):
        # As it comes, and not the smallest one: to shrink it takes minutes.
        live(
            LIVES.get(fault, Eager),
            max_examples=2500,
            derandomize=True,
            phases=[Phase.generate],
            report_multiple_bugs=False,
        )
