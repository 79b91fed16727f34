"""Which weight columns read some units and nothing else."""

import torch
from torch import nn

import gradroute as gr
from gradroute.diagnostics.audit._readers import ReaderSearch
from gradroute.diagnostics.harness._runs import Runs
from gradroute.diagnostics.harness._untouched import Untouched

WIDTH, N = 4, 6
SPEC = gr.RoutingSpec({0: [0, 1], 1: [2, 3]}, WIDTH)
UNITS = torch.tensor([True, True, False, False])
LABELS = torch.tensor([0, 1] * (N // 2))


def search(model, units=UNITS, site="0", batch=None):
    router = gr.Router(model, {site: SPEC})
    with Untouched(router) as untouched:
        runs = Runs(
            router, lambda x: model(x).square().mean(), torch.randn(N, 3) if batch is None else batch, N, untouched
        )
        finder = ReaderSearch(runs, LABELS, dict(model.named_parameters()))
        return finder, finder.find(0, units)


def test_columns_behind_an_activation_function_read_their_units():
    model = nn.Sequential(nn.Linear(3, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))
    finder, readers = search(model)
    assert finder.repeatable
    assert torch.equal(readers.weights["2.weight"], UNITS.expand(2, -1))
    assert readers.biases == {"2.bias"}
    assert not readers.per_unit


def test_what_reads_a_mixture_of_units_reads_none_alone():
    model = nn.Sequential(nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, 1, bias=False))
    _, readers = search(model)
    assert set(readers.weights) == {"1.weight"}


def test_what_is_added_to_each_unit_meets_it_entry_by_entry():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.shift = nn.Linear(3, WIDTH), nn.Parameter(torch.randn(WIDTH))

        def forward(self, x):
            return self.first(x) + self.shift

    _, readers = search(Shifted(), site="first")
    assert torch.equal(readers.per_unit["shift"], UNITS)
    assert not readers.weights


def test_a_step_that_is_not_repeatable_has_no_readers():
    class Noisy(nn.Sequential):
        calls = 0

        def forward(self, x):
            Noisy.calls += 1
            return super().forward(x * Noisy.calls)

    finder, readers = search(Noisy(nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)))
    assert not finder.repeatable
    assert not readers.weights


def test_no_units_have_no_readers():
    _, readers = search(nn.Sequential(nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)), torch.zeros(WIDTH, dtype=torch.bool))
    assert not readers.weights
    assert not readers.biases


def test_readers_of_rows_that_are_looked_up_are_those_of_a_layer_that_makes_them():
    """An edit replaces the rows, and they are no reading of their weight any more: all after it still are compared."""

    class Looked(nn.Module):
        def __init__(self, first):
            super().__init__()
            self.first, self.places = first, nn.Embedding(N, WIDTH)
            self.rest = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))

        def forward(self, x):
            return self.rest(self.first(x) + self.places(torch.arange(N)))

    rows = Looked(nn.Embedding(N, WIDTH))
    made = Looked(nn.Sequential(nn.Embedding(N, WIDTH), nn.Linear(WIDTH, WIDTH)))
    for model in (rows, made):
        _, readers = search(model, site="first", batch=torch.arange(N))
        assert set(readers.weights) == {"rest.0.weight"}
        assert torch.equal(readers.weights["rest.0.weight"], UNITS.expand(WIDTH, -1))
        assert torch.equal(readers.per_unit["places.weight"], UNITS.expand(N, -1))
