"""Hypothesis strategies for specs, labels and tensors that fit together."""

import torch
from hypothesis import strategies as st

from gradroute import UNLABELED, Route, RoutingSpec

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# Exact in every dtype, so that references need no tolerance.
WEIGHTS = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0])


@st.composite
def indices(draw, width):
    """An index of each kind that a route takes."""
    units = draw(st.lists(st.integers(0, width - 1), unique=True, max_size=width))
    start, stop = sorted(draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    mask = [unit in units for unit in range(width)]
    return draw(
        st.sampled_from([draw(st.integers(0, width - 1)), slice(start, stop), units, tuple(units), mask])
        | st.sampled_from([torch.tensor(units, dtype=torch.int64), torch.tensor(mask), range(start, stop)])
    )


def routes(width, hard=False):
    """A route, of weights 1 and 0 alone where `hard`."""
    return st.builds(Route, indices(width)) if hard else st.builds(Route, indices(width), WEIGHTS, WEIGHTS)


LABEL_NAMES = [st.integers(0, 50), st.text(min_size=1, max_size=4)]


@st.composite
def specs(draw, hard=False, max_width=6):
    """A spec with any kind of keys, routes, shared units and unlabeled rule."""
    width = draw(st.integers(1, max_width))
    names = draw(
        st.lists(draw(st.sampled_from([*LABEL_NAMES, st.one_of(LABEL_NAMES)])), min_size=1, max_size=4, unique=True)
    )
    return RoutingSpec(
        {name: draw(routes(width, hard)) for name in names},
        width,
        shared=draw(st.just(()) | indices(width)),
        unlabeled=draw(st.sampled_from(["all", "none", "shared"]) | routes(width, hard)),
    )


KINDS = ["integer", "multi-hot", "mixture"]


@st.composite
def labels(draw, spec, shape, kind=None):
    """Labels of a kind for a spec, of a leading shape."""
    kind = kind or draw(st.sampled_from(KINDS))
    size = 1
    for n in shape:
        size *= n
    if kind == "integer":
        keys = [UNLABELED, *spec.encode(list(spec.labels)).tolist()]
        values = draw(st.lists(st.sampled_from(keys), min_size=size, max_size=size))
        dtype = draw(st.sampled_from([torch.int64, torch.int32, torch.int16]))
        return torch.tensor(values, dtype=dtype).reshape(shape)
    n = len(spec.labels)
    entries = st.booleans() if kind == "multi-hot" else st.sampled_from([0.0, 0.25, 0.5, 1.0])
    values = draw(st.lists(st.lists(entries, min_size=n, max_size=n), min_size=size, max_size=size))
    dtype = torch.bool if kind == "multi-hot" else draw(st.sampled_from([torch.float32, torch.float64]))
    return torch.tensor(values, dtype=dtype).reshape(*shape, n)


@st.composite
def cases(draw, hard=False, kind=None, dtypes=DTYPES, min_batch=0):
    """A spec, labels, the shape of a tensor that they fit, its routed dim (from either end), and a dtype."""
    spec = draw(specs(hard=hard))
    others = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    others[0] = max(others[0], min_batch)
    dim = draw(st.integers(0, len(others)))
    shape = (*others[:dim], spec.width, *others[dim:])
    covered = draw(st.integers(1, len(others)))
    batch_labels = draw(labels(spec, tuple(others[:covered]), kind))
    return spec, batch_labels, shape, draw(st.sampled_from([dim, dim - len(shape)])), draw(st.sampled_from(dtypes))
