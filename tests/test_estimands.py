"""The estimands of the plan, on simulated tables whose truth is known."""

import numpy as np
import pandas as pd
import pytest

from rankscale import estimands

STEPS = {  # ln R of each axis's cells, from the centre
    "width": (-0.5, 0.5, 0.9),
    "depth": (-0.3, 0.2, 0.3),
    "steps": (-0.4, -0.2, 0.3),
    "mask": (-0.1, 0.12),
    "rate": (-0.25, 0.2, 0.3),
    "data": (-0.2,),
}
NOISE = np.array([[0.03**2, 0.3 * 0.03 * 0.04], [0.3 * 0.03 * 0.04, 0.04**2]])


def simulate(seed, slopes=0.5, curve=0.0, shared_seed=0.02, seeds=3, trunk=0.0, noise=NOISE):
    """A design like the plan's: five seeds of a centre that is on all axes, three of every other cell.

    slopes: of ln Q on ln R by axis, or one for all. curve: added times the square of the step. shared_seed: standard
    deviation of what a seed does to all cells; trunk: of what the cells of the axis "steps" of one seed share. noise:
    covariance of one run's ln R and ln Q.
    """
    rng = np.random.default_rng(seed)
    slopes = slopes if isinstance(slopes, dict) else dict.fromkeys(STEPS, slopes)
    root, of_seed = np.linalg.cholesky(noise), shared_seed * rng.normal(size=(5, 2))
    of_trunk = trunk * rng.normal(size=(5, 2))
    centre = [of_seed[s] + root @ rng.normal(size=2) for s in range(5)]
    rows = []
    for axis, steps in STEPS.items():
        rows += [("centre", axis, s, 3.5, -1.0, *centre[s], f"centre-{s}") for s in range(5)]
        for step in steps:
            for s in range(seeds):
                error = of_seed[s] + root @ rng.normal(size=2) + of_trunk[s] * (axis == "steps")
                cluster = f"trunk-{s}" if axis == "steps" else f"{axis}{step}-{s}"
                quality = -1 + slopes[axis] * step + curve * step**2
                rows.append((f"{axis}{step}", axis, s, 3.5 + step, quality, *error, cluster))
    table = pd.DataFrame(rows, columns=["cell", "axis", "seed", "log_r", "log_q", "of_r", "of_q", "cluster"])
    return table.assign(log_r=table["log_r"] + table["of_r"], log_q=table["log_q"] + table["of_q"])


def plain(table):
    return table.drop(columns="cluster")


# --- one slope for all axes -------------------------------------------------------------------------------


def rejections(tables, prepare=plain, paired=True, **truth):
    found = [
        estimands.common_slope(prepare(simulate(seed, **truth)), paired=paired, draws=300, seed=seed)
        for seed in range(tables)
    ]
    return np.mean([each.p < 0.05 for each in found])


def test_a_common_slope_is_found_and_not_refused():
    found = estimands.common_slope(plain(simulate(0)))
    assert found.low < 0.5 < found.high and found.df == 5 and found.p > 0.05
    axes = found.axes().set_index("axis")
    assert ((axes["low"] < axes["slope"]) & (axes["slope"] < axes["high"])).all()
    assert axes.loc["width", "sign"] == 1 and axes.loc["width", "high"] < 0.6
    assert found.p_chi2 == pytest.approx(found.p, abs=0.1)


def test_errors_in_r_do_not_flatten_the_slope():
    """Where steps in ln R are hardly larger than its noise, least squares comes out too flat."""
    straight, flat = [], []
    for seed in range(60):
        table = plain(simulate(seed, shared_seed=0, noise=np.diag([0.15**2, 0.02**2]))).query(
            "axis in ['mask', 'data']"
        )
        straight.append(estimands.common_slope(table, draws=20).slope)
        cells = table.groupby(["axis", "cell"])[["log_r", "log_q"]].mean()
        away = cells - cells.groupby("axis").transform("mean")
        flat.append((away["log_r"] * away["log_q"]).sum() / (away["log_r"] ** 2).sum())
    assert np.median(flat) < 0.4
    assert np.median(straight) == pytest.approx(0.5, abs=0.08)


def test_slopes_of_exact_tables_are_exact():
    slopes = dict(zip(STEPS, (0.5, -0.4, 0.3, 0.8, 0.2, 1.0), strict=True))
    found = estimands.common_slope(plain(simulate(0, slopes=slopes, noise=1e-12 * np.eye(2))), draws=100)
    np.testing.assert_allclose(found.slopes, list(slopes.values()), rtol=1e-4)
    assert found.p < 0.02


