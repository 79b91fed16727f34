"""What a spec may be given for `silent`, and what it makes of it."""

import copy

import numpy as np
import pytest
import torch

import gradroute as gr
from gradroute import UNTAUGHT, RoutingSpec
from gradroute.errors import SpecError
from gradroute.spec._silent import Teachers

ROUTES = {"a": [0, 1], "b": [1, 2], "c": gr.Route(3, elsewhere=0.5)}


def spec(silent, routes=ROUTES, width=6, **options):
    return RoutingSpec(routes, width, silent=silent, **{"shared": 4, **options})


def off(spec, label):
    return tuple(spec.silent_mask(spec.encode([label]))[0].nonzero().flatten().tolist())


def test_a_label_several_and_others():
    assert off(spec({"a": "b"}), "a") == (2,)
    for several in (["b", "c"], ("b", "c"), {"b", "c"}, np.array(["b", "c"]), "others"):
        assert off(spec({"a": several}), "a") == (2, 3)
        assert spec({"a": several}) == spec({"a": "others"})
    assert off(spec({"c": ["a", "b"]}), "c") == (0, 1, 2), "what the two share belongs to them"
    assert off(spec({"c": "a"}), "c") == (0,)
    assert off(spec({"a": "b"}), "b") == off(spec({"a": "b"}), gr.UNLABELED) == ()


def test_others_says_it_of_every_label_and_nothing_of_unlabeled_data():
    everywhere = spec("others")
    assert [off(everywhere, label) for label in ("a", "b", "c", gr.UNLABELED)] == [(2, 3), (0, 3), (0, 1, 2), ()]
    assert off(spec({gr.UNLABELED: "others"}), gr.UNLABELED) == (0, 1, 2, 3)
    assert off(spec({gr.UNLABELED: "b", "a": "c"}), gr.UNLABELED) == (2,)
    assert RoutingSpec.split({"x": 2, "y": 1}, shared=1, silent="others").silent == {"x": "others", "y": "others"}


def test_labels_that_teach_the_same_units_are_no_error_where_another_is_silenced():
    one_sided = RoutingSpec({"part": 0, "all": [0, 1]}, 2, silent="others")
    assert off(one_sided, "part") == (1,)
    assert off(one_sided, "all") == ()
    assert eval(repr(one_sided)) == one_sided == RoutingSpec.from_dict(one_sided.to_dict())


def test_the_shared_the_untaught_and_those_of_weight_0_stay_on():
    quiet = spec({"a": "others"}, {**ROUTES, "zero": gr.Route(5, weight=0.0)})
    assert off(quiet, "a") == (2, 3)


def test_what_is_off_is_not_taught_whatever_elsewhere_and_unlabeled_say():
    silent = spec({"c": "others", gr.UNLABELED: "c"})
    assert silent.table.tolist() == [[1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 1, 0.5], [1, 1, 1, 0, 1, 1]]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([True, True, False], (3,)),
        ([True, False, True], (2,)),
        ([True, True, True], ()),
        ([False, False, False], (0, 3)),
        ([0.5, 0.0, 0.0], (2, 3)),
        ([-0.5, 0.25, 0.0], (3,)),
        ([0.0, 0.0, 0.0], (0, 3)),
    ],
)
def test_a_unit_is_on_if_one_of_several_labels_has_it_on_and_without_any_the_example_is_unlabeled(labels, expected):
    silent = spec({"a": "others", "b": "others", "c": "others", gr.UNLABELED: ["a", "c"]})
    found = silent.silent_mask(torch.tensor([labels]))[0]
    assert tuple(found.nonzero().flatten().tolist()) == expected


def test_a_label_that_is_named_others_is_never_taken_for_the_word():
    routes = {"others": 0, "x": 1, "y": 2}
    for silent in ("others", {"x": "others"}):
        with pytest.raises(SpecError, match=r"is the name of a label, too: write \['others'\]"):
            RoutingSpec(routes, 3, silent=silent)
    named = RoutingSpec(routes, 3, silent={"x": ["others"]})
    assert off(named, "x") == (0,)
    all_others = RoutingSpec(routes, 3, silent={"x": ["others", "y"]})
    assert off(all_others, "x") == (0, 2)
    for each in (named, all_others):
        assert eval(repr(each)) == each == RoutingSpec.from_dict(each.to_dict())


