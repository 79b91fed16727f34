"""`Absent`: zeros in the shape that a module would have returned."""

import copy
import io

import pytest
import torch
from torch import nn

from gradroute.errors import SiteError
from gradroute.surgery import Absent

CASES = {
    "of the same shape": (nn.Linear(4, 4), (2, 4), None, (5, 3, 4)),
    "of another width": (nn.Linear(4, 6), (2, 4), None, (5, 3, 4)),
    "of other channels": (nn.Conv2d(3, 6, 3, padding=1), (2, 3, 8, 8), 1, (1, 3, 5, 7)),
    "of as many channels": (nn.Conv2d(3, 3, 3, padding=1), (2, 3, 8, 8), 1, (1, 3, 5, 7)),
    "one number for each": (nn.Linear(4, 1), (2, 4), -1, (3, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_zeros_are_of_the_modules_shape_for_other_inputs_too(case):
    module, shape, dim, other = CASES[case]
    x = torch.randn(shape)
    absent = Absent("Module", [x], module(x), dim=dim)
    for y in (x, torch.randn(other), torch.randn(other, dtype=torch.float64)):
        zeros = absent(y)
        assert zeros.shape == copy.deepcopy(module).to(y.dtype)(y).shape
        assert zeros.dtype == y.dtype
        assert not zeros.any()


def test_of_indices_they_are_vectors_of_the_dtype_that_the_model_has():
    ids = torch.tensor([[1, 2, 0]])
    absent = Absent("Embedding", [ids], nn.Embedding(3, 4)(ids))
    assert absent(ids.expand(5, 3)).shape == (5, 3, 4)
    assert absent(ids).dtype == torch.float32
    assert nn.Sequential(absent).half()[0](ids).dtype == torch.float16


def test_what_holds_the_tensors_is_of_the_same_kind_and_arguments_have_names():
    x, mask = torch.randn(2, 4), torch.ones(2, 1, 2)
    absent = Absent("Module", [mask, x], {"a": (x, None), "b": x[:, :1]})
    made = absent(mask, hidden=torch.randn(5, 4))
    assert made.keys() == {"a", "b"}
    assert made["a"][0].shape == (5, 4)
    assert made["a"][1] is None
    assert made["b"].shape == (5, 1)


def test_it_copies_pickles_and_exports_and_has_no_state():
    x = torch.randn(2, 4)
    absent = Absent("Linear", [x], torch.zeros(2, 6))
    assert repr(absent) == "Absent(Linear)"
    assert not absent.state_dict()
    assert not list(absent.parameters())
    file = io.BytesIO()
    torch.save(absent, file)
    file.seek(0)
    program = torch.export.export(absent, (x,), strict=False).module()
    for other in (copy.deepcopy(absent), torch.load(file, weights_only=False), program):
        assert torch.equal(other(x), torch.zeros(2, 6))


@pytest.mark.parametrize(
    ("arguments", "output", "dim", "message"),
    [
        ([torch.ones(2, 4)], torch.ones(3, 5), None, r"a tensor of shape \(3, 5\) of \(2, 4\)"),
        ([torch.ones(2, 4)], torch.ones(2, 5), 0, r"a tensor of shape \(2, 5\) of \(2, 4\)"),
        ([torch.ones(2, 3, 4)], torch.ones(2, 4), None, r"a tensor of shape \(2, 4\) of \(2, 3, 4\)"),
        ([], torch.ones(2), None, r"a tensor of shape \(2,\) of none"),
        ([torch.ones(2)], (torch.ones(2), torch.ones(2).half()), None, "returns 2 tensors of several dtypes"),
    ],
)
def test_another_shape_is_refused(arguments, output, dim, message):
    with pytest.raises(SiteError, match=message):
        Absent("Module", arguments, output, dim=dim)
