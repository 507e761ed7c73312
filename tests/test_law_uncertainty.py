"""Resampling, intervals and profiles: their known answers, and how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import least_squares
from test_laws import TRUTHS, make, truth

from rankscale import laws


def standard_error(data):
    """Of the exponent of a power law, by least squares."""
    return stats.linregress(np.log(data.x[:, 0]), np.log(data.y)).stderr


# --- resampling -------------------------------------------------------------------------------------------


def test_weights_of_clusters_move_together_and_keep_their_sum():
    runs = np.repeat(np.arange(10), 3)
    weights = laws.draw_weights(30, [runs], draws=500)
    assert (np.ptp(weights.reshape(500, 10, 3), axis=2) == 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 30)
    nested = laws.draw_weights(30, [runs, np.tile(np.arange(3), 10)], draws=500)
    assert np.ptp(nested.reshape(500, 10, 3), axis=2).max() > 0
    np.testing.assert_allclose(nested.sum(axis=1), 30)
    none = nested.reshape(500, 10, 3).sum(axis=2) == 0  # a run that was not drawn has no seeds
    assert none.mean() == pytest.approx((1 - 1 / 10) ** 9, abs=0.03)


def test_strata_are_kept_as_they_are():
    cells = np.array([0, 0, 0, 1, 1, 2])
    weights = laws.draw_weights(6, strata=cells, draws=300)
    np.testing.assert_allclose(weights[:, :3].sum(axis=1), 3)
    np.testing.assert_allclose(weights[:, 3:5].sum(axis=1), 2)
    assert (weights[:, 5] == 1).all()
    left = laws.leave_out(6, strata=cells)
    assert left.shape == (5, 6) and (left[:, 5] == 1).all() and (left.sum(axis=1) == 5).all()
    with pytest.raises(ValueError, match="nothing to resample"):
        laws.draw_weights(3, strata=np.arange(3))


@pytest.mark.parametrize("m", [3, 5, 20])
def test_the_variance_of_a_mean_is_right_for_few_clusters_too(m):
    values = np.random.default_rng(m).normal(size=m)
    drawn = laws.draw_weights(m, draws=40_000) @ values / m
    assert drawn.var() == pytest.approx(values.var(ddof=1) / m, rel=0.05)


def test_resampled_fits_are_fits_of_the_resamples():
    data = make("saturating", noise=0.03)
    found = laws.fit("saturating", data)
    counts = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), 5).astype(float)
    for own, theta in zip(counts, laws.refit(found, counts), strict=True):
        alone = laws.fit("saturating", data, weights=own)
        value = found.problem.objective(found.problem.residuals(theta[None])[0], own[None])[0]
        assert value * found.problem.delta == pytest.approx(alone.objective, rel=1e-4)


def test_sensitivity_names_the_point_that_matters():
    data = make("power", noise=0.01)
    y = data.y.copy()
    y[7] *= 1.5
    found = laws.fit("power", laws.points(data.x, y), delta=np.inf)
    table = laws.sensitivity(found)
    assert table["row"][0] == "row 7" and table["moved"][0] > 3 * table["moved"][1]
    without = np.arange(40) != 7
    alone = laws.fit("power", laws.points(data.x[without], y[without]), delta=np.inf).parameters
    assert table["b"][0] == pytest.approx(alone["b"], rel=1e-5)
    assert table["error"][0] == pytest.approx(-np.log(1.5), abs=0.03)


# --- intervals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["percentile", "bca"])
def test_intervals_of_least_squares_are_those_of_the_textbook(kind):
    data = make("power", n=200, noise=0.1)
    found = laws.fit("power", data, delta=np.inf)
    low, high = laws.bootstrap(found, draws=3000).interval("b", kind=kind)
    assert (high - low) / 2 == pytest.approx(1.645 * standard_error(data), rel=0.15)
    assert (high + low) / 2 == pytest.approx(found.parameters["b"], abs=0.3 * standard_error(data))


def test_copies_of_a_run_make_nothing_surer():
    data = make("power", n=30, noise=0.05)
    four = data.take(np.repeat(np.arange(30), 4))
    known = laws.points(four.x, four.y, clusters=[np.repeat(np.arange(30), 4)])

    def width(points):
        low, high = laws.bootstrap(laws.fit("power", points)).interval("b")
        return high - low

    assert width(known) == pytest.approx(width(data), rel=0.1)
    assert width(laws.points(four.x, four.y)) < 0.65 * width(data)


def test_bca_follows_a_skewed_bootstrap():
    found = laws.fit("saturating", make("saturating", noise=0.05))
    drawn = laws.bootstrap(found)
    exp = drawn.interval(lambda theta: np.exp(theta[:, 2]), kind="bca")
    assert exp == pytest.approx(tuple(np.exp(drawn.interval("b", kind="bca"))), rel=1e-6)  # blind to transformations
    assert drawn.table() == {name: drawn.interval(name) for name in TRUTHS["saturating"]}
    with pytest.raises(ValueError, match="saturating has no parameter 'c'; it has Q_inf, a, b"):
        drawn.interval("c")


def test_same_seed_same_intervals():
    found = laws.fit("power", make("power", noise=0.05))
    assert laws.bootstrap(found, seed=1).table() == laws.bootstrap(found, seed=1).table()
    assert laws.bootstrap(found, seed=1).table() != laws.bootstrap(found, seed=2).table()


def test_a_limit_that_resamples_do_not_have_is_infinite():
    drawn = laws.bootstrap(laws.fit("saturating", make("log_linear", noise=0.03)))
    assert drawn.interval("Q_inf")[1] == np.inf


def test_bands_hold_the_law_and_new_runs():
    data, grid = make("saturating", noise=0.05), np.geomspace(3, 600, 50)
    drawn = laws.bootstrap(laws.fit("saturating", data))
    (low, high), (new_low, new_high) = drawn.band(grid), drawn.band(grid, new=True)
    true = truth("saturating", grid)
    assert ((low < true) & (true < high)).mean() > 0.8
    assert (new_high - new_low > high - low).all()
    runs = truth("saturating", grid) * np.exp(0.05 * np.random.default_rng(9).normal(size=(200, 50)))
    assert ((new_low < runs) & (runs < new_high)).mean() == pytest.approx(0.9, abs=0.07)


def test_bands_in_linear_space_are_in_units_of_y():
    data = make("saturating", noise=0.05)
    many = laws.points(data.x, 100 * data.y)
    grid = np.array([10.0, 100.0])
    bands = [laws.bootstrap(laws.fit("saturating", d, space="linear")).band(grid, new=True) for d in (data, many)]
    np.testing.assert_allclose(100 * np.array(bands[0]), bands[1], rtol=1e-3)


# --- profiles ---------------------------------------------------------------------------------------------


def test_a_profile_is_the_best_fit_at_each_limit():
    """Against scipy's least squares with the limit held."""
    data = make("saturating", noise=0.05)
    found = laws.fit("saturating", data, delta=np.inf)
    profile = laws.profile(found)
    x, y = data.x[:, 0], np.log(data.y)
    best = 2 * found.objective
    for index in np.flatnonzero((profile.values > 0.66) & (profile.values < 1.5))[::4]:
        limit = profile.values[index]
        other = least_squares(lambda t, v=limit: np.log(np.maximum(v - t[0] * x ** -t[1], 1e-4)) - y, [1.2, 0.4])
        wanted = (2 * other.cost - best) / best * 37  # F(1, n - 3)
        assert profile.statistic[index] == pytest.approx(wanted, rel=0.01, abs=1e-6)


