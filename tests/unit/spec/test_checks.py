"""What a spec is given, in one form."""

import numpy as np
import pytest

import gradroute as gr
from gradroute.errors import SpecError
from gradroute.spec._checks import canonical_label, positive_int


def test_integers_of_other_types_become_those_of_python():
    assert type(canonical_label(np.int64(3))) is int
    assert type(positive_int(np.int32(3), "k")) is int
    assert gr.RoutingSpec({np.int64(3): np.int64(0)}, np.int64(1)) == gr.RoutingSpec({3: 0}, 1)


@pytest.mark.parametrize("sizes", [[1, 2], (3,), 4, "ab", None, {"a"}])
def test_sizes_that_are_no_mapping_are_refused(sizes):
    with pytest.raises(SpecError, match="sizes must be a mapping .*'retain': 30.*; got"):
        gr.RoutingSpec.split(sizes)


@pytest.mark.parametrize("names", [3, None])
def test_names_that_are_no_sequence_are_refused(names):
    with pytest.raises(SpecError, match=f"names must be a sequence of labels; got {names}: write"):
        gr.RoutingSpec.one_per_label(3).encode(names)
