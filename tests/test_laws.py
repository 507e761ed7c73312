"""Forms and fits: gradients, known answers, references, invariances, and what a fit says it cannot tell."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linprog, minimize

from rankscale import laws
from rankscale.laws.fit import Problem
from rankscale.laws.forms import FORMS, ONE_VARIABLE

# Natural parameters, in units far from one on purpose.
TRUTHS = {
    "power": {"a": 0.05, "b": 0.4},
    "log_linear": {"a": 0.05, "b": 0.1},
    "saturating": {"Q_inf": 0.8, "a": 1.2, "b": 0.5},
    "shifted_power": {"a": 0.05, "b": 0.4, "x_0": 2.5},
    "exponential": {"Q_inf": 0.7, "a": 0.6, "tau": 60.0},
    "sigmoid": {"Q_0": 0.1, "Q_inf": 0.7, "k": 1.5, "x_mid": 30.0},
    "bnsl1": {"a": 0.02, "b": 0.05, "c_0": -0.6, "c_1": 0.5, "d_1": 40.0, "f_1": 0.2},
    "joint": {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658},
    "rank_width": {"Q_inf": 0.9, "a": 2.0, "b": 0.3, "g": 0.2},
}
CURVES = {
    "power": lambda x, a, b: a * x**b,
    "log_linear": lambda x, a, b: a + b * np.log(x),
    "saturating": lambda x, Q_inf, a, b: Q_inf - a * x**-b,
    "shifted_power": lambda x, a, b, x_0: a * (x - x_0) ** b,
    "exponential": lambda x, Q_inf, a, tau: Q_inf - a * np.exp(-x / tau),
    "sigmoid": lambda x, Q_0, Q_inf, k, x_mid: Q_0 + (Q_inf - Q_0) / (1 + (x / x_mid) ** -k),
    "bnsl1": lambda x, a, b, c_0, c_1, d_1, f_1: a + b * x**-c_0 * (1 + (x / d_1) ** (1 / f_1)) ** (-c_1 * f_1),
    "joint": lambda x, E, A, alpha, B, beta: E + A / x[:, 0] ** alpha + B / x[:, 1] ** beta,
    "rank_width": lambda x, Q_inf, a, b, g: Q_inf - a * x[:, 0] ** -b * x[:, 1] ** -g,
}


def truth(name, x, **changed):
    return CURVES[name](x, **(TRUTHS[name] | changed))


def make(name, n=40, noise=0.0, seed=0, **changed):
    """Points of a law: x over the two decades from 3 to 600, N and D over the ranges of Hoffmann et al.'s runs."""
    rng = np.random.default_rng(seed)
    if name == "joint":
        x = np.exp(rng.uniform(np.log([5.7e7, 8e8]), np.log([1.6e10, 3.2e11]), (n, 2)))
    elif name == "rank_width":
        x = np.exp(rng.uniform(np.log([5, 32]), np.log([200, 512]), (n, 2)))
    else:
        x = np.exp(rng.uniform(np.log(3), np.log(600), n))
    return laws.points(x, truth(name, x, **changed) * np.exp(noise * rng.normal(size=n)))


def close(found, wanted, rel):
    assert list(found) == list(wanted)
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=rel)


# --- forms ------------------------------------------------------------------------------------------------


def differences(call, theta, step=1e-6):
    return np.stack(
        [(call(theta + step * one) - call(theta - step * one)) / (2 * step) for one in np.eye(theta.shape[1])], axis=-1
    )


