"""The laws of `RoutingSpec`: what its tensors hold, and that it survives every round trip."""

import copy
import json
import pickle

import torch
from hypothesis import given
from hypothesis import strategies as st

import gradroute as gr
from gradroute import Route, RoutingSpec  # names that a spec's repr uses
from gradroute.testing import indices, label_tensors, oracle_mask, specs
from gradroute.testing._oracle import oracle_row


@given(specs())
def test_table_holds_each_label_in_order_and_unlabeled_last(spec):
    rows = [oracle_row(spec, label) for label in (*spec.labels, gr.UNLABELED)]
    assert spec.table.dtype == torch.float32
    assert torch.equal(spec.table, torch.tensor(rows))


@given(st.data())
def test_mask_is_what_the_definitions_say_for_every_kind_of_labels(data):
    spec = data.draw(specs())
    shape = tuple(data.draw(st.lists(st.integers(0, 3), max_size=3)))
    batch_labels = data.draw(label_tensors(spec, shape))
    assert torch.equal(spec.mask(batch_labels), oracle_mask(spec, batch_labels))


@given(specs())
def test_encode_names_the_row_of_each_label(spec):
    ids = spec.encode([*spec.labels, gr.UNLABELED])
    assert torch.equal(spec.mask(ids), spec.table)


@given(specs())
def test_a_single_label_as_a_set_or_a_mixture_is_that_label(spec):
    assert torch.equal(spec.mask(torch.eye(len(spec.labels)).bool()), spec.table[:-1])
    assert torch.equal(spec.mask(torch.eye(len(spec.labels))), spec.table[:-1])


@given(specs())
def test_spec_survives_every_round_trip(spec):
    for again in (
        eval(repr(spec)),
        RoutingSpec.from_dict(json.loads(json.dumps(spec.to_dict()))),
        pickle.loads(pickle.dumps(spec)),
        copy.deepcopy(spec),
    ):
        assert again == spec
        assert hash(again) == hash(spec)
        assert again.labels == spec.labels
        assert torch.equal(again.table, spec.table)


@given(specs(), specs())
def test_equal_specs_have_equal_tables_and_hashes(a, b):
    if a == b:
        assert hash(a) == hash(b)
        assert torch.equal(a.table, b.table)
    elif a.labels == b.labels and a.width == b.width:
        assert a.routes != b.routes or a.shared != b.shared or a.unlabeled != b.unlabeled or a.silent != b.silent


@given(specs(), st.integers(1, 4))
def test_repeat_repeats_the_columns_of_the_table(spec, k):
    repeated = spec.repeat(k)
    assert repeated.labels == spec.labels
    assert torch.equal(repeated.table, spec.table.repeat_interleave(k, dim=1))


@given(st.data(), st.integers(1, 6))
def test_the_kinds_of_index_for_the_same_units_make_equal_specs(data, width):
    index = data.draw(indices(width))
    units = Route(index).units(width)
    assert RoutingSpec({0: index}, width) == RoutingSpec({0: units}, width)
    assert RoutingSpec({0: index}, width).indices(0) == units == tuple(sorted(set(units)))


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 3))
def test_split_lays_blocks_side_by_side_with_the_shared_one_last(sizes, shared):
    if sum(sizes.values()) + shared == 0:
        return
    spec = RoutingSpec.split(sizes, shared=shared)
    blocks = [spec.indices(label) for label in sizes]
    assert [len(block) for block in blocks] == list(sizes.values())
    assert [unit for block in blocks for unit in block] + list(spec.shared) == list(range(spec.width))


@given(st.data())
def test_exclusive_units_are_those_that_no_other_label_teaches(data):
    spec = data.draw(specs())
    chosen = data.draw(st.lists(st.sampled_from(spec.labels), unique=True))

    def named(unit, label):
        return unit in spec.indices(label) and spec.routes[label].weight != 0

    assert spec.exclusive(*chosen) == tuple(
        unit
        for unit in range(spec.width)
        if any(named(unit, label) for label in chosen)
        and unit not in spec.shared
        and not any(named(unit, label) for label in spec.labels if label not in chosen)
    )
