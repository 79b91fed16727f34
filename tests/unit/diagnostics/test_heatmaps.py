"""The pictures of reports: names that a person can read, and means beyond."""

import numpy as np
import pytest

import gradroute as gr

pytest.importorskip("matplotlib")

from gradroute.diagnostics._heatmaps import MAX_LABELS, MAX_UNITS, heatmap, subplots


def drawn(rows, columns, **options):
    values = np.random.default_rng(0).random((rows, columns))
    figure, [axis] = subplots(1)
    heatmap(axis, values, [f"label {number}" for number in range(rows)], **options)
    figure.canvas.draw()
    return values, axis


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 7])
def test_there_are_as_many_axes_as_were_asked_for(n):
    figure, axes = subplots(n)
    assert len(axes) == len(figure.axes) == n


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_no_more_stand_side_by_side_than_was_said(columns):
    figure, _ = subplots(4, columns=columns)
    lefts = {round(axis.get_subplotspec().get_position(figure).x0, 3) for axis in figure.axes}
    assert len(lefts) == min(columns, 4)
    with pytest.raises(gr.RoutingError, match="how many pictures stand side by side: at least 1; got 0"):
        subplots(4, columns=0)


@pytest.mark.parametrize("rows", [3, MAX_LABELS, MAX_LABELS + 1, 3 * MAX_LABELS])
def test_what_fits_is_shown_as_it_is_and_the_rest_as_means_of_neighbours(rows):
    values, axis = drawn(rows, 5)
    shown = np.asarray(axis.images[0].get_array())
    assert len(shown) <= MAX_LABELS
    if rows <= MAX_LABELS:
        assert (shown == values).all()
    else:
        size = -(-rows // MAX_LABELS)
        assert shown[0] == pytest.approx(values[:size].mean(0))
        assert axis.get_yticklabels()[0].get_text() == f"label 0 to label {size - 1}"


def test_too_many_units_are_averaged_too():
    _, axis = drawn(2, 2 * MAX_UNITS)
    assert axis.images[0].get_array().shape[1] <= MAX_UNITS


def test_long_names_keep_their_ends():
    _, [axis] = subplots(1)
    name = "model." + "layers." * 20 + "weight"
    heatmap(axis, np.zeros((1, 1)), [name])
    [text] = [label.get_text() for label in axis.get_yticklabels()]
    assert len(text) <= len("model.") + 40
    assert text.startswith("model.")
    assert text.endswith(".weight")


def test_what_is_off_the_route_is_marked_where_it_is_and_not_where_entries_were_averaged():
    off = np.array([[True, False, False], [False, False, True]])
    _, axis = drawn(2, 3, off_route=off)
    [marks] = axis.collections
    assert sorted(map(tuple, marks.get_offsets().astype(int).tolist())) == sorted(
        (x, y) for y, x in zip(*off.nonzero(), strict=True)
    )
    _, axis = drawn(2 * MAX_LABELS, 3, off_route=np.ones((2 * MAX_LABELS, 3), bool))
    assert not axis.collections