@pytest.mark.parametrize("space", ["log", "linear"])
@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
def test_gradients_are_those_of_finite_differences(form, space):
    problem = Problem.of(form, make("joint" if len(form.variables) == 2 else "power"), space, 1e-3)
    boxes = np.array([search.start for search in form.search(problem.frame)])
    theta = boxes[:, 0] + np.random.default_rng(0).random((50, len(boxes))) * np.ptp(boxes, axis=1)
    wanted = differences(lambda t: problem.residuals(t)[0], theta)
    np.testing.assert_allclose(problem.residuals(theta)[1], wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("form", [form for form in FORMS.values() if form.pinned], ids=lambda form: form.name)
def test_a_pinned_form_is_the_same_form(form):
    problem = Problem.of(form, make(form.name), "linear", 1e-3)
    theta = laws.fit(form, make(form.name)).theta
    limit = form.natural(theta[None], problem.frame)[:, form.names.index(form.limit)] / problem.frame.size
    pinned = form.pinned.start(limit, theta)
    np.testing.assert_allclose(problem.residuals(pinned, pinned=True)[0], problem.residuals(theta[None])[0], atol=1e-9)
    wanted = differences(lambda t: problem.residuals(t, pinned=True)[0], pinned)
    np.testing.assert_allclose(problem.residuals(pinned, pinned=True)[1], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
def test_every_parameter_has_a_unit_and_bounds_that_hold_its_starts(form):
    frame = Problem.of(form, make("joint" if len(form.variables) == 2 else "power"), "log", 1e-3).frame
    searches = form.search(frame)
    assert len(searches) == len(form.parameters) and {search.of for search in searches} <= set(form.names)
    for search in searches:
        assert search.low <= search.start[0] < search.start[1] <= search.high
    assert all(parameter.unit and parameter.low < parameter.high for parameter in form.parameters)


# --- known answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRUTHS)
def test_exact_tables_give_their_parameters_back(name):
    found = laws.fit(name, make(name))
    close(found.parameters, TRUTHS[name], 1e-3)
    assert found.objective < 1e-9 and found.at_bounds == ()


@pytest.mark.parametrize("name", TRUTHS)
def test_linear_space_and_least_absolute_deviations_find_them_too(name):
    close(laws.fit(name, make(name), space="linear").parameters, TRUTHS[name], 1e-3)
    close(laws.fit(name, make(name), loss="lad").parameters, TRUTHS[name], 1e-3)


def test_falling_losses_are_fitted_as_rising_qualities_are():
    wanted = {"Q_inf": 1.7, "a": -6.0, "b": 0.3}
    found = laws.fit("saturating", make("saturating", **wanted))
    close(found.parameters, wanted, 1e-3)


def test_a_chinchilla_style_table_is_fitted_from_a_cold_start():
    """Parameters of Besiroglu et al. 2024, ranges of N and D and number of runs of the table they read off."""
    data = make("joint", n=240, noise=0.003)
    found = laws.fit("joint", data)
    close(
        {k: v for k, v in found.parameters.items() if k in ("alpha", "beta")}, {"alpha": 0.3478, "beta": 0.3658}, 0.03
    )
    assert found.parameters["E"] == pytest.approx(1.8172, rel=0.01)
    np.testing.assert_allclose(found.predict(data.x), truth("joint", data.x), rtol=0.002)
    close(laws.fit("joint", make("joint", n=240, noise=1e-6)).parameters, TRUTHS["joint"], 1e-3)


def test_least_squares_is_least_squares():
    data = make("power", noise=0.1)
    found = laws.fit("power", data, delta=np.inf).parameters
    slope, level = np.polyfit(np.log(data.x[:, 0]), np.log(data.y), 1)
    assert (found["a"], found["b"]) == pytest.approx((np.exp(level), slope), rel=1e-7)


def test_least_absolute_deviations_are_those_of_a_linear_programme():
    data = make("power", noise=0.1)
    x, y, n = np.column_stack([np.ones(40), np.log(data.x[:, 0])]), np.log(data.y), len(data)
    rows = np.block([[x, -np.eye(n)], [-x, -np.eye(n)]])
    exact = linprog(np.r_[0, 0, np.ones(n)], rows, np.r_[y, -y], bounds=[(None, None)] * 2 + [(0, None)] * n)
    found = laws.fit("power", data, loss="lad")
    assert found.objective == pytest.approx(exact.fun, rel=1e-7)
    assert found.parameters["b"] == pytest.approx(exact.x[1], rel=1e-6)
    near = laws.fit("power", data, delta=1e-7)
    assert near.parameters["b"] == pytest.approx(exact.x[1], rel=1e-4)


# --- the search -------------------------------------------------------------------------------------------


def huber(problem):
    """The loss over its delta, summed, with its gradient, for one start at a time."""

    def both(theta):
        residual, gradient = (part[0] for part in problem.residuals(theta[None]))
        value = problem.objective(residual[None], np.ones((1, len(residual))))[0]
        return value, gradient.T @ np.clip(residual / problem.delta, -1, 1)

    return both


@pytest.mark.parametrize("name", ["saturating", "shifted_power", "sigmoid", "bnsl1", "joint"])
def test_another_optimiser_finds_nothing_better(name):
    found = laws.fit(name, make(name, noise=0.05))
    call, bounds = huber(found.problem), list(zip(*found.problem.bounds(), strict=True))
    own = found.objective / found.problem.delta
    rng = np.random.default_rng(0)
    starts = [found.theta, *(found.theta + rng.normal(size=(10, len(found.theta))) * 0.1)]
    how = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}
    for start in starts:
        other = minimize(call, np.clip(start, *found.problem.bounds()), jac=True, bounds=bounds, options=how)
        assert other.fun >= own * (1 - 1e-8)


def test_the_mean_of_the_losses_stops_an_optimiser_early_and_the_sum_does_not():
    """What happened to Hoffmann et al.: the same minimum, so flat that default tolerances are met far from it."""
    found = laws.fit("joint", make("joint", n=240, noise=0.005))
    call, unit = huber(found.problem), found.problem.delta
    starts = found.theta + np.random.default_rng(1).normal(size=(10, 5)) * [0.3, 0.5, 0.2, 0.5, 0.2]

    def excess(scale):
        ends = [minimize(lambda t: tuple(scale * p for p in call(t)), s, jac=True, method="L-BFGS-B") for s in starts]
        return np.array([call(end.x)[0] for end in ends]) / (found.objective / unit) - 1

    assert np.median(excess(unit / 240)) > 0.1  # the mean of Huber losses
    assert np.abs(excess(1.0)).max() < 1e-6  # their sum, over delta


def test_fits_are_deterministic_and_blind_to_the_order_of_rows():
    data = make("sigmoid", noise=0.05)
    first, again = laws.fit("sigmoid", data), laws.fit("sigmoid", data)
    assert first.parameters == again.parameters and first.objective == again.objective
    turned = laws.fit("sigmoid", data.take(np.arange(len(data))[::-1]))
    close(turned.parameters, first.parameters, 1e-5)


@pytest.mark.parametrize("name", [form.name for form in ONE_VARIABLE if form.name != "bnsl2"])
def test_units_of_x_and_y_change_nothing_but_units(name):
    data = make(name, noise=0.03)
    other = laws.points(data.x * 1e6, data.y * 1e-3)
    found, scaled = laws.fit(name, data), laws.fit(name, other)
    assert scaled.objective == pytest.approx(found.objective, rel=1e-6)
    assert scaled.condition == pytest.approx(found.condition, rel=1e-3)
    np.testing.assert_allclose(scaled.predict(other.x), 1e-3 * found.predict(data.x), rtol=1e-5)
    linear, scaled = laws.fit(name, data, space="linear"), laws.fit(name, other, space="linear")
    assert scaled.objective == pytest.approx(linear.objective, rel=1e-6)


def test_exponents_do_not_know_units_and_scales_do():
    data = make("saturating", noise=0.03)
    found = laws.fit("saturating", data).parameters
    scaled = laws.fit("saturating", laws.points(data.x * 1e3, data.y)).parameters
    wanted = {"Q_inf": found["Q_inf"], "a": found["a"] * 1e3 ** found["b"], "b": found["b"]}
    close(scaled, wanted, 1e-5)


def test_weights_count_as_copies():
    data = make("saturating", noise=0.05)
    copies = np.random.default_rng(0).integers(1, 4, len(data))
    weighted = laws.fit("saturating", data, weights=copies)
    repeated = laws.fit("saturating", data.take(np.repeat(np.arange(len(data)), copies)))
    assert weighted.objective == pytest.approx(repeated.objective, rel=1e-6)
    close(weighted.parameters, repeated.parameters, 1e-3)


def test_an_outlier_moves_least_squares_and_not_huber():
    data = make("power", noise=0.02)
    y = data.y.copy()
    y[data.x[:, 0].argmax()] *= 0.2
    spoilt = laws.points(data.x, y)
    assert laws.fit("power", spoilt).parameters["b"] == pytest.approx(0.4, abs=0.02)
    assert laws.fit("power", spoilt, delta=np.inf).parameters["b"] < 0.37


def test_distinct_optima_are_all_told_the_best_first():
    """Two steps for a form with one: it can take either, or a slope through both."""
    x = np.geomspace(3, 600, 60)
    y = 0.1 * np.where(x < 12, 1, 1.3) * np.where(x < 150, 1, 1.3)
    found = laws.fit("sigmoid", laws.points(x, y * np.exp(0.01 * np.random.default_rng(1).normal(size=60))))
    objectives = [optimum.objective for optimum in found.optima]
    assert objectives == sorted(objectives) and found.parameters == found.optima[0].parameters
    middles = np.array([optimum.parameters["x_mid"] for optimum in found.optima])
    for step in (12, 150):
        assert np.abs(np.log(middles / step)).min() < 0.1


# --- what the data cannot tell ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["saturating", "exponential"])
def test_a_limit_that_the_data_do_not_show_is_said_to_be_unidentified(name):
    data = make("log_linear" if name == "saturating" else "power", noise=0.03, b=0.1 if name == "saturating" else 1.0)
    found = laws.fit(name, data)
    assert any("Q_inf is not identified" in remark for remark in found.remarks)
    assert not laws.fit(name, make(name, noise=0.03)).remarks


def test_parameters_at_bounds_are_named():
    found = laws.fit("saturating", make("power", noise=0.01))
    assert found.at_bounds == ("b",)
    steep = laws.points(np.geomspace(1, 1.5, 30), np.geomspace(1, 1.5, 30) ** 15)
    assert laws.fit("power", steep).at_bounds == ("b",)
    assert "ended at a bound of the search: b" in laws.fit("power", steep).remarks


def test_a_variable_without_effect_leaves_its_exponent_unidentified():
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(np.log(1e7), np.log(1e10), (60, 2)))
    y = (1.8 + 400 / x[:, 0] ** 0.35) * np.exp(0.01 * rng.normal(size=60))
    found = laws.fit("joint", laws.points(x, y))
    assert any("beta" in remark for remark in found.remarks)
    assert not any("alpha" in remark for remark in found.remarks)


