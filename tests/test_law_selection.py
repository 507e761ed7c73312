"""Forms are judged by what they foretell: splits, scores, and whether the form behind a table is found."""

import numpy as np
import pytest
from test_laws import CURVES, TRUTHS, make, truth

from rankscale import laws

QUICK = {"starts": 512, "kept": 12}


def test_larger_runs_are_predicted_from_smaller_ones():
    data = make("power", noise=0.02)
    held = laws.extrapolate("power", data, shares=(0.5, 0.75))
    x = data.x[:, 0]
    first = held.split == "smallest 50%"
    assert first.sum() == 20 and (~first).sum() == 10
    assert x[held.row[first]].min() > np.sort(x)[19]
    inside = x <= np.quantile(x, 0.5)
    alone = laws.fit("power", data.take(inside), starts=1024, kept=24)
    wanted = np.log(alone.predict(x[held.row[first]]) / data.y[held.row[first]])
    np.testing.assert_allclose(held.error[first], wanted)
    sizes = [np.sqrt(np.mean(held.error[part] ** 2)) for part in (first, ~first)]
    assert held.size == pytest.approx(np.sqrt(np.prod(sizes)))
    naive = np.log(data.y[inside]).mean() - np.log(data.y[held.row[first]])
    table = held.by_split()
    assert table["points"].to_list() == [20, 10]
    assert table["r2"][0] == pytest.approx(1 - (wanted**2).sum() / (naive**2).sum())


def test_runs_of_one_cluster_stay_on_one_side():
    data = make("power", n=60, noise=0.05)
    data = laws.points(data.x, data.y, clusters=[np.arange(60) % 20])
    held = laws.extrapolate("power", data, shares=(0.6,))
    assert not set(data.clusters[0][held.row]) & set(np.delete(data.clusters[0], held.row))


def test_the_order_of_two_variables_is_that_of_their_product():
    data = make("joint", n=60, noise=0.005)
    held = laws.extrapolate("joint", data, shares=(0.7,), **QUICK)
    product = data.x.prod(axis=1)
    assert product[held.row].min() >= np.delete(product, held.row).max()
    assert held.size < 0.02


def test_an_axis_that_follows_another_law_is_foretold_badly():
    data = make("power", n=60, noise=0.02)
    axis = np.repeat(["width", "depth", "steps"], 20)
    same = laws.points(data.x, data.y, group=axis)
    other = laws.points(data.x, np.where(axis == "depth", 0.4 * data.x[:, 0] ** -0.2, data.y), group=axis)
    good, bad = (
        laws.leave_groups_out("power", points, **QUICK).by_split().set_index("split") for points in (same, other)
    )
    assert good["r2"].min() > 0.95 and good["points"].to_list() == [20, 20, 20]
    assert bad.loc["depth", "r2"] < 0
    with pytest.raises(ValueError, match="two groups or more"):
        laws.leave_groups_out("power", data)


def test_a_place_where_a_form_has_no_value_is_an_infinite_error():
    data = make("shifted_power", noise=0.01)
    low = np.concatenate([[1.0, 1.5], data.x[:, 0]])
    group = np.array(["low"] * 2 + ["high"] * 20 + ["mid"] * 20)
    points = laws.points(low, np.r_[0.05, 0.05, data.y], group=group)
    held = laws.leave_groups_out("shifted_power", points, **QUICK)
    assert held.size == np.inf
    fine = laws.leave_groups_out("power", points, **QUICK)
    assert laws.choose({"shifted_power": held, "power": fine}) == "power"
    with pytest.raises(ValueError, match="none of shifted_power has a value"):
        laws.choose({"shifted_power": held})


def test_aicc_is_that_of_gaussian_residuals_for_least_squares():
    data = make("power", noise=0.1)
    power, line = (laws.fit(name, data, delta=np.inf) for name in ("power", "log_linear"))

    def wanted(found):
        return 40 * np.log(np.mean(found.residuals() ** 2))

    assert laws.aicc(power) - laws.aicc(line) == pytest.approx(wanted(power) - wanted(line), abs=1e-3)
    more = laws.aicc(laws.fit("shifted_power", make("power", noise=0.1), delta=np.inf))
    assert more > laws.aicc(power) - 5  # a parameter costs something
    few = laws.fit("power", data.take(np.arange(4)))
    assert laws.aicc(few) == np.inf


def test_aicc_is_that_of_exponential_residuals_for_least_absolute_deviations():
    data = make("power", noise=0.1)
    power, line = (laws.fit(name, data, loss="lad") for name in ("power", "log_linear"))
    wanted = 2 * 40 * np.log(power.objective / line.objective)
    assert laws.aicc(power) - laws.aicc(line) == pytest.approx(wanted, abs=1e-2)


def test_all_forms_are_tried_and_those_with_too_many_parameters_refused():
    trials, refused = laws.try_forms(make("power", n=14, noise=0.02), **QUICK)
    assert list(trials) == [form.name for form in laws.ONE_VARIABLE[:-1]]
    assert "bnsl2 has 9 parameters" in refused["bnsl2"]
    assert all(trial.groups is None for trial in trials.values())
    with pytest.raises(ValueError, match="power has 2 parameters"):
        laws.try_forms(make("power", n=3))


def picked(name, seed, noise=0.03, n=60):
    data = make(name, n=n, noise=noise, seed=seed)
    return laws.choose({form.name: laws.extrapolate(form, data, **QUICK) for form in laws.ONE_VARIABLE})


@pytest.mark.parametrize("name", ["power", "exponential"])
def test_the_form_behind_a_table_is_chosen(name):
    assert picked(name, seed=1) == name


@pytest.mark.slow
def test_extrapolation_finds_the_form_in_nine_of_ten_cases():
    names = ["power", "log_linear", "saturating", "shifted_power", "exponential", "sigmoid"]
    found = {(name, seed): picked(name, seed) for name in names for seed in range(100, 105)}
    right = [name == choice for (name, _), choice in found.items()]
    assert np.mean(right) >= 0.9, found


def test_simple_forms_win_ties():
    """A saturating law can copy a straight line; its third parameter has to earn its place."""
    data = make("log_linear", noise=0.03)
    held = {name: laws.extrapolate(name, data) for name in ("saturating", "log_linear")}
    assert laws.choose(held) == "log_linear"
    assert laws.choose({"saturating": held["saturating"]}) == "saturating"


def test_truths_are_those_of_the_forms():
    assert set(CURVES) == set(TRUTHS) and truth("power", 1.0) == 0.05
