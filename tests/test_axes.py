"""Runs along an axis: which ones belong to it, what their seeds say, and what a correlation is worth."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankscale import axes
from rankscale.axes import AXES, CENTRE, LIVE


def test_a_run_lies_on_the_axes_that_it_moves_along_and_on_no_other():
    moved = {
        "width": {"encoder": "en128-4"},
        "depth": {"encoder": "en64-1"},
        "clips": {"clips": 2048},
        "steps": {"steps": 500},
        "mask_ratio": {"mask_ratio": 0.5},
        "lr": {"lr": 1e-3},
        "clip_s": {"clip_s": 2.56},
        "patch_frames": {"patch_frames": 2},
        "mask_group": {"mask_group": 1},
    }
    assert moved.keys() == AXES.keys()
    for name, changes in moved.items():
        config = CENTRE.replace(seed=3, **changes)
        assert [axis for axis in AXES if axes.on_axis(AXES[axis], config)] == [name]


def test_the_centre_lies_on_every_axis_and_a_corner_on_none():
    assert all(axes.on_axis(axis, CENTRE.replace(seed=2)) for axis in AXES.values())
    corner = CENTRE.replace(encoder="en128-8")
    assert not any(axes.on_axis(axis, corner) for axis in AXES.values())
    assert not any(axes.on_axis(axis, LIVE) for axis in AXES.values())


def seeded(values, seeds, sd=0.1, noise=0):
    """A table with y = log2(value), x = 2 y, and seeds that differ by `sd`."""
    rng = np.random.default_rng(noise)
    table = pd.DataFrame([(float(v), s) for v in values for s in range(seeds)], columns=["value", "seed"])
    table["y"] = np.log2(table["value"]) + sd * rng.normal(size=len(table))
    return table.assign(x=2 * np.log2(table["value"]) + sd * rng.normal(size=len(table)))


def test_correlations_and_their_ties_are_scipys():
    table = seeded([1, 2, 4, 8], 3, sd=1.5).round(0)
    found = axes.association(table, "x", "y", draws=10)
    assert found.spearman == pytest.approx(stats.spearmanr(table["x"], table["y"]).statistic)
    assert found.kendall == pytest.approx(stats.kendalltau(table["x"], table["y"]).statistic)
    assert (found.runs, found.cells) == (12, 4)


@pytest.mark.parametrize("joint", [False, True])
def test_an_interval_is_about_the_estimate_and_repeats(joint):
    table = seeded([1, 2, 4, 8], 3, sd=1.0)
    found = axes.association(table, "x", "y", joint=joint)
    assert found.low <= found.spearman <= found.high
    assert found.low < found.high
    assert found == axes.association(table, "x", "y", joint=joint)
    assert found.sign == 1 and found.word == "follows"


def test_rank_correlation_knows_nothing_of_units():
    table = seeded([1, 2, 4, 8], 3, sd=1.0)
    found, bent = (axes.association(each, "x", "y") for each in (table, table.assign(x=np.exp(table["x"]))))
    assert (found.spearman, found.kendall) == (bent.spearman, bent.kendall)
    assert axes.association(table.assign(x=4 * table["x"] - 8), "x", "y") == found


def test_an_interval_keeps_the_noise_within_cells():
    """Seeds drawn as they are would agree with themselves: with two a cell, half of the draws would have no noise."""
    table = seeded([1, 2, 4, 8, 16], 2, sd=1.5)
    found = axes.association(table, "x", "y", joint=True)
    assert found.low < found.spearman < found.high
    drawn = axes._redraw(table, ["x", "y"], "value", False, 4000, np.random.default_rng(0))
    of_cell = table["value"].factorize()[0]
    within = np.mean([drawn[:, of_cell == c].var(axis=1).mean() for c in range(5)])
    wanted = np.mean([table.loc[of_cell == c, ["x", "y"]].to_numpy().var(axis=0).mean() for c in range(5)])
    assert within == pytest.approx(wanted, rel=0.05)


def test_an_interval_in_words_says_when_there_is_none():
    assert axes.interval_words(-0.125, 0.5) == "95 % interval [-0.12, 0.50]"
    assert axes.interval_words(float("nan"), float("nan")) == "no interval: single seeds"


def test_single_runs_are_said_aloud():
    table = pd.DataFrame({"value": [1, 1, 1, 2, 3], "seed": [0, 1, 2, 0, 0]})
    assert axes.noise_words(table).startswith("2 of 3 cells have one run only.")
    assert "3 of 5 runs in one cell" in axes.noise_words(table)
    assert "No cell has a second seed" in axes.noise_words(table[table["seed"] == 0])
    assert axes.noise_words(table[table["value"] == 1]) == "Every cell has several runs."


def test_without_a_second_seed_there_is_no_interval():
    table = seeded([1, 2, 4, 8], 1)
    found = axes.association(table, "x", "y")
    assert found.spearman == pytest.approx(1) and np.isnan([found.low, found.high]).all()
    assert found.word == "cannot yet, with single seeds, be said to follow"
    half = pd.concat([table, table[table["value"] == 2].assign(seed=1, x=0.0)])
    assert np.isnan(axes.association(half, "x", "y").low)
    assert axes.change(table, "y", 1, 8).word == "has one seed only"


def test_a_seed_that_lacks_a_cell_is_not_drawn_jointly():
    table = seeded([1, 2, 4], 3).drop(index=2)  # seed 2 lacks the first value
    found = axes.association(table, "x", "y", joint=True)
    assert found.runs == 8 and np.isfinite(found.low)


def test_too_few_runs_are_refused_with_the_columns():
    with pytest.raises(ValueError, match="x and y needs three runs"):
        axes.association(seeded([1, 2], 1), "x", "y")
    with pytest.raises(ValueError, match="differ in both"):
        axes.association(seeded([1, 2, 4], 1).assign(y=1.0), "x", "y")


def test_a_change_is_the_t_interval_of_the_pooled_seeds():
    table = seeded([1, 8], 5, sd=0.3)
    moved = axes.change(table, "y", 1, 8)
    one, other = (table.loc[table["value"] == v, "y"] for v in (8, 1))
    expected = stats.ttest_ind(one, other).confidence_interval(0.95)
    assert (moved.low, moved.high) == pytest.approx((expected.low, expected.high))
    assert moved.df == 8 and moved.word == "rises"
    assert axes.change(table.assign(y=-table["y"]), "y", 1, 8).word == "falls"


def test_a_change_covers_the_truth_as_often_as_it_says():
    covered = [
        (moved := axes.change(seeded([1, 2, 4, 8], 3, sd=1.0, noise=k), "y", 1, 8)).low <= 3 <= moved.high
        for k in range(400)
    ]
    assert 0.92 <= np.mean(covered) <= 0.98


def test_probes_agree_only_where_all_of_them_do():
    rise, fall = axes.Change(1, 0.5, 1.5, 0.1, 8), axes.Change(-1, -1.5, -0.5, 0.1, 8)
    unclear = axes.Change(0.1, -0.5, 0.7, 0.1, 8)
    assert axes.robust_words({"a": rise, "b": rise}) == "rises by all 2 probes"
    assert axes.robust_words({"a": unclear, "b": unclear}) == "does not clearly change by any of the 2 probes"
    single = axes.Change(0.1, float("nan"), float("nan"), float("nan"), 0)
    assert axes.robust_words({"a": single, "b": single}) == "has one seed only"
    words = axes.robust_words({"a": rise, "b": fall, "c": unclear})
    assert words == "depends on the probe (rises by 1, falls by 1, is unclear by 1)"


def test_variance_shares_recover_what_the_table_was_made_of():
    rng = np.random.default_rng(0)
    arms = np.repeat(np.arange(400), 4)
    table = pd.DataFrame({"value": arms, "y": 3 * rng.normal(size=400)[arms] + rng.normal(size=1600)})
    found = axes.variance_shares(table, "y")
    assert found.arm == pytest.approx(0.9, abs=0.02) and found.low < 0.9 < found.high
    assert found.arm_sd == pytest.approx(3, rel=0.1) and found.seed_sd == pytest.approx(1, rel=0.1)


def test_variance_shares_cover_the_truth_and_see_nothing_where_nothing_is():
    rng = np.random.default_rng(1)
    arms = np.repeat(np.arange(6), [5, 3, 3, 3, 3, 3])
    covered, none = [], []
    for _ in range(300):
        noise = rng.normal(size=len(arms))
        found = axes.variance_shares(pd.DataFrame({"value": arms, "y": rng.normal(size=6)[arms] + noise}), "y")
        covered.append(found.low <= 0.5 <= found.high)
        none.append(axes.variance_shares(pd.DataFrame({"value": arms, "y": noise}), "y").low == 0)
    assert 0.92 <= np.mean(covered) <= 0.98
    assert np.mean(none) > 0.94


def test_variance_shares_need_seeds():
    with pytest.raises(ValueError, match="cannot be told apart"):
        axes.variance_shares(seeded([1, 2, 4], 1), "y")


def test_within_arms_ignores_what_arms_do():
    rng = np.random.default_rng(2)
    arm = np.repeat(np.arange(20), 3)
    seed = rng.normal(size=60)
    table = pd.DataFrame({"arm": arm, "x": 10 * arm - seed, "y": 10 * arm + seed + 0.1 * rng.normal(size=60)})
    r, low, high, df = axes.within_arms(table, "x", "y", "arm")
    assert low < r < high < -0.9 and df == 40
    table["y"] = 10 * arm + rng.normal(size=60)
    r, low, high, _ = axes.within_arms(table, "x", "y", "arm")
    assert low < r < high and abs(r) < 0.5
    assert np.corrcoef(table["x"], table["y"])[0, 1] > 0.99


def test_equal_compute_groups_span_at_most_the_factor():
    table = pd.DataFrame({"train_flop": [10.0, 1.0, 1.2, 12.4, 12.6, 1.25]}, index=[5, 1, 2, 3, 4, 0])
    groups = axes.equal_compute(table)
    assert groups[1] == groups[2] == groups[0] != groups[5]
    assert groups[5] == groups[3] != groups[4]


def test_bands_span_the_seeds():
    found = axes.bands(seeded([1, 2], 3), ["y"]).set_index("value")
    assert (found["low"] <= found["mean"]).all() and (found["mean"] <= found["high"]).all()
    assert list(found["n"]) == [3, 3]


def test_a_run_that_the_centre_could_not_be_lies_on_no_axis():
    deep = LIVE.replace(encoder="en64-4", layer=3)  # the centre's encoder has two blocks
    assert not any(axes.on_axis(axis, deep, LIVE) for axis in AXES.values())
