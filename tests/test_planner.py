"""Planning: the law that made the runs is found again, its optimum is chosen, and a plan says what it cannot know."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from drawing import draw

from rankscale import arms, plan_charts, planner
from rankscale.axes import CENTRE
from rankscale.budget import budget
from rankscale.cli import main
from rankscale.planner import Machine, Planner, effective
from rankscale.pretrain import HistoryPoint, history_steps
from rankscale.records import Rank, RunRecord, provenance, read_records, write_record
from rankscale.terminal import TEXT_WIDTH

TRUE = {"E": 0.1, "A": 1.5, "alpha": 0.3, "B": 1.2, "beta": 0.3}
REPEATS, NOISE = 10.0, 0.003
ROOT = Path(__file__).parent.parent


def true_quality(config, crowding=1.0):
    heard = effective(np.array([config.steps * config.batch]), np.array([config.clips]), REPEATS)[0]
    a, b = TRUE["A"] / config.width ** TRUE["alpha"], TRUE["B"] / (heard / config.width**crowding) ** TRUE["beta"]
    return 1 - TRUE["E"] - a - b


def true_rank(width, heard):
    return np.exp(-0.4 + 0.55 * np.log(width) + 0.12 * np.log(heard))


def made_record(config, rng, crowding=1.0, penalty=0.0):
    """A record of a run that follows the law but for its luck; penalty: taken from its quality."""
    history = [
        HistoryPoint(step, config.lr, None, 0.4, None, float(true_rank(config.width, max(step, 1) * config.batch)
                     * np.exp(0.02 * rng.normal())), 3072, None)
        for step in sorted(history_steps(config))
    ]  # fmt: skip
    q = true_quality(config, crowding) - penalty + NOISE * rng.normal()
    rank = Rank(
        clips="heldout", n_clip=12_288, dim=config.width, eps=1e-7, pool="mean", layer="last", rankme=20.0,
        rankme_centred=20.0, rankme_corrected=20.0, effective_rank_squared=10.0, alpha_req=None, singular_values=[1.0],
    )  # fmt: skip
    return RunRecord(
        hash=config.hash, config=config, status="ok", budget=budget(config), history=history, rank=rank,
        quality={"linear": {"synthetic": q}}, provenance=provenance("cpu", "2026-01-01T00:00:00Z", 1.0, 1.0),
    )  # fmt: skip


def made_records(crowding=1.0, seed=0):
    """A cross through the centre, three seeds; cells that move twice; at width 256 a rate that is too high, too."""
    rng, found = np.random.default_rng(seed), []
    for each in range(3):
        middle = CENTRE.replace(seed=each)
        cells = [middle.replace(encoder=f"en{width}-4") for width in (32, 128, 256)]
        cells += [middle.replace(steps=steps) for steps in (250, 500, 1000, 2000, 4000)]
        cells += [middle.replace(clips=clips) for clips in (2048, 8192, 32_768)]
        cells += [middle.replace(encoder=f"en{w}-4", steps=s) for w in (32, 128, 256) for s in (500, 4000)]
        found += [made_record(config, rng, crowding) for config in cells]
        found.append(made_record(middle.replace(encoder="en256-4", lr=4e-3), rng, crowding, penalty=0.1))
        found.append(made_record(middle.replace(encoder="en64-8"), rng, crowding, penalty=0.05))
    return found


@pytest.fixture(scope="module")
def records():
    return made_records()


@pytest.fixture(scope="module")
def ready(records):
    return Planner.of_records(records, draws=100)


# --- the value of repeats ---------------------------------------------------------------------------------


def test_a_clip_heard_once_counts_once_and_endless_repeats_count_for_their_limit():
    heard, unique = np.array([10.0, 100.0, 200.0, 1e9]), np.full(4, 100.0)
    worth = effective(heard, unique, 5.0)
    assert worth[:2].tolist() == [10.0, 100.0]
    assert worth[2] == pytest.approx(100 * (1 + 5 * (1 - np.exp(-1 / 5))))
    assert worth[3] == pytest.approx(600.0)


def test_repeats_are_worth_what_new_clips_are_where_r_is_large():
    assert effective(np.array([400.0]), np.array([100.0]), 1e6)[0] == pytest.approx(400, rel=1e-4)


# --- the law ----------------------------------------------------------------------------------------------


def test_only_runs_at_the_best_rate_of_their_width_and_at_the_centres_depth_are_fitted(records):
    runs, rates = planner.planning_runs(records)
    assert rates == {32: 2e-3, 64: 2e-3, 128: 2e-3, 256: 2e-3}
    assert len(runs) == 3 * 17 and set(runs["depth"]) == {4} and set(runs["lr"]) == {2e-3}
    without = {arms.arm_of(CENTRE.replace(steps=500))}
    assert len(planner.planning_runs(records, without=without)[0]) == 3 * 16


def test_a_width_that_was_tried_once_counts_and_one_without_a_best_rate_does_not(records):
    rng = np.random.default_rng(1)
    once = made_record(CENTRE.replace(encoder="en192-4", steps=3000, lr=1e-3), rng)
    twice = [made_record(CENTRE.replace(encoder="en96-4", steps=3000, lr=lr), rng) for lr in (1e-3, 2e-3)]
    runs, rates = planner.planning_runs([*records, once, *twice])
    assert rates[192] == 1e-3 and 192 in set(runs["width"]) and 96 not in rates and 96 not in set(runs["width"])


def test_the_law_that_made_the_runs_is_found_again(ready):
    found = ready.law
    configs = [CENTRE.replace(encoder="en96-4"), CENTRE.replace(encoder="en192-4", steps=3000, clips=16_384)]
    x = [np.array(each) for each in zip(*((c.width, c.steps * c.batch, c.clips) for c in configs), strict=True)]
    truth = [true_quality(config) for config in configs]
    np.testing.assert_allclose(found.predict(*x), truth, atol=0.004)
    assert 3 < found.repeats[found.best] < 33
    low, high = np.quantile(found.draws(*x), [0.05, 0.95], axis=0)
    assert (low < truth).all() and (truth < high).all() and (high - low < 0.03).all()
    narrow = np.ptp(found.draws(*x, scatter=False), axis=0)
    assert (narrow < np.ptp(found.draws(*x), axis=0)).all()


def test_the_wrong_law_predicts_left_out_cells_worse(records):
    runs, _ = planner.planning_runs(records)
    right, wrong = (planner.QualityLaw.of_runs(runs, crowding=p, draws=10).heldout().size for p in (1.0, 0.0))
    assert right < wrong / 2


def test_early_rank_is_foretold(ready):
    found = ready.ranks.predict(192, 20_000)
    assert found.low < true_rank(192, 20_000) < found.high
    assert found.value == pytest.approx(true_rank(192, 20_000), rel=0.02)


def test_why_depth_stays_is_told(ready):
    assert set(ready.depths) == {8} and ready.depths[8] == pytest.approx(-0.05, abs=0.01)


# --- a plan -----------------------------------------------------------------------------------------------


def test_the_best_width_is_the_one_that_the_true_law_has(ready):
    options = ready.options(1e13, 23.3)
    truth = [true_quality(ready.config(each.width, each.steps, 65_531)) for each in options]
    chosen = ready.plan(1e13, 23.3).chosen
    assert max(truth) - truth[[each.width for each in options].index(chosen.width)] < 0.003
    assert sum(each.best for each in options) == pytest.approx(1)


def test_the_whole_budget_is_spent_and_no_more(ready):
    for each in ready.options(1e13, 23.3):
        assert 0.99e13 < each.train_flop <= 1e13
        assert each.train_flop == budget(ready.config(each.width, each.steps, 65_531)).train_flop


def test_wider_encoders_for_more_compute_and_a_rate_that_falls_beyond_the_records(ready):
    widths = [ready.plan(flop, 100).chosen.width for flop in (1e12, 1e13, 1e14)]
    assert widths == sorted(widths) and widths[0] < widths[-1]
    assert ready.rate(256) == ready.rate(100) == 2e-3 and ready.rate(1024) == pytest.approx(2e-3 / 4)


def test_little_audio_lowers_what_is_expected(ready):
    scarce, plenty = (ready.plan(3e13, hours).chosen.quality.value for hours in (0.5, 50))
    assert scarce < plenty - 0.02


def test_a_plan_warns_of_what_lies_beyond_the_records(ready):
    near, far = ready.plan(1e13, 20), ready.plan(1e21, 2e5)
    assert not [each for each in near.remarks if "extrapolates" in each] and max(near.beyond.values()) < planner.FAR
    assert any("times the largest record (in compute)" in each for each in far.remarks)
    assert any("widest encoder that was considered" in each for each in far.remarks)


def test_the_text_fits_a_terminal_and_its_command_is_a_run(ready):
    made = ready.plan(1e13, 20)
    assert max(map(len, made.text().splitlines())) <= TEXT_WIDTH
    assert f"after {max(200, round(0.1 * made.config.steps)):,} steps" in made.text()
    words = made.command().split()
    assert words[:2] == ["rankscale", "run"]
    given = {name: getattr(made.config, name) for name in ("encoder", "steps", "clips", "schedule")}
    assert all(words[words.index(f"--{name}") + 1] == str(value) for name, value in given.items())
    assert json.loads(made.to_json())["chosen"]["width"] == made.config.width


@pytest.mark.parametrize(
    ("flop", "hours", "words"), [(1e9, 20, "too few: 250 steps of width 32"), (1e13, 1e-3, "less than a batch")]
)
def test_budgets_that_are_too_small_are_refused_in_words(ready, flop, hours, words):
    with pytest.raises(ValueError, match=words):
        ready.plan(flop, hours)


def test_a_quality_that_no_record_has_is_named():
    with pytest.raises(ValueError, match="quality 'q_foo_bar': the records have q_linear_synthetic"):
        planner.planning_runs(read_records(ROOT / "data" / "runs"), "q_foo_bar")


def test_a_gpu_is_a_share_of_its_data_sheet_and_hours_are_spent():
    machine = Machine.named("h200", 0.5)
    assert machine.flop_per_s(64) == machine.flop_per_s(1000) == pytest.approx(989e12 / 2)
    assert machine.allows(2)(128) == pytest.approx(989e12 * 3600)
    with pytest.raises(ValueError, match="device 'tpu': choose h200, h100, a100; or cpu"):
        Machine.named("tpu")


def test_speeds_are_interpolated_between_the_widths_that_were_timed():
    machine = Machine({64: 1e10, 256: 4e10}, "here")
    assert machine.flop_per_s(128) == pytest.approx(2e10)
    assert [machine.flop_per_s(width) for width in (32, 999)] == pytest.approx([1e10, 4e10])


def test_time_and_cost_are_told(ready):
    made = ready.plan(Machine({1: 1e10}, "here").allows(0.5), 20, machine=Machine({1: 1e10}, "here"), price=4.0)
    assert made.hours == pytest.approx(0.5, rel=0.01) and made.cost == pytest.approx(2.0, rel=0.01)
    assert "time      30 min, cost 2.00; here" in made.text()


# --- the command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "sweeps").mkdir()
    for record in records:
        write_record(record, folder / "runs")
    return folder


def call(*args):
    return CliRunner().invoke(main, ["plan", *map(str, args)])


def test_the_command_plans_from_a_folder_of_records(ready, folder, tmp_path):
    found = call("--flop", 1e13, "--audio-hours", 23.3, "--data", folder, "--json", "--plot", tmp_path / "plan.html")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["config"]["encoder"] == ready.plan(1e13, 23.3).config.encoder
    assert "plan.html" in found.stderr and "rankscale run --encoder" in (tmp_path / "plan.html").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give --gpu-hours and --device together, or --flop"),
        (["--gpu-hours", 1], "give --gpu-hours and --device together"),
        (["--flop", 1e13, "--device", "h200"], "give --gpu-hours and --device together"),
        (["--flop", 1e13, "--price", 2], "--price is of an hour"),
        (["--flop", 0], "0"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(options, words):
    found = call("--audio-hours", 10, *options)
    assert found.exit_code == 2 and words in found.output


# --- predictions that were written down -------------------------------------------------------------------


def test_the_predictions_are_of_runs_that_are_planned():
    for path in sorted((ROOT / "data" / "predictions").glob("*.csv")):
        told = pd.read_csv(path)
        assert (told["low"] < told["predicted"]).all() and (told["predicted"] < told["high"]).all()
        assert not set(told["arm"]) & arms.held_back(ROOT / "data" / "sweeps")


# --- figures ----------------------------------------------------------------------------------------------


def test_the_explorer_has_every_budget_and_two_sliders(ready):
    rows = pd.concat([ready.plan(flop, hours).table().assign(flop=flop, audio_h=hours, watch=20.0)
                      for flop in (1e12, 1e13) for hours in (1, 30)])  # fmt: skip
    drawn = plan_charts.planner_explorer(rows)
    chart = drawn.to_dict()
    assert len(chart["params"]) == 2 and "FLOP, 30 h of audio" in draw(drawn)
    assert sum(len(rows) for rows in chart["datasets"].values()) == len(rows)


def test_forecasts_show_every_run_and_predictor():
    rows = [("a", "one", 0.2, 0.1, 0.3, 0.25), ("a", "two", 0.3, 0.2, 0.4, 0.25)]
    table = pd.DataFrame(rows, columns=["run", "by", "predicted", "low", "high", "measured"])
    chart = plan_charts.forecast_chart(table, "Q")
    assert chart.to_dict()["layer"][0]["encoding"]["color"]["field"] == "by"
    svg = draw(chart)
    assert svg.count(">one<") == svg.count(">two<") == 1  # in the legend, in full


def test_the_frontier_has_a_line_for_each_amount_of_audio(ready):
    rows = pd.concat([ready.plan(1e13, hours).table().assign(flop=1e13, audio_h=hours) for hours in (1, 30)])
    best = rows.sort_values("q").groupby("audio_h").tail(1)
    assert plan_charts.frontier_chart(best).to_dict()["layer"][0]["encoding"]["color"]["sort"] == ["1 h", "30 h"]
