"""A spec as a dict: what is no such dict is refused, with what was expected."""

import json

import pytest

import gradroute as gr
from gradroute.errors import SpecError

SPEC = gr.RoutingSpec(
    {"a": gr.Route([0, 1], weight=0.5, elsewhere=-1.0), 2: 2, None: ()}, 4, shared=3, unlabeled=gr.Route(1)
)


def test_a_spec_goes_through_json():
    assert gr.RoutingSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"routes": 3}, "pairs of a label and a dict"),
        ({"routes": [["a"]]}, "pairs of a label and a dict"),
        ({"routes": [["a", {"indx": [0]}]]}, "keys 'index', 'weight' and 'elsewhere'.*indx"),
        ({"unlabeled": {"indx": [0]}}, "keys 'index', 'weight' and 'elsewhere'.*indx"),
        ({"routes": [["a", {"index": [9]}]]}, "route of label 'a'"),
        ({"more": 1}, "expected the keys .*; got 'more'"),
    ],
)
def test_what_is_no_such_dict_is_refused(changed, message):
    with pytest.raises(SpecError, match=message):
        gr.RoutingSpec.from_dict({**SPEC.to_dict(), **changed})