def test_slopes_of_two_signs_are_refused():
    slopes = dict.fromkeys(STEPS, 0.5) | {"depth": -0.5, "rate": -0.5}
    assert rejections(20, slopes=slopes) == 1.0
    axes = estimands.common_slope(plain(simulate(1, slopes=slopes))).axes(level=0.95).set_index("axis")
    assert axes.loc[["width", "depth"], "sign"].to_list() == [1, -1]


def test_what_a_seed_does_to_all_cells_is_taken_out():
    quiet = estimands.common_slope(plain(simulate(3, shared_seed=0)), draws=200)
    loud = estimands.common_slope(plain(simulate(3, shared_seed=1.0)), draws=200)
    np.testing.assert_allclose(loud.slopes, quiet.slopes, rtol=1e-6)
    assert loud.j == pytest.approx(quiet.j, rel=1e-6)


def test_one_curved_law_is_mistaken_for_several_until_it_is_straightened():
    assert rejections(30, curve=0.25) > 0.4
    assert rejections(30, prepare=lambda table: estimands.straighten(plain(table)), curve=0.25) < 0.2
    straight = estimands.common_slope(estimands.straighten(plain(simulate(0, curve=0.25))))
    assert straight.low < 1 < straight.high
    with pytest.raises(ValueError, match="not monotone"):
        estimands.straighten(plain(simulate(0, slopes=0.0, curve=1.0)))


@pytest.mark.slow
def test_the_null_is_refused_about_as_often_as_it_should_be():
    assert 0.02 <= rejections(300) <= 0.09
    assert 0.02 <= rejections(300, paired=False, shared_seed=0) <= 0.09


@pytest.mark.slow
def test_runs_of_one_trunk_are_resampled_together():
    found = [estimands.common_slope(simulate(seed, trunk=0.06), draws=300, seed=seed) for seed in range(100)]
    assert np.mean([each.p < 0.05 for each in found]) <= 0.1
    steps = pd.concat([each.axes() for each in found]).query("axis == 'steps'")
    assert 0.78 <= ((steps["low"] <= 0.5) & (steps["high"] >= 0.5)).mean() <= 0.97


def test_the_null_is_not_refused_too_often():
    assert rejections(60) <= 0.15


def test_equivalence_asks_for_narrow_intervals_within_a_factor():
    many = plain(simulate(0, seeds=5))
    sharp = many.assign(log_r=many["log_r"] - 0.9 * many["of_r"], log_q=many["log_q"] - 0.9 * many["of_q"])
    pairs = estimands.common_slope(sharp).pairs().set_index(["first", "second"])
    assert pairs.loc[("width", "depth"), ["equivalent", "ratio_equivalent"]].all()
    assert (pairs["low"] < pairs["ratio"]).all() and (pairs["ratio"] < pairs["high"]).all()
    noisy = estimands.common_slope(many).pairs().set_index(["first", "second"])
    assert not noisy.loc[("mask", "data"), "ratio_equivalent"] and not noisy.loc[("mask", "data"), "equivalent"]
    assert not (pairs["equivalent"] & ~pairs["ratio_equivalent"]).any()  # the rule of the intervals is the stricter one
    opposite = sharp.assign(log_q=np.where(sharp["axis"] == "depth", -2 - sharp["log_q"], sharp["log_q"]))
    opposite.loc[opposite["cell"] == "centre", "log_q"] = sharp["log_q"]
    depth = estimands.common_slope(opposite).pairs().set_index(["first", "second"]).loc[("width", "depth")]
    assert depth["ratio"] < 0 and not depth["equivalent"] and not depth["ratio_equivalent"]


def test_same_seed_same_answer():
    table = plain(simulate(0))
    first, again, other = (estimands.common_slope(table, draws=100, seed=seed) for seed in (1, 1, 2))
    assert (first.p, first.low) == (again.p, again.low) and first.low != other.low


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop(columns="log_q"), "no column log_q; the table has cell, axis, seed, log_r"),
        (lambda t: t.assign(log_q=t["log_q"].where(t.index != 4)), "row 4: log_r, log_q must be finite"),
        (lambda t: pd.concat([t, t.tail(1)], ignore_index=True), "stands in the table twice"),
        (lambda t: t.query("axis == 'width'"), "one axis only"),
        (lambda t: t[(t["axis"] != "data") | (t["cell"] == "centre")], "axis data has one cell only"),
        (lambda t: t.query("seed == 0"), "tell nothing of the noise between seeds"),
        (lambda t: t.assign(log_q=t["log_q"] + (t["axis"] == "rate")), "cell centre, seed 0: the run has different"),
        (lambda t: t.assign(seed=t["seed"] + 10 * (t["axis"] == "mask"))[t["cell"] != "centre"], "take paired=False"),
    ],
)
def test_bad_tables_are_told_in_words(change, words):
    with pytest.raises(ValueError, match=words):
        estimands.common_slope(change(plain(simulate(0))), draws=10)


