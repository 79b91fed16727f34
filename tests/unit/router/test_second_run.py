"""The second of two runs of a module starts from what the first one found, or is refused."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from gradroute.errors import UsageError
from gradroute.router._second_run import Beginning, chance_of_dropping, draws_random_numbers, refuse_memory


class Draws(nn.Module):
    """Remembers its last output, counts its runs in a buffer, and draws from every generator."""

    def __init__(self):
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))
        self.last = None

    def forward(self, x):
        self.runs += 1
        before, self.last = self.last, float(torch.rand(())) + random.random() + float(np.random.rand())
        return before, self.last


def test_a_second_run_finds_what_the_first_one_found_and_what_comes_after_goes_on_from_the_first():
    model, x = Draws(), torch.ones(1)
    start = Beginning(model)
    first = model(x)
    generators = random.getstate(), torch.get_rng_state()
    with start.once_more():
        again = torch.func.functional_call(model, start.buffers(), x)
    assert again == first
    assert model.runs == 1
    assert model.last == first[1]
    assert random.getstate() == generators[0]
    assert torch.equal(torch.get_rng_state(), generators[1])
    assert model(x)[1] != first[1]


def test_buffers_are_copies_of_what_they_were():
    model = Draws()
    start = Beginning(model)
    model(None)
    buffers = start.buffers()
    assert buffers["runs"] == 0
    buffers["runs"] += 5
    assert start.buffers()["runs"] == 0


def test_what_is_put_back_after_an_error_is_what_the_first_run_left():
    model = Draws()
    start = Beginning(model)
    last = model(None)[1]
    with pytest.raises(KeyError), start.once_more():
        raise KeyError(model.last)
    assert model.last == last


def test_random_numbers_are_seen_by_what_they_leave_behind():
    model = Draws()
    start = Beginning(model)
    start.refuse_random_numbers()
    model(None)
    with pytest.raises(UsageError, match="Draws draws random numbers"):
        start.refuse_random_numbers()


@pytest.mark.parametrize(
    ("module", "drops"),
    [
        (nn.Dropout(0.5), True),
        (nn.Dropout(0.0), False),
        (nn.Dropout(0.5).eval(), False),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout2d(0.1)), True),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
        (nn.MultiheadAttention(4, 2), False),
        (nn.Linear(2, 2), False),
    ],
    ids=str,
)
def test_a_chance_to_drop_something_is_known_by_modules_that_train(module, drops):
    assert chance_of_dropping(module) is drops


def test_code_that_names_a_source_of_random_numbers_is_known():
    assert draws_random_numbers(nn.Sequential(Draws()))
    assert not draws_random_numbers(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))), "torch's own is told by its mode"


class Cache:
    """Has a memory."""


@pytest.mark.parametrize("nest", [lambda x: x, lambda x: [x], lambda x: {"a": (1, x)}], ids=["bare", "list", "dict"])
def test_what_may_remember_is_refused_wherever_it_is(nest):
    harmless = torch.ones(2), "text", 1.5, None, torch.float32, slice(2), nn.ReLU()
    refuse_memory(nn.Linear(2, 2), (tuple(map(nest, harmless)), {"named": nest(harmless)}))
    for call in ((nest(Cache()),), {}), ((), {"cache": nest(Cache())}):
        with pytest.raises(UsageError, match="Linear is called with a Cache, which may remember.*use_cache=False"):
            refuse_memory(nn.Linear(2, 2), call)
