"""Early prediction: nothing is known before its time, true orders are found, and stopping costs what it costs."""

import altair as alt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankscale import arms, early, early_charts
from rankscale.axes import CENTRE
from rankscale.budget import budget
from rankscale.pretrain import HistoryPoint, history_steps
from rankscale.records import RunRecord, provenance


def made_record(config=CENTRE, rank=lambda step: 20.0, sigma=None):
    """A record with a history only: RankMe by step, and the same spectrum at every point."""
    history = [
        HistoryPoint(step, 1e-3, None, 1 / (1 + step), None, rank(step), 3072, sigma)
        for step in sorted(history_steps(config))
    ]
    told = provenance("cpu", "2026-01-01T00:00:00Z", 0.0, 0.0)
    return RunRecord(
        hash=config.hash, config=config, status="ok", budget=budget(config), history=history, provenance=told
    )


def made(n=30, seeds=3, early_noise=0.0, noise=0.1, rng=None):
    """Arms whose quality is their number in the table; `x` knows it early, `late` less noisily, `none` not at all."""
    rng = rng or np.random.default_rng(3)
    arm = np.repeat(np.arange(n), seeds)
    truth = rng.normal(size=n)[arm]
    return pd.DataFrame(
        {
            "arm": [f"a{i}" for i in arm],
            "axis": [("centre", "width", "depth", "lr")[i % 4] for i in arm],
            "x": truth + early_noise * rng.normal(size=n)[arm] + noise * rng.normal(size=n * seeds),
            "none": rng.normal(size=n)[arm] + noise * rng.normal(size=n * seeds),
            "q": truth + noise * rng.normal(size=n * seeds),
            "train_flop": 1.0,
        }
    )


# --- what is known, and when ------------------------------------------------------------------------------


def test_points_hold_the_numbers_of_every_point_of_a_history():
    sigma = (np.arange(1, 65) ** -0.5).tolist()
    table = early.points([made_record(rank=lambda step: 20 + step / 100, sigma=sigma)])
    assert table["step"].tolist() == sorted(history_steps(CENTRE))
    assert table["share"].iloc[-1] == 1
    assert np.allclose(table["log_rank"], np.log(table["rankme"]) + 64 / (8 * 3072))
    assert np.allclose(table["regrown"], np.log(table["rankme"] / 20))
    assert np.allclose(table["flatness"], -1)  # eigenvalues fall as 1 / i
    assert np.allclose(table["log_stable"], np.log((1 / np.arange(1, 65)).sum()))
    assert (table["low_loss"] == -1 / (1 + table["step"])).all()


def test_only_the_last_point_of_a_branch_lies_in_its_decay():
    table = early.points([made_record()])
    assert table["decaying"].tolist() == [False] * (len(table) - 1) + [True]


def test_a_history_without_spectra_or_with_few_ranks_has_no_spectral_numbers():
    bare = early.points([made_record()])
    few = early.points([made_record(sigma=[3.0, 2.0, 1.0])])
    assert bare[["flatness", "log_stable"]].isna().all(axis=None)
    assert few["flatness"].isna().all() and np.allclose(few["log_stable"], np.log(14 / 9))


def test_untrained_encoders_have_no_points_along_training():
    trained = made_record()
    untrained = trained.model_copy(update={"config": CENTRE.untrained(), "hash": CENTRE.untrained().hash})
    assert set(early.points([trained, untrained])["hash"]) == {CENTRE.hash}


@pytest.mark.parametrize(("share", "step"), [(0, 0), (0.05, 64), (0.1, 128), (0.128, 256), (0.2, 256), (1, 2000)])
def test_what_is_known_is_the_last_point_not_after(share, step):
    table = early.points([made_record(), made_record(CENTRE.replace(seed=1))])
    assert early.at(table, share)["step"].tolist() == [step, step]


def test_a_share_beyond_the_run_is_refused():
    with pytest.raises(ValueError, match="from 0 to 1, got 10"):
        early.at(early.points([made_record()]), 10)


