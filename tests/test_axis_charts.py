"""Figures along an axis: every record reaches the page, in its place, and the page's own controls know all choices."""

import numpy as np
import pandas as pd
import pytest
import vl_convert

from rankscale import axes, axis_charts, charts
from rankscale.chapters import find_root
from rankscale.records import read_records

RECORDS = read_records(find_root() / "data" / "runs")
CHARTS = {
    "along": axis_charts.along_chart,
    "follow": axis_charts.follow_chart,
    "spectra": axis_charts.spectra_chart,
    "tasks": axis_charts.tasks_chart,
}


@pytest.fixture(scope="module", params=["width", "steps"])
def study(request):
    return axes.study(request.param, RECORDS)


@pytest.mark.parametrize("name", CHARTS)
def test_a_figure_is_drawn_small_enough_and_without_a_warning(name, study):
    charts.book_theme()
    spec = CHARTS[name](study).to_json()
    assert len(spec) < 400_000
    assert "<svg" in vl_convert.vegalite_to_svg(spec, vl_version="6.1")


def test_every_run_and_every_quality_is_in_the_figure(study):
    long = axis_charts.quality_long(study.runs, ["value", "seed", "rankme"])
    for record in study.records:
        own = long[(long["seed"] == record.config.seed) & np.isclose(long["rankme"], record.rank.rankme)]
        expected = {
            axis_charts.measure_name(probe, suite): q
            for probe, suites in record.quality.items()
            for suite, q in suites.items()
        }
        assert dict(zip(own["measure"], own["q"], strict=True)) == pytest.approx(expected)


def test_menus_offer_what_the_table_holds(study):
    chart = axis_charts.follow_chart(study).to_dict()
    menu = next(p for p in chart["params"] if p["name"].startswith("follow_"))
    measures = set(axis_charts.quality_long(study.runs, ["value"])["measure"])
    assert set(menu["bind"]["options"]) == measures and menu["value"] in measures


def test_the_slider_has_a_stop_for_every_value(study):
    chart = axis_charts.spectra_chart(study).to_dict()
    bind = next(p for p in chart["params"] if p["name"].startswith("spectra_"))["bind"]
    assert (bind["min"], bind["max"], bind["step"]) == (0, len(study.values) - 1, 1)


def test_untrained_encoders_stand_under_the_runs_that_they_belong_to(study):
    assert list(study.untrained["value"]) == list(study.runs["value"])
    assert set(study.untrained["steps"]) == {0}
    if study.axis.name == "width":
        assert list(study.untrained["width"]) == list(study.runs["width"])


def test_thousands_are_written_as_the_axis_means_them():
    assert [axis_charts.short_value(v) for v in (0.5, 64, 1000, 4000, 2048, 65_536)] == [
        "0.5", "64", "1k", "4k", "2k", "64k",
    ]  # fmt: skip


def test_an_interval_without_ends_is_still_drawn():
    table = pd.DataFrame({"axis": ["a"], "series": ["s"], "estimate": [0.5], "low": [np.nan], "high": [np.nan]})
    assert "<svg" in vl_convert.vegalite_to_svg(axis_charts.axes_chart(table).to_json(), vl_version="6.1")
