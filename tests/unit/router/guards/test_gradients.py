"""Gradients are noticed as they come, and those of views that were changed in place, too."""

import torch

from gradroute.router.guards._gradients import when_gradients_come


def test_each_tensor_that_gets_a_gradient_is_noticed():
    seen = []
    x = torch.ones(2, requires_grad=True)
    a, b, c = x * 1, x * 2, x * 3
    when_gradients_come({"a": a, "others": [(b, c), torch.ones(2), "text"]}, seen.append)
    (a + c).sum().backward()
    assert len(seen) == 2


def test_a_view_that_was_changed_in_place_is_noticed():
    seen = []
    view = (torch.ones(2, requires_grad=True) * 1).view(2, 1)
    when_gradients_come(view, seen.append)
    view.relu_()
    view.sum().backward()
    assert len(seen) == 1


def test_a_view_of_what_gets_no_gradient_is_noticed():
    seen = []
    with torch.no_grad():
        view = torch.ones(4)[:2]
    view.requires_grad_()
    when_gradients_come(view, seen.append)
    view.sum().backward()
    assert len(seen) == 1