def test_shorter_branches_are_those_of_the_same_trunk():
    config = CENTRE.replace(seed=1)
    other = [
        CENTRE.replace(steps=500),
        config.replace(encoder="en32-4", steps=500),
        config.replace(pool="meanstd", steps=500),
    ]
    runs = [made_record(each) for each in (config, config.replace(steps=500), config.replace(steps=4000), *other)]
    found = early.shorter(runs, CENTRE.steps)
    assert found.to_numpy().tolist() == [[config.hash, config.replace(steps=500).hash, 500, 0.25]]


# --- phases -----------------------------------------------------------------------------------------------


def test_a_path_is_cut_where_it_turns_and_not_where_it_trembles():
    steps = np.arange(9)
    values = [1.0, 0.6, 0.2, 0.25, 0.1, 0.7, 0.65, 0.9, 0.5]
    found = early.legs(steps, values, noise=0.2)
    assert found["start"].tolist() == [0, 4, 7] and found["end"].tolist() == [4, 7, 8]
    assert np.allclose(found["change"], [-0.9, 0.8, -0.4])
    assert np.isclose(found["change"].sum(), values[-1] - values[0])
    assert early.legs(steps, values, noise=2).empty


def test_a_first_tremble_is_no_leg():
    found = early.legs([0, 1, 2], [0.0, -0.05, 1.0], noise=0.1)
    assert found[["start", "end"]].to_numpy().tolist() == [[1, 2]]


def test_phases_are_named_and_measured():
    steps = np.array([0, 16, 32, 64, 128, 256, 512])
    shapes = {
        "flat": np.zeros(7),
        "collapse": [0, -0.2, -0.4, -0.6, -0.6, -0.6, -0.6],
        "collapse, expand": [0, -0.2, -0.4, -0.2, 0, 0.1, 0.2],
        "collapse, expand, compress": [0, -0.2, -0.4, -0.2, 0, -0.1, -0.3],
        "several turns": [0, -0.5, 0, -0.5, 0, -0.5, 0],
    }
    rng = np.random.default_rng(0)
    rows = [
        (name, step, value + 0.01 * rng.normal())
        for name, path in shapes.items() for _ in range(4) for step, value in zip(steps, path, strict=True)
    ]  # fmt: skip
    found = early.phases(pd.DataFrame(rows, columns=["arm", "step", "log_rank"]), noise=0.05).set_index("arm")
    assert (found["phases"] == found.index).all()
    three = found.loc["collapse, expand, compress"]
    assert three["dip_step"] == 32
    assert three[["dip", "growth", "drop"]].to_numpy(float) == pytest.approx([0.4, 0.4, 0.3], abs=0.03)
    assert found.loc["collapse", "drop"] == 0 and np.isnan(found.loc["flat", "dip_step"])


# --- the ranking ------------------------------------------------------------------------------------------


def test_correlations_are_spearmans_over_means():
    table = made(early_noise=0.7)
    found = early.correlations(table, ["x", "none"], ["q"], draws=200)
    means = table.groupby("arm")[["x", "none", "q"]].mean()
    assert found.shape == (201, 2)
    assert found["x", "q"].iloc[0] == pytest.approx(stats.spearmanr(means["x"], means["q"]).statistic)
    value, low, high = arms.estimate(found["x", "q"])
    assert 0 < low < value < high < 1
    assert np.prod(np.sign(arms.estimate(found["none", "q"])[1:])) < 0


def test_what_both_owe_to_a_third_is_taken_out():
    rng = np.random.default_rng(0)
    width = np.repeat(rng.integers(1, 5, size=40), 2)
    table = pd.DataFrame({"arm": np.repeat(np.arange(40), 2), "width": width})
    table["x"], table["q"] = (width + 0.3 * rng.normal(size=80) for _ in range(2))
    plain = early.correlations(table, ["x"], ["q"], draws=100).iloc[0, 0]
    given = early.correlations(table, ["x"], ["q"], given="width", draws=100).iloc[0, 0]
    assert plain > 0.8 and abs(given) < 0.35


