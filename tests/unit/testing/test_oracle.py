"""The gradient by its definition is that of the library."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradroute as gr
from gradroute.testing import label_tensors, oracle, oracle_mask, specs, tensors
from gradroute.testing._oracle import oracle_silent

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


@settings(max_examples=40)
@given(st.data())
def test_the_library_does_what_the_oracle_says(data):
    spec = data.draw(specs())
    labels = data.draw(label_tensors(spec, (3,)))
    x = data.draw(tensors((3, 2, spec.width))).requires_grad_()
    assert torch.allclose(oracle_mask(spec, labels), spec.mask(labels))
    [expected] = torch.autograd.grad(oracle(x, labels, spec).square().sum(), x)
    [actual] = torch.autograd.grad(gr.route(x, labels, spec).square().sum(), x)
    torch.testing.assert_close(actual, expected)
    off = oracle_silent(spec, labels)[:, None]
    assert torch.equal(oracle(x, labels, spec), torch.where(off, 0, x))
