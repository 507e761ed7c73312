"""All runs of a sweep side by side: which are taken, which are matched, what a choice among them costs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankscale import arms
from rankscale.axes import CENTRE, LIVE, pooled_sd
from rankscale.sweep import plan, read_spec

ROOT = Path(__file__).resolve().parent.parent


def made(rows):
    """A table of runs: (arm, group, x, y), a seed more for every time an arm is named."""
    table = pd.DataFrame(rows, columns=["arm", "group", "x", "y"])
    return table.assign(label=table["arm"], seed=table.groupby("arm").cumcount(), width=64)


def ranked(n, sign=1, seeds=3, noise=0.01, groups=2):
    """`groups` groups of `n` arms, in which y goes with x, or against it."""
    rng = np.random.default_rng(1)
    rows = [(f"{g}-{i}", g, i + noise * rng.normal(), sign * i + 100 * g) for g in range(groups) for i in range(n)]
    return made([row for row in rows for _ in range(seeds)])


def test_test_cells_are_found_and_nothing_else_is_held_back():
    held = arms.held_back(ROOT / "data/sweeps")
    runs = read_spec(ROOT / "data/sweeps/small.yaml").blocks["test"].runs
    assert {arms.arm_of(CENTRE.replace(**run, seed=3)) for run in runs} <= held
    for name in ("small", "more"):
        planned = plan(read_spec(ROOT / f"data/sweeps/{name}.yaml"))
        assert not [p for p in planned if "test" not in p.blocks and arms.arm_of(p.config) in held]


def test_a_run_is_placed_by_what_differs_from_the_centre():
    assert arms.moved(CENTRE.replace(seed=4)) == {}
    assert arms.moved(CENTRE.replace(encoder="en128-1", lr=1e-3)) == {"width": 128, "depth": 1, "lr": 1e-3}
    assert arms.in_reach(CENTRE.replace(encoder="en128-1", seed=2))
    assert not arms.in_reach(CENTRE.replace(batch=32)) and not arms.in_reach(LIVE)
    assert not arms.in_reach(CENTRE.untrained())
    assert not arms.in_reach(CENTRE.replace(layer=3), LIVE)  # of which en64-2 has no third


def test_a_table_without_runs_in_reach_is_refused():
    with pytest.raises(ValueError, match="no finished run"):
        arms.sweep_table([])


def test_matched_runs_have_one_width_and_nearly_one_price():
    table = pd.DataFrame({"width": [32, 64, 64, 64], "train_flop": [10, 10.0, 12.0, 14.0]})
    groups = arms.matched_groups(table)
    assert groups[1] == groups[2]
    assert groups.nunique() == 3


def test_means_and_their_draws_stay_within_an_arms_seeds():
    table = made([("a", 0, 1, 10), ("a", 0, 3, 30), ("b", 0, 7, 70)])
    names, means = arms.drawn_means(table, ["x", "y"], draws=50)
    assert list(names) == ["a", "b"] and means.shape == (51, 2, 2)
    assert means[0].tolist() == [[2, 7], [20, 70]]
    assert set(means[1:, 0, 0]) == {1, 2, 3}
    assert np.allclose(means[:, 1], 10 * means[:, 0])  # whole runs are drawn, not numbers


def test_an_arm_with_one_run_borrows_the_luck_of_the_others():
    rng = np.random.default_rng(5)
    rows = [(f"a{i}", 0, i + rng.normal(scale=0.3), 0.0) for i in range(40) for _ in range(3)]
    table = made([*rows, ("alone", 0, 5.0, 0.0)])
    _, means = arms.drawn_means(table, ["x", "y"])
    alone, (sd, _) = means[1:, 0, -1], pooled_sd(table, "x", by="arm")
    assert alone.mean() == pytest.approx(5, abs=0.03) and alone.std() == pytest.approx(sd, rel=0.05)
    assert (means[:, 1] == 0).all()


def test_without_a_second_seed_nothing_is_drawn():
    found = arms.pair_agreement(ranked(4, seeds=1), "x", "y", "group")
    assert found.estimate == 1 and np.isnan([found.low, found.high]).all()
    assert "single seeds" in found.word


@pytest.mark.parametrize(("sign", "share", "word"), [(1, 1.0, "follows"), (-1, 0.0, "goes against")])
def test_pairs_are_compared_within_groups_only(sign, share, word):
    found = arms.pair_agreement(ranked(5, sign), "x", "y", "group")
    assert found.estimate == share and found.n == 20
    assert found.p < 0.01 and found.word == word


def test_a_pair_is_counted_as_kendall_counts_it():
    table = ranked(7, groups=1, seeds=1, noise=5.0)
    found = arms.pair_agreement(table, "x", "y", "group")
    assert 2 * found.estimate - 1 == pytest.approx(stats.kendalltau(table["x"], table["y"]).statistic)


def test_p_values_are_uniform_where_there_is_nothing():
    rng = np.random.default_rng(0)
    p = []
    for _ in range(60):
        table = ranked(6, seeds=1).assign(y=rng.normal(size=12))
        p.append(arms.pair_agreement(table, "x", "y", "group", draws=200).p)
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="nothing to compare"):
        arms.pair_agreement(ranked(1), "x", "y", "group")
    with pytest.raises(ValueError, match="nothing to choose"):
        arms.regret(ranked(1), "y", "group", {"x": ("x", 1)})


def test_partial_correlation_is_that_of_the_residuals():
    rng = np.random.default_rng(2)
    table = made([(str(i), 0, *rng.normal(size=2)) for i in range(30)]).assign(width=rng.integers(4, size=30))
    ranks = table[["x", "y", "width"]].rank()
    rest = [np.polyval(np.polyfit(ranks["width"], ranks[c], 1), ranks["width"]) - ranks[c] for c in ("x", "y")]
    found = arms.partial_spearman(table, "x", "y", "width", draws=10)
    assert found.estimate == pytest.approx(np.corrcoef(*rest)[0, 1])


def test_what_width_does_alone_is_taken_out():
    """x and y grow with width and with nothing else: no partial correlation, though the plain one is near 1."""
    rng = np.random.default_rng(3)
    width = np.repeat([32, 64, 128, 256], 6)
    table = made([(str(i), 0, w + rng.normal(), w + rng.normal()) for i, w in enumerate(width)]).assign(width=width)
    assert stats.spearmanr(table["x"], table["y"]).statistic > 0.9
    assert arms.partial_spearman(table, "x", "y", "width").p > 0.05
    with pytest.raises(ValueError, match="nothing to take out"):
        arms.partial_spearman(table.assign(width=64), "x", "y", "width")


def test_pairs_closer_than_seeds_are_not_told_apart():
    rows = [("a", 0, 0.0, 0.0), ("b", 0, 5.0, 5.0), ("c", 0, 5.1, -5.0), ("d", 0, 9.0, 5.1)]
    shifted = [(arm, g, x + d, y + d) for arm, g, x, y in rows for d in (-0.3, 0.0, 0.3)]
    pairs = arms.resolved_pairs(made(shifted), "x", "y", "group").set_index(["one", "other"])["verdict"]
    assert pairs["a", "b"] == "agree" and pairs["a", "c"] == "disagree"
    assert pairs["b", "c"] == "x not told apart" and pairs["b", "d"] == "only x told apart"
    alone = arms.resolved_pairs(made(rows), "x", "y", "group")
    assert set(alone["verdict"]) == {"x not told apart"}  # one seed tells nothing


def test_regret_is_what_the_best_has_more():
    table = made(
        [("a", 0, 1, 5.0), ("b", 0, 2, 3.0), ("c", 0, 2, 1.0), ("d", 1, 1, 0.0), ("e", 1, 2, 7.0), ("f", 2, 9, 9)]
    )
    rules = {"high": ("x", +1), "low": ("x", -1), "blind": (None, 0)}
    found = arms.regret(table, "y", "group", rules).set_index(["group", "rule"])
    assert found.loc[(0, "high"), "regret"] == 3.0 and found.loc[(0, "high"), "chosen"] == "b | c"  # a tie is shared
    assert found.loc[(0, "low"), "regret"] == 0.0 and found.loc[(0, "low"), "chosen"] == "a"
    assert found.loc[(0, "blind"), "regret"] == 2.0 and found.loc[(0, "blind"), "gain"] == 0
    assert found.loc[(0, "high"), "gain"] == -1.0 and found.loc[("all", "high"), "gain"] == 1.25
    assert found.loc[("all", "high"), "regret"] == 1.5 and found.loc[("all", "high"), "arms"] == 5  # f is alone
    assert np.isnan(found["low"]).all()


def test_regret_is_never_negative_and_its_interval_holds_it():
    table = ranked(4, seeds=3).assign(y=lambda t: t["y"] + np.random.default_rng(4).normal(size=len(t)))
    found = arms.regret(table, "y", "group", {"high": ("x", 1)})
    assert (found["low"] >= 0).all() and (found["low"] <= found["high"]).all()