# --- leave one axis out -----------------------------------------------------------------------------------


def test_a_law_in_rank_foretells_every_axis_up_to_the_noise():
    table = plain(simulate(0)).assign(log_k=4.0)
    table.loc[table["cell"].str.startswith("width"), "log_k"] = table["log_r"]
    found = estimands.leave_one_axis_out(table).set_index("axis")
    assert found["cells"].to_dict() == {axis: len(steps) for axis, steps in STEPS.items()} | {"all": 15}
    assert found.loc["all", "rank"] == pytest.approx(found.loc["all", "ceiling"], abs=0.1)
    assert found.loc["all", "rank"] > 0.9
    assert found.loc["width", "width"] == 0.0  # log K does not vary on the other axes: nothing is learned


def test_an_axis_against_the_law_has_a_negative_r2():
    slopes = dict.fromkeys(STEPS, 0.5) | {"depth": -0.5}
    found = estimands.leave_one_axis_out(plain(simulate(0, slopes=slopes)), {"rank": ["log_r"]}).set_index("axis")
    assert found.loc["depth", "rank"] < 0 < found.loc["width", "rank"]


def test_r2_against_the_mean_of_the_cells_that_were_fitted():
    table = plain(simulate(0))
    found = estimands.leave_one_axis_out(table, {"rank": ["log_r"]}).set_index("axis")
    cells = table.drop_duplicates(["cell", "seed"]).groupby("cell")[["log_r", "log_q"]].mean()
    own = cells.index.str.startswith("width")
    slope, level = np.polyfit(cells["log_r"][~own], cells["log_q"][~own], 1)
    left = cells[own]
    wrong = ((level + slope * left["log_r"] - left["log_q"]) ** 2).sum()
    naive = ((cells["log_q"][~own].mean() - left["log_q"]) ** 2).sum()
    assert found.loc["width", "rank"] == pytest.approx(1 - wrong / naive)


def test_any_law_can_foretell_an_axis():
    table = plain(simulate(0))
    laws_of = {"line": ["log_r"], "power": estimands.law("power"), "saturating": estimands.law("saturating")}
    found = estimands.leave_one_axis_out(table, laws_of)
    np.testing.assert_allclose(found["line"], found["power"], atol=1e-6)
    assert found.set_index("axis").loc["all", "saturating"] > 0.8


# --- variance shares --------------------------------------------------------------------------------------


def shares_table(rng, rank=0.0, axis=0.0, slope=0.0, cell=0.0, seed=0.0):
    """log_q from parts with these standard deviations; 8 axes of 10 cells of 4 seeds, ranks alike on all axes."""
    rows = []
    for a in range(8):
        level, tilt = rng.normal(), rng.normal()
        for c in range(10):
            r, own = (c - 4.5) / 2.87, rng.normal()  # of variance 1
            fixed = rank * r + axis * level + slope * tilt * r + cell * own
            rows += [(f"{a}-{c}", f"a{a}", s, r, fixed + seed * rng.normal()) for s in range(4)]
    return pd.DataFrame(rows, columns=["cell", "axis", "seed", "log_r", "log_q"])


def test_variance_goes_where_it_comes_from():
    rng = np.random.default_rng(0)
    for part, name in (
        ("rank", "rank"),
        ("axis", "axis"),
        ("slope", "axis x rank"),
        ("cell", "cell"),
        ("seed", "seed"),
    ):
        shares = estimands.variance_shares(
            shares_table(rng, **{part: 1.0}, **({} if part == "seed" else {"seed": 0.05}))
        )
        assert shares.sum() == pytest.approx(1) and shares.idxmax() == name
        assert shares[name] > (0.85 if name != "axis x rank" else 0.6), shares


def test_shares_are_right_on_average_and_nothing_is_nothing():
    rng = np.random.default_rng(1)
    found = pd.DataFrame([estimands.variance_shares(shares_table(rng, rank=1.0, seed=1.0)) for _ in range(30)]).mean()
    wanted = {"rank": 0.5, "axis": 0.0, "axis x rank": 0.0, "cell": 0.0, "seed": 0.5}
    np.testing.assert_allclose(found[list(wanted)], list(wanted.values()), atol=0.02)


def test_a_cell_on_all_axes_is_left_out_of_the_shares():
    table = plain(simulate(0))
    without = table[table["cell"] != "centre"]
    pd.testing.assert_series_equal(estimands.variance_shares(table), estimands.variance_shares(without))
    with pytest.raises(ValueError, match="two axes"):
        estimands.variance_shares(without.query("axis == 'width'"))
    with pytest.raises(ValueError, match="no cell has two seeds"):
        estimands.variance_shares(without.query("seed == 0"))
