"""From labels to weights: what labels hold, and how few rows are kept."""

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import LabelError

UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def test_labels_hold_the_keys_where_all_are_integers_and_ids_where_not():
    keys = gr.RoutingSpec({7: 0, 3: 1}, 2)
    assert keys.labels == (7, 3)
    assert keys.encode([3, 7]).tolist() == [3, 7]
    assert keys.mask(torch.tensor([3, 7])).tolist() == [[0, 1], [1, 0]]
    ids = gr.RoutingSpec({7: 0, "x": 1}, 2)
    assert ids.encode(["x", 7, gr.UNLABELED]).tolist() == [1, 0, -1]
    assert ids.mask(torch.tensor([1, 0])).tolist() == [[0, 1], [1, 0]]


def test_many_labels_with_few_routes_are_stored_as_few_rows():
    spec = gr.RoutingSpec({token: token % 2 for token in range(50_000)}, 2)
    assert spec.masks.rows.shape == (3, 2)
    assert torch.equal(spec.mask(torch.tensor([49_999, 0, -1])), torch.tensor([[0.0, 1], [1, 0], [1, 1]]))


@pytest.mark.parametrize("dtype", UNSIGNED)
def test_the_largest_unsigned_integer_is_an_unknown_label_and_not_unlabeled(dtype):
    spec = gr.RoutingSpec.one_per_label(3)
    largest = torch.iinfo(dtype).max
    labels = torch.tensor([1, largest], dtype=dtype)
    with pytest.raises(LabelError, match=f"unknown label {largest} "):
        spec.mask(labels)
    assert torch.equal(spec.mask(labels[:1]), spec.mask(torch.tensor([1])))
    with pytest.raises((IndexError, RuntimeError)):  # from the look-up
        torch.compile(spec.mask, backend="eager", fullgraph=True)(labels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_mixture_that_is_not_finite_opens_no_closed_unit(value):
    spec = gr.RoutingSpec({"a": 0, "b": 1, "c": gr.Route(2, elsewhere=0.5)}, 4)
    labels = torch.tensor([[value, 0.0, 0.0], [0.25, 0.75, 0.0], [0.0, value, 1.0]])
    x = torch.randn(3, 4, requires_grad=True)
    with pytest.raises(LabelError, match="finite"):
        gr.route(x, labels, spec)
    torch.compile(lambda x: gr.route(x, labels, spec), backend="eager", fullgraph=True)(x).sum().backward()
    finite = torch.isfinite(labels)
    routes = spec.table[:-1]
    bad = ((~finite)[:, :, None] & (routes != 0)).any(1)
    assert x.grad[bad].isnan().all(), "it shows"
    assert torch.equal(x.grad[~bad], spec.mask(torch.where(finite, labels, 0))[~bad])
    assert (x.grad[~bad] == 0).any()


@pytest.mark.parametrize("labels", [torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3), torch.zeros(2, 3).bool()])
@pytest.mark.parametrize("level", ["activations", "parameters", "functional", "audit"])
def test_labels_on_the_meta_device_are_refused_for_tensors_with_values(labels, level):
    spec, x, model = gr.RoutingSpec.one_per_label(3), torch.randn(2, 5), nn.Linear(5, 3)
    labels = labels.to("meta")
    assert spec.mask(labels).shape == (2, 3), "shapes go through"
    router = gr.Router(model, {"": gr.Site(spec, level="parameters" if level == "parameters" else "activations")})

    def use():
        if level == "functional":
            return gr.route(torch.randn(2, 3, requires_grad=True), labels, spec)
        if level == "audit":
            return gr.audit(router, lambda x: model(x).sum(), x, labels)
        with router(labels):
            return model(x)

    with pytest.raises(LabelError, match="meta device, which holds no values"):
        use()


SETS = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])


@pytest.mark.parametrize("use", [lambda spec, x: spec.mask(x), lambda spec, x: gr.route(torch.ones(2, 3), x, spec)])
def test_sets_of_labels_given_as_floats_are_warned_of_once_for_a_spec(use, recwarn):
    spec = gr.RoutingSpec({"a": 0, "b": 1, "c": 1}, 3, shared=2)
    with pytest.warns(gr.LabelWarning, match=r"only zeros and ones, several in a row.*labels.bool\(\)"):
        use(spec, SETS)
    use(spec, SETS)
    assert not recwarn.list
    assert spec.mask(SETS)[0].tolist() == [1, 1, 2], "a weighted sum"
    assert spec.mask(SETS.bool())[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("labels", [torch.eye(3), 0.5 * SETS, SETS.bool(), torch.tensor([[1.0, 1, 0], [0.5, 0, 0]])])
def test_mixtures_and_sets_in_their_own_form_are_not_warned_of(labels, recwarn):
    gr.RoutingSpec.one_per_label(3).mask(labels)
    assert not recwarn.list


def test_integer_labels_pay_nothing_for_what_floats_are_asked(monkeypatch):
    monkeypatch.setattr(gr.spec._masks.MaskTable, "_check_mixture", None)
    gr.RoutingSpec.one_per_label(3).mask(torch.tensor([0, 1]))


@pytest.mark.parametrize("shape", [(2,), (2, 4)])
@pytest.mark.parametrize("kind", ["rows", "union", "mixture"])
def test_the_mask_of_one_example_is_its_row_as_long_as_it_is(shape, kind):
    spec = gr.RoutingSpec.one_per_label(3, silent="others")
    labels = torch.randint(0, 3, shape)
    given = labels if kind == "rows" else torch.nn.functional.one_hot(labels, 3).to(torch.bool)
    mask = spec.masks.resolve(given if kind != "mixture" else given.float())
    one = mask.of_example(1, 2, of=2)
    cpu = torch.device("cpu")
    whole = mask.off(cpu)[1:2]
    assert torch.equal(one.off(cpu), whole[:, :2] if len(shape) > 1 else whole)
    with pytest.raises(LabelError, match="labels are for 2 examples, and a nested tensor holds 5"):
        mask.of_example(0, 2, of=5)
