"""Construction, checks and errors of `RoutingSpec`."""

import copy
from collections.abc import Mapping

import numpy as np
import pytest
import torch

import gradroute as gr
from gradroute.errors import SpecError


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gr.RoutingSpec({"a": 5}, 5), r"route of label 'a': index 5 is outside the width: .* 0 to 4"),
        (lambda: gr.RoutingSpec({0: [1, 7, 9]}, 5), r"index 7, 9 is outside the width"),
        (lambda: gr.RoutingSpec({0: -1}, 5), r"index -1 is outside the width"),
        (lambda: gr.RoutingSpec({0: slice(0, 6)}, 5), r"slice\(0, 6, None\) reaches outside the width of 5"),
        (lambda: gr.RoutingSpec({0: slice(-6, None)}, 5), "reaches outside the width of 5"),
        (lambda: gr.RoutingSpec({0: [True, False]}, 5), "one entry per unit: expected 5, got 2"),
        (lambda: gr.RoutingSpec({0: 0}, 5, shared=[5]), "shared: index 5 is outside the width"),
        (lambda: gr.RoutingSpec({0: 0}, 5, unlabeled=gr.Route(9)), "unlabeled: index 9 is outside the width"),
        (
            lambda: gr.RoutingSpec({0: 0}, 5, unlabeled="everything"),
            "unlabeled must be 'all', 'none', 'shared' or a Route",
        ),
        (lambda: gr.RoutingSpec({}, 5), "routes is empty"),
        (lambda: gr.RoutingSpec([0, 1], 5), "routes must be a mapping"),
        (lambda: gr.RoutingSpec({-1: 0}, 5), r"integer labels must be at least 0 \(-1 marks unlabeled data\); got -1"),
        (lambda: gr.RoutingSpec({10**9: 0}, 5), "use string labels"),
        (lambda: gr.RoutingSpec({float("nan"): 0}, 5), "NaN cannot be a label"),
        (lambda: gr.RoutingSpec({0: 0}, 0), "width must be an integer of at least 1; got 0"),
        (lambda: gr.RoutingSpec({0: 0}, 2.0), "width must be an integer of at least 1; got 2.0"),
        (lambda: gr.RoutingSpec.one_per_label(0), "n must be an integer of at least 1; got 0"),
        (lambda: gr.RoutingSpec.split({"a": -1, "b": 2}), "the size of block 'a' must be an integer of at least 0"),
        (lambda: gr.RoutingSpec.split({"a": 0}), "width must be an integer of at least 1"),
        (lambda: gr.RoutingSpec.one_per_label(2).repeat(0), "k must be an integer of at least 1"),
        (lambda: gr.Route("ab"), "an index must be an integer, a slice"),
        (lambda: gr.Route(1.5), r"an index must be an integer, .* got 1.5"),
        (lambda: gr.Route(True), "an index must be an integer"),
        (lambda: gr.Route([0, True]), "an index must be an integer"),
        (lambda: gr.Route(slice(0.5, 1)), "a slice index needs integer bounds"),
        (lambda: gr.Route(0, weight=float("nan")), "weight must be a finite number; got nan"),
        (lambda: gr.Route(0, elsewhere=float("inf")), "elsewhere must be a finite number; got inf"),
        (lambda: gr.Route(0, weight="1"), "weight must be a finite number; got '1'"),
        (
            lambda: gr.RoutingSpec({"retain": 0}, 2).indices("retian"),
            "'retian' is not a label .* Did you mean 'retain'",
        ),
        (lambda: gr.RoutingSpec({"retain": 0}, 2).encode(["retian"]), "Did you mean 'retain'"),
        (lambda: gr.RoutingSpec({"retain": 0}, 2).encode("retain"), r"single string 'retain': write \['retain'\]"),
        (lambda: gr.RoutingSpec({3: 0}, 2).encode([0]), "0 is not a label of this spec. Known: 3"),
        (lambda: gr.RoutingSpec({("a", 1): 0}, 2).to_dict(), r"label \('a', 1\) is a tuple, which JSON cannot carry"),
        (lambda: gr.RoutingSpec.from_dict({"routes": []}), "expected the keys .* got 'routes'"),
        (lambda: gr.RoutingSpec.from_dict("{}"), "not a dict that RoutingSpec.to_dict wrote"),
    ],
)
def test_misuse_is_an_error_at_construction_that_says_what_to_do(build, message):
    with pytest.raises(SpecError, match=message):
        build()


def test_encode_takes_nested_lists_arrays_and_tensors():
    spec = gr.RoutingSpec({3: 0, 5: 1}, 2)
    for names in ([[3, 5], [-1, 3]], np.array([[3, 5], [-1, 3]]), torch.tensor([[3, 5], [-1, 3]])):
        assert torch.equal(spec.encode(names), torch.tensor([[3, 5], [-1, 3]]))


def test_a_spec_is_frozen():
    spec = gr.RoutingSpec.one_per_label(2)
    with pytest.raises(AttributeError):
        spec.width = 3
    with pytest.raises(TypeError):
        spec.routes[0] = gr.Route(1)
    spec.table.zero_()
    assert spec.table.any(), "the table that a caller gets is the caller's own"
    assert copy.deepcopy(spec) is spec


def test_order_of_labels_is_part_of_a_spec():
    assert gr.RoutingSpec({"a": 0, "b": 1}, 2) != gr.RoutingSpec({"b": 1, "a": 0}, 2)
    assert gr.RoutingSpec({"a": 0}, 2) != "a"


def test_repr_of_many_labels_is_short():
    assert repr(gr.RoutingSpec.one_per_label(1000)) == "RoutingSpec.one_per_label(1000)"
    assert repr(gr.RoutingSpec.one_per_label(2, unlabeled="none")) == "RoutingSpec.one_per_label(2, unlabeled='none')"


def test_a_mapping_that_makes_its_values_anew_is_read_as_one_that_holds_them():
    """Routes that are one and the same object are resolved once: two that only stood in one place are not."""

    class Fresh(Mapping):
        def __getitem__(self, label):
            return [label, label + 1]

        def __iter__(self):
            return iter(range(50))

        def __len__(self):
            return 50

    spec = gr.RoutingSpec(Fresh(), 51)
    assert [spec.indices(label) for label in range(50)] == [(label, label + 1) for label in range(50)]
    one = [0, 2]
    assert gr.RoutingSpec({"a": one, "b": one}, 3) == gr.RoutingSpec({"a": [0, 2], "b": [0, 2]}, 3)