def test_intervals_that_draw_arms_cover_the_true_correlation():
    """Spearman's of bivariate normals is (6 / pi) asin(r / 2): 95 % intervals hold it in 88 of 100 tables or more."""
    r, hits = 0.6, 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        x, e = rng.normal(size=(2, 30))
        table = pd.DataFrame({"arm": np.repeat(np.arange(30), 2), "x": np.repeat(x, 2)})
        table["q"] = np.repeat(r * x + np.sqrt(1 - r**2) * e, 2)
        _, low, high = arms.estimate(early.correlations(table, ["x"], ["q"], draws=200).iloc[:, 0])
        hits += low <= 6 / np.pi * np.arcsin(r / 2) <= high
    assert hits >= 88


def test_without_a_second_seed_there_is_no_interval():
    found = early.correlations(made(seeds=1), ["x"], ["q"])
    assert len(found) == 1 and np.isnan(arms.estimate(found["x", "q"])[1:]).all()


def test_three_arms_cannot_be_ranked():
    with pytest.raises(ValueError, match="3 arms: a rank correlation of x needs at least 4"):
        early.correlations(made(n=3), ["x"], ["q"])


# --- the value --------------------------------------------------------------------------------------------


def test_a_line_that_holds_everywhere_foretells_to_the_noise():
    table = made(n=80, noise=0.1)
    found = early.foretell(table, {"mean": [], "x": ["x"], "none": ["none"], "both": ["x", "none"]}, "q", draws=100)
    errors = found.iloc[0]
    assert errors["x"] == pytest.approx(0.1 * np.sqrt(2 / 3), rel=0.25)  # three seeds, luck in both numbers
    assert errors["mean"] == pytest.approx(1, abs=0.2)
    assert errors["x"] < errors["both"] * 1.1 < errors["none"]
    assert arms.estimate(found["mean"] - found["x"])[1] > 0


def test_groups_are_foretold_from_the_others_only():
    table = pd.DataFrame({"arm": list("abcd"), "axis": ["centre", "one", "one", "two"], "q": [0.0, 1.0, 3.0, 7.0]})
    found = early.foretell(table, {"mean": []}, "q")
    errors = [1.0 - 3.5, 3.0 - 3.5, 7.0 - 4 / 3]
    assert found["mean"].tolist() == pytest.approx([np.sqrt(np.mean(np.square(errors)))])
    with pytest.raises(ValueError, match="1 group"):
        early.foretell(table.iloc[:3], {"mean": []}, "q")


# --- what stopping early costs ----------------------------------------------------------------------------


def test_a_perfect_rule_has_no_regret_and_a_blind_one_no_gain():
    table = made(n=12, seeds=2)
    truth, nothing = np.tile(table["q"], (3, 1)), np.zeros((3, len(table)))
    found = early.halving(table, {"true": truth, "blind": nothing, "worst": -truth}, "q", (0.1, 0.2, 0.4), draws=20_000)
    found = found.set_index("rule")
    assert found.loc["true", "regret"] == found.loc["true", "low"] == 0
    assert found.loc["blind", "gain"] == pytest.approx(0, abs=0.03)
    assert found.loc["worst", "gain_high"] < 0 < found.loc["true", "gain_low"]


def test_rules_are_compared_in_the_same_trials():
    table = made(n=12, early_noise=1.0)
    rules = {"x": table[["x"]].to_numpy().T, "true": table[["q"]].to_numpy().T}
    found = early.halving(table, rules, "q", (0.1,), against="x", draws=4000).set_index("rule")
    assert found.loc["x", ["gain", "gain_low", "gain_high"]].tolist() == [0, 0, 0]
    assert found.loc["true", "gain"] == pytest.approx(found.loc["x", "regret"])


def test_the_cost_is_that_of_the_looks_and_of_one_finished_run():
    table = made(n=12)
    rule = {"true": np.tile(table["q"], (3, 1))}
    found = early.halving(table, rule, "q", (0.1, 0.2, 0.4), draws=500)
    assert found["cost"].iloc[0] == pytest.approx((4 * 0.1 + 2 * 0.2 + 1 * 0.4 + 1) / 8)
    once = early.halving(table, {"true": rule["true"][:1]}, "q", (0.25,), draws=500)
    assert once["cost"].iloc[0] == pytest.approx((7 * 0.25 + 1) / 8)