def test_conditions_tell_tangled_parameters_from_clean_ones():
    clean = laws.fit("power", make("power", noise=0.03)).condition
    tangled = laws.fit("sigmoid", make("saturating", noise=0.03)).condition
    assert 1 <= clean < 10 and tangled > 1000


def test_no_value_below_the_start_of_a_shifted_power():
    found = laws.fit("shifted_power", make("shifted_power"))
    below, above = found.predict(np.array([1.0, 100.0]))
    assert np.isnan(below) and above == pytest.approx(truth("shifted_power", 100.0), rel=1e-3)


# --- bad input --------------------------------------------------------------------------------------------

TABLE = pd.DataFrame({"rankme": [4.0, 8, 16, 32, 64], "quality": [0.1, 0.2, 0.3, 0.35, 0.4], "axis": list("aabbb")})


@pytest.mark.parametrize(
    ("changed", "y", "words"),
    [
        ({}, "loss", r"no column loss; the table has rankme, quality, axis"),
        ({"rankme": 3.0}, "quality", r"column rankme holds one value only \(3\): a law needs it to vary"),
        ({"quality": 0.2}, "quality", r"column quality holds one value only"),
        ({"rankme": [4, "many", 16, 32, 64]}, "quality", r"column rankme, row 1: 'many' is not a number"),
        (
            {"rankme": [4, -1.0, 16, 0, 64]},
            "quality",
            r"column rankme: 2 of 5 values are not positive.*\(row 1, row 3\)",
        ),
        ({"quality": [0.1, np.nan, 0.3, 0.4, 0.5]}, "quality", r"column quality: 1 of 5 values are missing.*row 1"),
        ({"axis": ["a", None, "b", "b", "b"]}, "quality", r"column axis: 1 of 5 values are missing: every row needs"),
    ],
)
def test_bad_tables_are_told_in_words(changed, y, words):
    with pytest.raises(ValueError, match=words):
        laws.read_points(TABLE.assign(**changed), ["rankme"], y, "axis")


