"""`DeferredMask`: gives nothing away before its labels are there, and then what the mask gives."""

import pytest
import torch

import gradroute as gr
from gradroute.errors import LabelError, UsageError
from gradroute.spec._deferred_mask import DeferredMask
from gradroute.spec._masks import Mask

SPEC = gr.RoutingSpec.one_per_label(3)
LABELS = torch.tensor([0, 2])


class Box:
    def __init__(self):
        self.mask, self.noted = None, 0

    def note(self):
        self.noted += 1


@pytest.fixture
def box():
    return Box()


@pytest.fixture
def deferred(box):
    return DeferredMask(SPEC.masks, lambda: box.mask, box.note, set())


def test_there_is_nothing_to_read_before_the_labels_are_there(deferred, box):
    """Whatever reads labels goes by `known`: nothing else of a mask is there that could be taken for an open one."""
    assert deferred.if_known() is None
    assert deferred.width == 3
    with pytest.raises(UsageError, match="labels were not set"):
        deferred.known()
    with pytest.raises(UsageError, match="labels come too late: .* since it rains"):
        deferred.known_in_forward("it rains")
    assert box.noted == 0
    public = {name for name in vars(Mask) if not name.startswith("_")}
    missing = public - {name for name in dir(deferred) if not name.startswith("_")}
    assert {"labels", "kind", "shape", "tensor", "bits", "taught", "is_hard"} <= missing


def test_then_it_is_the_mask_and_notes_each_time_that_it_is_applied(deferred, box):
    box.mask = SPEC.masks.resolve(LABELS)
    assert deferred.if_known() is box.mask
    assert box.noted == 0
    assert deferred.known() is deferred.known_in_forward("") is box.mask
    assert box.noted == 2


def test_checks_what_needs_no_labels_at_once_and_the_rest_when_they_are_there(deferred, box):
    assert deferred.check_fits(torch.Size((2, 3)), -1) == 1
    assert deferred.check_fits(torch.Size((5, 3)), -1) == 1
    with pytest.raises(LabelError, match="the spec routes 3 units, but"):
        deferred.check_fits(torch.Size((2, 4)), -1)
    with pytest.raises(LabelError, match="dim 2 does not exist"):
        deferred.check_fits(torch.Size((2, 3)), 2)
    deferred.check_device(torch.device("cpu"))
    box.mask = SPEC.masks.resolve(LABELS)
    assert deferred.check_fits(torch.Size((2, 3)), -1) == 1
    with pytest.raises(LabelError, match=r"labels of shape \(2,\) do not fit"):
        deferred.check_fits(torch.Size((5, 3)), -1)
    box.mask = SPEC.masks.resolve(LABELS.to("meta"))
    with pytest.raises(LabelError, match="meta device"):
        deferred.check_device(torch.device("cpu"))


def test_a_mask_that_is_known_is_its_own():
    mask = SPEC.masks.resolve(LABELS)
    assert mask.known() is mask.if_known() is mask.known_in_forward("") is mask


def test_a_backward_pass_that_is_traced_is_refused_since_it_would_keep_these_labels(deferred, box, monkeypatch):
    box.mask = SPEC.masks.resolve(LABELS)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(UsageError, match="compiled autograd cannot run backward"):
        deferred.known()