def test_labels_may_be_tuples_and_integers():
    tuples = RoutingSpec({("a", 1): 0, ("b", 1): 1, ("c", 1): 2}, 3, silent={("a", 1): ("b", 1)})
    assert off(tuples, ("a", 1)) == (1,)
    assert eval(repr(tuples)) == tuples
    with pytest.raises(SpecError, match="is a label, and also holds labels"):
        RoutingSpec({"a": 0, "b": 1, ("a", "b"): 2, "c": 3}, 4, silent={"c": ("a", "b")})
    integers = RoutingSpec.one_per_label(3, silent={np.int64(0): np.int64(2)})
    assert integers == RoutingSpec.one_per_label(3, silent={0: 2})
    assert torch.equal(integers.silent_mask(torch.tensor([0, 1])), torch.tensor([[0, 0, 1], [0, 0, 0]]).bool())


@pytest.mark.parametrize(
    ("silent", "message"),
    [
        ("forget", "silent must be 'others', or a mapping such as"),
        (["a"], r"must be 'others' or a mapping from labels to labels; got \['a'\]"),
        ({"d": "a"}, "silent: 'd' is not a label of this spec"),
        ({"a": "bb"}, "silent: 'bb' is not a label of this spec. Did you mean 'b'"),
        ({"a": ["b", "d"]}, "'d' is not a label"),
        ({"a": 3}, "silent: 3 is not a label"),
        ({-2: "a"}, "silent: -2 is not a label"),
        ({"a": "a"}, "the units of 'a' cannot be off for its own examples"),
        ({"a": ["b", "a"]}, "the units of 'a' cannot be off for its own examples"),
        ({"a": []}, "for 'a' nothing would be off: no unit is taught by no label alone"),
        ({"a": "e"}, "for 'a' nothing would be off: no unit is taught by 'e' alone"),
    ],
)
def test_what_is_no_rule_or_switches_nothing_off_is_refused(silent, message):
    with pytest.raises(SpecError, match=message):
        spec(silent, {**ROUTES, "e": [0, 2]})


def test_others_of_labels_that_all_teach_the_same_is_refused():
    with pytest.raises(SpecError, match="silent='others' would switch nothing off"):
        RoutingSpec({"a": 0, "b": 0}, 2, silent="others")


def test_nothing_silent_is_nothing_at_all():
    plain = spec(None)
    assert spec({}) == plain
    assert not plain.has_silent
    assert plain.masks.off is None
    assert "silent" not in repr(plain)
    assert "silent" not in plain.to_dict()
    assert not plain.silent_mask(torch.zeros(2, 3, dtype=torch.int64)).any()
    assert plain.silent_mask(torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 3, 6)


def test_code_is_short():
    assert repr(RoutingSpec.one_per_label(9, silent="others")) == "RoutingSpec.one_per_label(9, silent='others')"
    two = RoutingSpec.split({"retain": 2, "forget": 1}, silent={"retain": "forget"})
    assert repr(two) == "RoutingSpec({'retain': slice(0, 2), 'forget': 2}, 3, silent={'retain': 'forget'})"


def test_many_labels_of_few_routes_stay_few_rows():
    many = RoutingSpec({token: token % 2 for token in range(20_000)}, 2, silent="others")
    assert many.masks.rows.shape == (3, 2)
    assert many.silent_mask(torch.tensor([0, 1, -1])).tolist() == [[False, True], [True, False], [False, False]]


def test_a_frozen_spec_has_frozen_silence():
    with pytest.raises(TypeError):
        spec("others").silent["a"] = ("b",)


def test_untaught_stands_for_the_units_of_no_label():
    loud = spec(None, {**ROUTES, "zero": gr.Route([3, 5], weight=0.0)})
    assert loud.exclusive(UNTAUGHT) == (5,)
    assert loud.exclusive("a", UNTAUGHT) == (0, 5)
    assert copy.deepcopy(UNTAUGHT) is UNTAUGHT
    with pytest.raises(SpecError, match="UNTAUGHT stands for the units that no label teaches"):
        RoutingSpec({UNTAUGHT: 0}, 1)
    with pytest.raises(SpecError, match="is not a label"):
        spec({"a": UNTAUGHT})


def test_elsewhere_makes_no_unit_a_label_s_own():
    assert spec(None).exclusive("c") == (3,)
    assert spec(None, {"a": 0, "b": gr.Route(1, elsewhere=-1.0)}).exclusive("a") == (0,)


def test_teachers_count_each_label_once():
    teachers = Teachers({"a": gr.Route((0, 1)), "b": gr.Route((1,)), "c": gr.Route((1,))}, 3, (2,))
    assert teachers.exclusive(["a", "a"]) == (0,)
    assert teachers.exclusive(["b", "b", "c"]) == ()
    assert teachers.exclusive(["a", "b", "c"]) == (0, 1)
    assert teachers.exclusive_to_others("b") == (0,)
    assert teachers.exclusive_to_others(gr.UNLABELED) == (0, 1)
