"""What the hooks read: the masks that are in flight, by router and thread."""

from torch import nn

import gradroute as gr
from gradroute.router._attachment import attachment_of
from gradroute.router._in_flight import IN_FLIGHT, IN_THREAD


def test_masks_whose_labels_come_late_are_in_flight_also_in_a_thread_that_autograd_began(monkeypatch):
    """Where compiled code, from which they are kept, reads the same table."""
    layer = nn.Linear(2, 3)
    router = gr.Router(layer, {"": gr.RoutingSpec.one_per_label(3)})
    state = attachment_of(router).state
    for of_thread in ({}, IN_FLIGHT):
        monkeypatch.setattr(IN_THREAD, "masks", of_thread)
        with router.deferred():
            assert state.is_deferred
            assert len(state.masks) == 1
            assert (state.name in of_thread) is (of_thread is IN_FLIGHT)
        assert state.name not in IN_FLIGHT
        assert not state.is_deferred
