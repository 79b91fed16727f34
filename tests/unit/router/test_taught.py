"""`Taught`: which units some passes may have taught."""

import torch

import gradroute as gr
from gradroute.router._taught import Taught
from gradroute.testing import oracle_mask

SPECS = (gr.RoutingSpec.one_per_label(3), gr.RoutingSpec({0: [0, 1], 1: 2, 2: []}, 4, shared=3))


def masks(labels):
    return tuple(spec.masks.resolve(labels) for spec in SPECS)


def expected(*batches):
    return [torch.stack([oracle_mask(spec, labels).any(0) for labels in batches]).any(0) for spec in SPECS]


def same(taught, units):
    return all(torch.equal(found, wanted) for found, wanted in zip(taught.units, units, strict=True))


def test_it_is_the_union_of_what_the_passes_may_teach():
    taught = Taught(spec.width for spec in SPECS)
    assert not any(units.any() for units in taught.units)
    one, other = torch.tensor([0, 0]), torch.tensor([2])
    taught.note(masks(one))
    assert same(taught, expected(one))
    taught.note(masks(other))
    assert same(taught, expected(one, other))


def test_what_was_cleared_is_noted_again_by_the_same_masks():
    taught = Taught(spec.width for spec in SPECS)
    labels = torch.tensor([1])
    same_masks = masks(labels)
    for _ in range(2):
        taught.note(same_masks)
        assert same(taught, expected(labels))
        taught.clear()
        assert not any(units.any() for units in taught.units)
    taught.note_everything()
    assert all(units.all() for units in taught.units)


def test_a_pass_without_labels_teaches_every_unit_of_its_group_alone():
    taught = Taught(spec.width for spec in SPECS)
    taught.note_unrouted(1)
    assert [units.all().item() for units in taught.units] == [False, True]


def test_a_pass_under_a_transform_is_noted_for_good():
    taught = Taught(spec.width for spec in SPECS)
    labels = torch.tensor([0])
    torch.func.grad(lambda x: (taught.note(masks(labels)), x.sum())[1])(torch.ones(2))
    assert same(taught, expected(labels))
    assert not any(torch._C._functorch.is_functorch_wrapped_tensor(units) for units in taught.units)