@pytest.mark.parametrize("name", ["saturating", "exponential", "sigmoid", "joint", "rank_width"])
def test_profiles_hold_the_limit_and_are_lowest_at_the_fit(name):
    found = laws.fit(name, make(name, n=120, noise=0.005 if name == "joint" else 0.02))
    limit = found.form.limit
    profile = laws.profile(found, level=0.99)
    assert profile.name == limit and profile.is_bounded
    assert profile.low < TRUTHS[name][limit] < profile.high
    assert profile.low < found.parameters[limit] < profile.high
    assert profile.values[profile.statistic.argmin()] == pytest.approx(found.parameters[limit], rel=1e-3)


def test_a_limit_that_is_not_there_has_no_end():
    profile = laws.profile(laws.fit("saturating", make("log_linear", noise=0.03)))
    assert not profile.is_bounded and profile.high == np.inf
    assert profile.low > truth("log_linear", 600) * 0.9
    falling = laws.points(np.geomspace(3, 600, 40), 5 - 0.5 * np.log(np.geomspace(3, 600, 40)))
    assert laws.profile(laws.fit("saturating", falling, space="linear")).low == -np.inf


def test_forms_without_a_limit_have_no_profile():
    with pytest.raises(ValueError, match="power has no limit to profile"):
        laws.profile(laws.fit("power", make("power", noise=0.03)))


# --- coverage ---------------------------------------------------------------------------------------------


def coverage(name, tables, draws):
    """Share of simulated tables of 40 runs whose 90 % intervals hold the truth, by parameter."""
    held = dict.fromkeys(TRUTHS[name], 0)
    for seed in range(tables):
        found = laws.fit(name, make(name, noise=0.05, seed=seed), starts=256, kept=8)
        drawn = laws.bootstrap(found, draws=draws, seed=seed)
        for key, true in TRUTHS[name].items():
            low, high = drawn.interval(key)
            held[key] += low <= true <= high
    return {key: count / tables for key, count in held.items()}


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    shares = coverage("power", tables=40, draws=200)
    assert set(shares) == {"a", "b"} and min(shares.values()) >= 0.8


def test_profiles_hold_the_truth_about_as_often_as_they_say():
    tables = [make("saturating", noise=0.05, seed=seed) for seed in range(20)]
    profiles = [laws.profile(laws.fit("saturating", table, starts=256, kept=8)) for table in tables]
    assert np.mean([each.low <= 0.8 <= each.high for each in profiles]) >= 0.75


@pytest.mark.slow
@pytest.mark.parametrize("name", ["power", "saturating"])
def test_intervals_of_90_percent_cover_between_85_and_95(name):
    shares = coverage(name, tables=200, draws=400)
    shares.pop("a")  # the value at x = 1, outside the data
    assert all(0.85 <= share <= 0.95 for share in shares.values()), shares
