"""Figures of fits: what the explorer computes in the page is what Python computes, and every point is drawn once."""

import re

import numpy as np
import pandas as pd
import pytest
from drawing import draw

from rankscale import charts, fit_charts

POINT = 'aria-roledescription="point"'


@pytest.fixture
def runs():
    """Thirty runs over a decade and ten larger ones."""
    x = np.concatenate([np.geomspace(10, 100, 30), np.geomspace(125, 1000, 10)])
    y = (0.7 - 0.9 * x**-0.3) * np.exp(0.02 * np.random.default_rng(0).normal(size=40))
    return pd.DataFrame({"x": x, "y": y, "held_out": x > 101})


def test_the_right_exponent_and_ceiling_give_the_amplitude_and_no_loss():
    x = np.geomspace(10, 1000, 20)
    a, loss = fit_charts.hand_fit(x, 0.7 - 0.9 * x**-0.3, 0.3, 0.7)
    assert a == pytest.approx(0.9) and loss == pytest.approx(0, abs=1e-20)
    assert fit_charts.hand_fit(x, 0.7 - 0.9 * x**-0.3, 0.5, 0.7)[1] > 1e-4


def test_hubers_loss_is_a_square_within_delta_and_a_line_beyond():
    x, delta = np.array([1.0, 2.0]), fit_charts.DELTA
    y = np.exp([delta / 2, 10 * delta])  # the law is 1 where exponent 0 and the ceiling leave no amplitude
    level = y.mean()
    size = np.abs(np.log(level) - np.log(y))
    assert (size > delta).all()
    assert fit_charts.hand_fit(x, y, 0.0, 2.0)[1] == pytest.approx((delta * (size - delta / 2)).sum())
    y = np.exp([delta / 2, delta])
    size = np.abs(np.log(y.mean()) - np.log(y))
    assert fit_charts.hand_fit(x, y, 0.0, 2.0)[1] == pytest.approx((size**2 / 2).sum())


@pytest.mark.parametrize(("exponent", "ceiling"), [(0.6, 0.6), (0.3, 0.7)])
def test_the_page_computes_the_law_and_its_loss_as_python_does(runs, exponent, ceiling):
    drawn = draw(fit_charts.explorer_chart(runs, exponent=exponent, ceiling=ceiling))
    own = runs[~runs["held_out"]]
    a, loss = fit_charts.hand_fit(charts.rounded(own["x"]), charts.rounded(own["y"]), exponent, ceiling)
    assert f"y = {ceiling:.3f} - {a:.3f} x^-{exponent:.2f}" in drawn
    found, lowest = map(float, re.search(r"sum of losses ([\d.]+) \(lowest on the map ([\d.]+)\)", drawn).groups())
    assert found == pytest.approx(loss, abs=2e-5)
    assert lowest < loss


def test_larger_runs_are_drawn_when_they_are_asked_for_only(runs):
    hidden = fit_charts.explorer_chart(runs)
    shown = fit_charts.explorer_chart(runs)
    for parameter in shown.params:
        if parameter.name == "hand_shown":
            parameter.value = True
    ring = 2  # where the sliders stand on the map
    assert draw(hidden).count(POINT) == 2 * 30 + ring  # in the law and in the residuals
    assert draw(shown).count(POINT) == 2 * 40 + ring


def test_the_map_has_its_lowest_loss_near_the_truth_of_an_exact_table(runs):
    exact = runs.assign(y=0.7 - 0.9 * runs["x"] ** -0.3)
    loss = fit_charts._losses(exact).reshape(fit_charts.CELLS)
    place = np.unravel_index(loss.argmin(), loss.shape)
    for at, key, cells, truth in zip(place, ("exponent", "ceiling"), fit_charts.CELLS, (0.3, 0.7), strict=True):
        low, high = fit_charts.ENDS[key]
        assert low + (high - low) / cells * (at + 0.5) == pytest.approx(truth, abs=0.05)


def test_extrapolations_fill_what_was_fitted(runs):
    curves = pd.DataFrame({"x": [10, 1000.0] * 2, "y": [0.2, 0.6, 0.2, 0.9], "law": ["bent"] * 2 + ["straight"] * 2})
    drawn = draw(fit_charts.extrapolation_chart(runs, curves, top=1.0))
    assert drawn.count(POINT) == 40
    assert ">bent<" in drawn and ">straight<" in drawn


def test_every_search_is_a_point_also_those_that_arrived():
    ends = pd.DataFrame({"objective": ["mean", "mean", "sum"], "excess": [2.0, 30.0, 0.0], "start": [0, 1, 0]})
    assert draw(fit_charts.searches_chart(ends)).count(POINT) == 3


def test_profiles_have_a_level_and_the_truth_where_it_is_known():
    table = pd.DataFrame({"range": ["one"] * 3, "value": [0.5, 0.7, 0.9], "statistic": [9.0, 0.0, 4.0]})
    drawn = [fit_charts.profile_chart(table, 2.7, (0.4, 1), truth) for truth in (None, 0.7)]
    assert [draw(each).count('aria-roledescription="rule mark container"') for each in drawn] == [1, 2]
    assert drawn[0].to_dict()["layer"][0]["encoding"]["x"]["scale"]["domain"] == [0.4, 1]


def test_intervals_that_miss_the_truth_stand_out():
    table = pd.DataFrame({"kind": ["a", "a", "b"], "table": [0, 1, 0], "low": [0.1, 0.3, 0.0], "high": [0.2, 0.4, 0.1]})
    assert draw(fit_charts.coverage_chart(table, 0.15, "exponent")).count('stroke-width="4"') == 2


def test_one_relation_is_shown_at_a_time():
    points = pd.DataFrame({"relation": ["q"] * 3 + ["loss"] * 2, "x": [1, 2, 3, 1, 2.0], "y": 0.5, "label": "run"})
    curves = pd.DataFrame(
        {"relation": ["q"] * 2 + ["loss"] * 2, "law": "power", "x": [1, 3.0] * 2, "y": [0.4, 0.6] * 2}
    )
    assert draw(fit_charts.relations_chart(points, curves)).count(POINT) == 3
