"""Figures of all runs: every run is in them, axes keep their colours, and seeds are drawn to scale."""

import altair as alt
import numpy as np
import pandas as pd
import pytest
from drawing import draw

from rankscale import arms, axes, axis_charts, charts
from rankscale.chapters import find_root
from rankscale.records import read_records

ROOT = find_root()
RECORDS = read_records(ROOT / "data" / "runs")
RANK = alt.X("rankme:Q", title="RankMe", scale=alt.Scale(zero=False))


@pytest.fixture(scope="module")
def table():
    return arms.sweep_table(RECORDS, without=arms.held_back(ROOT / "data/sweeps"))


@pytest.fixture(scope="module")
def studies():
    return arms.studies(RECORDS)


def test_every_finished_run_in_reach_is_in_the_table_once(table):
    held = arms.held_back(ROOT / "data/sweeps")
    expected = {r.hash for r in RECORDS if r.status == "ok" and arms.in_reach(r.config)}
    expected -= {r.hash for r in RECORDS if arms.arm_of(r.config) in held}
    assert sorted(table["hash"]) == sorted(expected)
    assert table.groupby("arm")["label"].nunique().max() == 1 == table.groupby("label")["arm"].nunique().max()


def test_no_study_holds_a_test_cell(studies):
    held = arms.held_back(ROOT / "data/sweeps")
    assert not [r for study in studies.values() for r in study.records if arms.arm_of(r.config) in held]


@pytest.mark.parametrize("x", [RANK, axis_charts.flop_axis()], ids=["rank", "compute"])
def test_all_runs_are_drawn_with_lines_and_without(table, studies, x):
    assert "NaN" not in draw(axis_charts.runs_chart(table, x, studies, spread=True))
    assert "NaN" not in draw(axis_charts.runs_chart(table, x))


def test_the_menu_offers_every_quality_and_each_run_is_held_once(table):
    chart = axis_charts.runs_chart(table, RANK).to_dict()
    (menu,) = [p for p in chart["params"] if p["name"] == "runs_measure"]
    measures = set(axis_charts.quality_long(table, ["seed"])["measure"])
    assert set(menu["bind"]["options"]) == measures
    (rows,) = chart["datasets"].values()
    assert len(rows) == len(table) and measures <= rows[0].keys()


def test_axes_keep_their_colours(table):
    chart = axis_charts.runs_chart(table, RANK).to_dict()
    (scale,) = {str(layer["encoding"]["color"]["scale"]) for layer in chart["layer"]}
    for name in set(table["axis"]) & set(charts.AXIS_COLOURS):
        assert charts.AXIS_COLOURS[name] in scale
    series = pd.DataFrame({"axis": "a", "series": ["steps", "x"], "estimate": 0.0, "low": -1.0, "high": 1.0})
    colours = axis_charts.axes_chart(series).to_dict()["layer"][1]["encoding"]["color"]["scale"]["range"]
    assert colours[0] == charts.AXIS_COLOURS["steps"]


def test_the_cross_of_the_seeds_is_as_long_as_it_says():
    rng = np.random.default_rng(0)
    rows = [(f"arm {i}", s, i + rng.normal(), rng.normal()) for i in range(6) for s in range(4)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "rankme", "q_linear_synthetic"])
    table = table.assign(label=table["arm"], axis="width")
    chart = axis_charts.runs_chart(table, RANK, spread=True).to_dict()
    (cross,) = [row for rows in chart["datasets"].values() for row in rows if "bottom" in row]
    assert cross["measure"] == axis_charts.measure_name("linear", "synthetic")
    for column, low, high in (("rankme", "left", "right"), ("q_linear_synthetic", "bottom", "top")):
        sd, _ = axes.pooled_sd(table, column, by="arm")
        assert cross[high] - cross[low] == pytest.approx(2 * axis_charts.SPREADS * sd, rel=2e-3)
    alone = axis_charts.runs_chart(table[table["seed"] == 0], RANK, spread=True).to_dict()
    assert not [row for rows in alone["datasets"].values() for row in rows if "bottom" in row]


def test_panels_bars_families_and_columns_are_drawn(table, studies):
    draw(axis_charts.panels_chart(table, axis_charts.flop_axis(), studies, {"rankme": "RankMe", "alpha": "alpha"}))
    draw(axis_charts.families_chart(table.assign(family="one")))
    losses = {"train_loss": "training", "heldout_loss": "held out"}
    assert "held out" in draw(axis_charts.columns_chart(studies["steps"], losses, "loss"))
    bars = pd.DataFrame({"run": ["a", "a"], "part": ["encoder", "decoder"], "flop": [1e12, 2e12]})
    assert "decoder" in draw(axis_charts.flop_chart(bars))


def test_a_place_on_an_axis_is_not_rounded(studies):
    chart = axis_charts.follow_chart(studies["steps"].__class__(axes.AXES["clips"], *_two_sizes())).to_json()
    assert '"value": 65536' in chart


def _two_sizes():
    """The centre, and the same record said to have another number of clips."""
    centre = next(r for r in RECORDS if r.config.replace(seed=0) == axes.CENTRE and r.status == "ok")
    fewer = centre.config.replace(clips=2048)
    other = centre.model_copy(update={"config": fewer, "hash": fewer.hash})
    return (other, centre), (other, centre)