def test_bad_fits_are_told_in_words():
    data = laws.read_points(TABLE, ["rankme"], "quality")
    with pytest.raises(
        ValueError, match="sigmoid has 4 parameters and needs at least 5 points with 4 different rankme"
    ):
        laws.fit("sigmoid", data.take(np.arange(4)))
    with pytest.raises(ValueError, match="there are 5 with 2"):
        laws.fit("saturating", laws.points([1, 1, 1, 2, 2], [1, 2, 3, 4, 5.0]))
    negative = laws.points(TABLE["rankme"], TABLE["quality"] - 0.2)
    with pytest.raises(ValueError, match=r"column y: 2 of 5 values are not positive.*linear space \(row 0, row 1\)"):
        laws.fit("power", negative)
    assert laws.fit("log_linear", negative, space="linear").parameters["b"] > 0
    with pytest.raises(ValueError, match="joint is a law of 2 variable"):
        laws.fit("joint", data)
    with pytest.raises(ValueError, match="no form 'cubic'; there are power, log_linear"):
        laws.fit("cubic", data)
    with pytest.raises(ValueError, match="weights must be 5 finite numbers"):
        laws.fit("power", data, weights=np.array([1, 1, 1, 1, -1]))
    for wrong, words in (({"delta": 0}, "positive delta"), ({"space": "square"}, "take log or linear")):
        with pytest.raises(ValueError, match=words):
            laws.fit("power", data, **wrong)
    with pytest.raises(ValueError, match="do not belong together"):
        laws.points(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match=r"1 point\(s\)"):
        laws.points([1.0], [1.0])