def test_a_rule_that_errs_early_loses_what_it_dropped():
    """The first look is upside down: the four best are gone, and the later ones pick the fifth."""
    table = pd.DataFrame({"arm": np.arange(9), "q": np.arange(9.0), "train_flop": 1.0})
    scores = np.array([-table["q"], table["q"], table["q"]])
    found = early.halving(table, {"late": scores}, "q", (0.1, 0.2, 0.4), draws=20_000)
    # of eight of nine: kept is the fourth lowest, lost to it is the highest
    expected = np.mean([np.delete(np.arange(9.0), i)[[7, 3]] @ [1, -1] for i in range(9)])
    assert found["regret"].iloc[0] == pytest.approx(expected, abs=0.02)


def test_regret_agrees_with_the_theory_of_the_best_of_n():
    rng = np.random.default_rng(2)
    x, e = rng.normal(size=(2, 3000))
    table = pd.DataFrame({"arm": np.arange(3000), "q": 0.6 * x + 0.8 * e, "train_flop": 1.0})
    found = early.halving(table, {"x": x[None]}, "q", (0.5,), draws=2000)
    assert found["gain"].iloc[0] == pytest.approx(0.6 * 1.4236, abs=0.06)  # expected largest of eight


def test_jackknife_intervals_are_as_wide_as_other_arms_would_make_them():
    values, widths = [], []
    for trial in range(60):
        table = made(n=20, seeds=1, early_noise=1.0, rng=np.random.default_rng(trial))
        row = early.halving(table, {"x": table[["x"]].to_numpy().T}, "q", (0.1,), entrants=4, draws=2000).iloc[0]
        values.append(row["regret"])
        widths.append((row["high"] - row["low"]) / 2 / stats.t.ppf(0.975, 19))
    assert 0.7 < np.mean(widths) / np.std(values) < 1.6


@pytest.mark.parametrize(
    ("rules", "shares", "words"),
    [
        ({"x": np.zeros((1, 36))}, (0.2, 0.1), "shares must grow"),
        ({"x": np.zeros((1, 36))}, (0.0,), "shares must grow"),
        ({"x": np.zeros((2, 36))}, (0.1,), "rule 'x': give finite scores of shape"),
        ({"x": np.full((1, 36), np.nan)}, (0.1,), "rule 'x': give finite scores"),
    ],
)
def test_halving_refuses_what_it_cannot_use(rules, shares, words):
    with pytest.raises(ValueError, match=words):
        early.halving(made(n=12), rules, "q", shares)


def test_halving_needs_more_arms_than_entrants():
    with pytest.raises(ValueError, match="8 arms: trials of 8 entrants need 9"):
        early.halving(made(n=8), {"x": np.zeros((1, 24))}, "q", (0.1,))


# --- figures ----------------------------------------------------------------------------------------------


def test_paths_have_one_line_an_arm_and_the_colours_of_their_axes():
    table = pd.DataFrame({"label": ["a", "a", "b", "b"], "axis": ["width", "width", "lr", "lr"], "step": [0, 2000] * 2})
    spec = early_charts.paths_chart(table.assign(rankme=20.0, relative=1.0)).to_dict()
    assert spec["encoding"]["detail"]["field"] == "label"
    assert spec["encoding"]["color"]["scale"]["domain"] == ["width", "lr"]


def test_a_statistic_along_training_has_a_menu_only_where_there_is_a_choice():
    rows = [(share, name, value, value - 0.1, value + 0.1) for name in "ab" for share, value in ((0, 0.1), (1, 0.4))]
    table = pd.DataFrame(rows, columns=["share", "series", "estimate", "low", "high"])
    plain = early_charts.training_chart(table, "rho").to_dict()
    chosen = early_charts.training_chart(pd.concat([table.assign(measure=m) for m in "xy"]), "rho").to_dict()

    def menus(spec):
        return [each["bind"]["options"] for each in spec["params"] if isinstance(each.get("bind"), dict)]

    assert menus(plain) == [] and menus(chosen) == [["x", "y"]]


def test_the_explorer_of_looks_has_its_three_sliders():
    chart = early_charts.look_explorer()
    assert isinstance(chart, alt.LayerChart)
    assert {each["name"] for each in chart.to_dict()["params"]} == {"look_budget", "look_early", "look_late"}
