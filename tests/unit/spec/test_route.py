"""`Route`, and the forms that an index may have."""

import numpy as np
import torch

import gradroute as gr


def test_arrays_scalars_and_ranges_are_indices():
    expected = gr.RoutingSpec({0: [1, 2]}, 4)
    for index in (np.array([2, 1]), np.array([False, True, True, False]), range(1, 3), torch.tensor([1, 2, 2]), {1, 2}):
        assert gr.RoutingSpec({0: index}, 4) == expected
    assert gr.RoutingSpec({np.int64(0): np.int64(1)}, np.int32(4)) == gr.RoutingSpec({0: 1}, 4)


def test_a_route_of_no_units_teaches_the_shared_ones_only():
    spec = gr.RoutingSpec({"nothing": [], "all": slice(None)}, 3, shared=2)
    assert spec.mask(spec.encode(["nothing"])).tolist() == [[0, 0, 1]]
    assert spec.indices("nothing") == ()


def test_a_label_s_own_weight_wins_over_that_of_the_shared_block():
    spec = gr.RoutingSpec({0: gr.Route([0, 1], 0.5, elsewhere=-1.0)}, 4, shared=[1, 2], unlabeled=gr.Route(0, 2.0))
    assert spec.table.tolist() == [[0.5, 0.5, 1, -1], [2, 1, 1, 0]]
