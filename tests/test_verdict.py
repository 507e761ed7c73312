"""The plan's verdict: which cells count, what the test cells say, and the rule, case by case."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from rankscale import arms, estimands, records, verdict
from rankscale.axes import CENTRE

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def published():
    return records.read_records(ROOT / "data" / "runs")


@pytest.fixture(scope="module")
def counted():
    return verdict.counted_arms(ROOT / "data" / "sweeps" / "small.yaml")


# --- the cells --------------------------------------------------------------------------------------------


def test_test_cells_do_not_count(counted):
    assert not counted & arms.held_back(ROOT / "data" / "sweeps")
    assert arms.arm_of(CENTRE) in counted


def test_the_centre_is_on_every_axis_and_the_stress_arm_on_none(published, counted):
    table = verdict.axis_table(published, counted)
    assert set(table["axis"]) == set(verdict.AXES)
    centre = table[table["label"] == "centre"]
    assert (centre.groupby("seed")["axis"].nunique() == len(verdict.AXES)).all()
    assert table["epochs"].max() <= verdict.MOST_EPOCHS and "clips 2048" not in set(table["label"])
    seed0 = table[table["seed"] == 0]
    branches = seed0[(seed0["axis"] == "steps")]
    assert branches["cluster"].nunique() == 1 and len(branches) > 2
    assert seed0[seed0["axis"] == "width"]["cluster"].nunique() == seed0[seed0["axis"] == "width"]["cell"].nunique()


def test_cells_without_a_logarithm_are_named_and_left_out_whole():
    table = pd.DataFrame(
        {"cell": list("aabb"), "label": list("aabb"), "rank": 8.0, "width": 64, "q": [0.1, 0.2, 0.3, -0.1]}
    )
    kept, left_out = verdict.with_logs(table, "rank", "q")
    assert left_out == ["b"] and list(kept["cell"]) == ["a", "a"]
    np.testing.assert_allclose(kept["log_q"], np.log([0.1, 0.2]))


def rates_table(losses):
    """losses: (lr, seed) -> held-out loss, at the centre."""
    rows = [(lr, seed, loss) for (lr, seed), loss in losses.items()]
    same = {name: getattr(CENTRE, name) for name in ("depth", "width", "clips", "steps", "mask_ratio")}
    return pd.DataFrame(rows, columns=["lr", "seed", "heldout_loss"]).assign(**same)


def test_rates_are_compared_over_the_seeds_they_share():
    losses = {(1e-3, 0): 0.40, (1e-3, 1): 0.44, (2e-3, 0): 0.41, (2e-3, 1): 0.41, (2e-3, 2): 0.90}
    assert verdict.best_rates(rates_table(losses)) == {64: {2e-3}}
    assert verdict.best_rates(rates_table(losses), tolerance=0.011) == {64: {1e-3, 2e-3}}
    with pytest.raises(ValueError, match="width 64: its learning rates share no seed"):
        verdict.best_rates(rates_table({(1e-3, 0): 0.4, (2e-3, 1): 0.4}))


def test_the_region_keeps_tuned_runs_past_the_dip_and_axes_of_two_cells():
    rows = [("steps", "a", 250, 2e-3), ("steps", "b", 500, 2e-3), ("steps", "c", 2000, 2e-3), ("lr", "c", 2000, 2e-3),
            ("lr", "d", 2000, 1e-3)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["axis", "cell", "steps", "lr"]).assign(width=64)
    inside = verdict.inside_region(table, {64: {2e-3}})
    assert list(inside["cell"]) == ["b", "c"] and set(inside["axis"]) == {"steps"}
    assert verdict.inside_region(table, {32: {2e-3}}).empty


# --- the test cells ---------------------------------------------------------------------------------------


def law_table(cells, by_rank, by_width, prefix, noise=0.01, seeds=3, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for cell in range(cells):
        r, k = rng.normal(3.2, 0.4), rng.choice(np.log([32, 64, 128]))
        for run in range(seeds):
            rows.append((f"{prefix}{cell}", run, r, k, by_rank * r + by_width * k + noise * rng.normal()))
    table = pd.DataFrame(rows, columns=["arm", "seed", "log_r", "log_k", "log_q"])
    return table.assign(label=table["arm"])


LAWS = {"rank": ["log_r"], "width": ["log_k"], "both": ["log_r", "log_k"]}


def foretell(by_rank, by_width, draws=300):
    unseen = law_table(10, by_rank, by_width, "t", seeds=1, seed=1)
    return verdict.foretell(law_table(20, by_rank, by_width, "f"), unseen, LAWS, draws=draws)


def test_the_law_that_made_the_cells_foretells_them():
    found = foretell(0.7, 0.0)
    assert found.error("rank") < 0.02 < 0.1 < found.error("width")
    gain, low, high = found.gain("rank", over="width")
    assert 0 < low < gain < high
    assert found.rho("rank")[0] > 0.95 and found.rho("rank")[1] > 0.5 and len(found.labels) == 10
    width = foretell(0.0, 0.7)
    assert width.gain("rank", over="width")[2] < 0 and width.error("width") < 0.02 and width.error("both") < 0.02


def test_the_planes_are_those_of_numpy():
    fitted, test = law_table(12, 0.5, 0.2, "f"), law_table(5, 0.5, 0.2, "t", seed=1)
    found = verdict.foretell(fitted, test, LAWS, draws=10)
    means, unseen = (table.groupby("arm")[["log_r", "log_k", "log_q"]].mean() for table in (fitted, test))
    for name, columns in LAWS.items():
        plane = np.linalg.lstsq(np.column_stack([np.ones(12), means[columns]]), means["log_q"])[0]
        predicted = np.column_stack([np.ones(5), unseen[columns]]) @ plane
        np.testing.assert_allclose(found.predicted[name][0], predicted)
        assert found.error(name) == pytest.approx(np.sqrt(((predicted - unseen["log_q"]) ** 2).mean()))


def test_without_seeds_there_is_no_interval():
    found = verdict.foretell(law_table(9, 1, 0, "f", seeds=1), law_table(4, 1, 0, "t", seeds=1), LAWS)
    assert np.isnan(found.gain("rank", over="width")[1:]).all()


def test_test_cells_must_be_unseen_and_enough_and_complete():
    table = law_table(5, 0.5, 0.0, "f")
    with pytest.raises(ValueError, match="cell f0 is fitted and foretold"):
        verdict.foretell(table, table, LAWS)
    with pytest.raises(ValueError, match=r"2 test cell\(s\)"):
        verdict.foretell(table, law_table(2, 0.5, 0.0, "t"), LAWS)
    with pytest.raises(ValueError, match="column log_r is missing"):
        verdict.foretell(table.assign(log_r=table["log_r"].where(table["arm"] != "f1")), law_table(4, 0, 0, "t"), LAWS)


# --- the rule ---------------------------------------------------------------------------------------------


def slopes(p, slopes, spread=0.02):
    """A `CommonSlope` whose axes have these slopes."""
    values = np.array(slopes, dtype=float)
    drawn = values + spread * np.random.default_rng(0).normal(size=(500, len(values)))
    names = tuple("abc"[: len(values)])
    return estimands.CommonSlope(values.mean(), 0.0, 1.0, 1.0, len(values) - 1, p, p, names, values, drawn)


def gains(low):
    return SimpleNamespace(gain=lambda law, over: (0.05, low, 0.1))


GOOD, BAD = gains(0.01), gains(-0.01)
ALIKE, APART, OPPOSED = slopes(0.5, [1, 1, 1]), slopes(0.001, [1, 2, 3]), slopes(0.001, [1, 1, -1])


@pytest.mark.parametrize(
    ("inside", "everywhere", "tested", "word"),
    [
        (ALIKE, ALIKE, GOOD, "holds"),
        (ALIKE, APART, GOOD, "holds"),
        (ALIKE, APART, BAD, "conditional"),
        (ALIKE, ALIKE, BAD, "undecided"),
        (ALIKE, None, None, "undecided"),
        (OPPOSED, ALIKE, GOOD, "fails at this scale"),
        (APART, OPPOSED, BAD, "undecided"),  # refused, but all rise
        (slopes(0.5, [1, 1, -1]), ALIKE, GOOD, "undecided"),  # opposed, but not refused
        (slopes(0.5, [1, 1, 1], spread=0.5), APART, GOOD, "undecided"),  # not refused for want of precision
        (None, OPPOSED, GOOD, "undecided"),
    ],
)
def test_the_rule_case_by_case(inside, everywhere, tested, word):
    found = verdict.judge(inside, everywhere, tested)
    assert found.word == word and word in verdict.WORDS
    assert dict(found.reasons)["inside the region, one slope is measurable"] == (inside is not None)
