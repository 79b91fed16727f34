"""From labels to weights: what labels hold, and how few rows are kept."""

import torch

import gradroute as gr


def test_labels_hold_the_keys_where_all_are_integers_and_ids_where_not():
    keys = gr.RoutingSpec({7: 0, 3: 1}, 2)
    assert keys.labels == (7, 3)
    assert keys.encode([3, 7]).tolist() == [3, 7]
    assert keys.mask(torch.tensor([3, 7])).tolist() == [[0, 1], [1, 0]]
    ids = gr.RoutingSpec({7: 0, "x": 1}, 2)
    assert ids.encode(["x", 7, gr.UNLABELED]).tolist() == [1, 0, -1]
    assert ids.mask(torch.tensor([1, 0])).tolist() == [[0, 1], [1, 0]]


def test_many_labels_with_few_routes_are_stored_as_few_rows():
    spec = gr.RoutingSpec({token: token % 2 for token in range(50_000)}, 2)
    assert spec.masks.rows.shape == (3, 2)
    assert torch.equal(spec.mask(torch.tensor([49_999, 0, -1])), torch.tensor([[0.0, 1], [1, 0], [1, 1]]))
