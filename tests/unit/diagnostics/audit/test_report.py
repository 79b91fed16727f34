"""What the report of an audit says, raises, turns into and draws."""

import io
import itertools
import json

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute import audit
from gradroute.diagnostics import AuditReport, SiteGradients
from gradroute.errors import LeakError
from planted import KL_BYPASSES, READS, SPEC, N, OriginalVAE, labels
from unit.diagnostics.clean import step_of

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


def report_of_the_vae(**options) -> AuditReport:
    model = OriginalVAE()
    return audit(
        gr.Router(model, {"latent": SPEC, "decoder.0": READS}), model.loss, torch.randn(N, 5), labels(), **options
    )


def test_allowed_bypasses_are_reported_and_not_counted():
    report = report_of_the_vae(allow=["side loss"])
    assert report.clean
    assert {(b.target, b.kind) for b in report.allowed} == KL_BYPASSES
    report = report_of_the_vae(allow=["mean.*"])
    assert {b.target for b in report.bypasses} == {"spread.weight", "spread.bias"}


def test_assert_clean_names_the_bypass_its_path_and_the_remedy():
    report = report_of_the_vae()
    with pytest.raises(
        LeakError, match=r"'(mean|spread)\.weight' by a side loss, from 0, 1: .* %\. A term of the loss"
    ):
        report.assert_clean()
    with pytest.raises(AssertionError):
        report.assert_clean(tolerance=1e-6)
    report.assert_clean(tolerance=1.0)
    report_of_the_vae(allow=["side loss"]).assert_clean()


def test_the_report_as_json_markdown_text_html_and_rich():
    report = report_of_the_vae()
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["clean"] is False
    assert {(b["target"], b["kind"]) for b in data["bypasses"]} == KL_BYPASSES
    assert data["sites"][0]["routed"][0][2:] == [0, 0]
    for text in (str(report), report.to_markdown(), report._repr_html_()):
        assert "mean.weight" in text
        assert "side loss" in text
    assert max(map(len, str(report).splitlines())) < 400
    rich = pytest.importorskip("rich.console")
    console = rich.Console(width=200, file=io.StringIO())
    console.print(report)
    assert "mean.weight" in console.file.getvalue()


def test_a_report_of_many_labels_stays_short():
    n = 150
    model = nn.Sequential(nn.Linear(5, n), nn.Linear(n, 2, bias=False))
    report = audit(
        gr.Router(model, {"0": gr.Site(gr.RoutingSpec.one_per_label(n)), "1": gr.Site(gr.RoutingSpec.one_per_label(n), on="input", level="parameters")}),
        step_of(model), torch.randn(30, 5), torch.arange(30)
    )  # fmt: skip
    assert report.clean
    assert len(str(report).splitlines()) < 60


def test_the_heatmaps_stand_below_each_other_where_asked():
    pytest.importorskip("matplotlib")
    report = report_of_the_vae()
    side_by_side, stacked = (report.plot(**options) for options in ({}, {"columns": 1}))
    titles = [[axis.get_title() for axis in figure.axes if axis.get_title()] for figure in (side_by_side, stacked)]
    assert titles[0] == titles[1]
    assert len(titles[0]) > 1
    wide, narrow = (figure.get_size_inches() for figure in (side_by_side, stacked))
    assert narrow[0] < wide[0]
    assert narrow[1] > wide[1]


@pytest.mark.parametrize(("n", "present"), [(4, 4), (40, 40), (150, 120)])
def test_plots_name_up_to_a_hundred_labels_and_summarise_beyond(n, present):
    pytest.importorskip("matplotlib")
    model = nn.Sequential(nn.Linear(5, n), nn.Linear(n, 2, bias=False))
    router = gr.Router(model, {"0": gr.RoutingSpec.one_per_label(n)})
    with torch.no_grad():
        report = report_of_the_vae() if n == 4 else None
    if report is None:
        # Readers of so many labels take long to look for, and are beside the point.
        report = AuditReport(
            tuple(range(present)),
            (1,) * present,
            (1.0,) * present,
            (SiteGradients("0", "output", "activations", *[tuple(tuple(unit == label for unit in range(n)) for label in range(present))] * 3),),
            {},
            (),
        )  # fmt: skip
    router.remove()
    figure = report.plot()
    figure.canvas.draw()
    axis = figure.axes[0]
    rows = axis.images[0].get_array().shape[0]
    assert rows == len(report.labels) if present <= 100 else 50 < rows <= 100
    assert len(axis.get_yticks()) <= 25
    extents = [text.get_window_extent() for text in axis.get_yticklabels()]
    heights = sorted((extent.y0, extent.y1) for extent in extents)
    assert all(upper[0] >= lower[1] - 1 for lower, upper in itertools.pairwise(heights))
