"""Runs that differ in a kind and not in a size: which are taken, how they are compared, how they are drawn."""

import altair as alt
import numpy as np
import pandas as pd
import pytest
import vl_convert
from scipy import stats

from rankscale import arms, axes, axis_charts, charts
from rankscale.axes import CENTRE, LIVE
from rankscale.chapters import find_root
from rankscale.records import read_records
from rankscale.sweep import plan, read_spec

ROOT = find_root()
RECORDS = read_records(ROOT / "data" / "runs")


def said_to_be(record, by_hash, **changes):
    """A record and its untrained encoder, as if another configuration had given them."""
    one, floor = record.config.replace(**changes), by_hash[record.config.untrained().hash]
    return [
        each.model_copy(update={"config": c, "hash": c.hash}) for each, c in ((record, one), (floor, one.untrained()))
    ]


@pytest.fixture(scope="module")
def records():
    """The published records without variants, and the centre's first three seeds under other kinds."""
    by_hash = {each.hash: each for each in RECORDS}
    plain = [each for each in RECORDS if arms.changed_part(each.config) in (None, "centre")]
    centre = [each for each in plain if each.status == "ok" and axes.same_but(each.config, CENTRE, ())]
    kinds = ({"heads": 8}, {"decoder_width": 128}, {"pool": "meanstd"}, {"layer": 2}, {"layer": 1})
    made = [
        new for kind in kinds for each in centre if each.config.seed < 3 for new in said_to_be(each, by_hash, **kind)
    ]
    return [*plain, *made]


@pytest.fixture(scope="module")
def table(records):
    return arms.variants(records)[0]


# --- which runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"seed": 3}, "centre"),
        ({"heads": 1}, "heads"),
        ({"heads": 2}, None),  # what the centre has, though it does not say so
        ({"mlp_ratio": 1, "seed": 2}, "MLP ratio"),
        ({"decoder_width": 32, "decoder_depth": 1}, "decoder"),
        ({"pool": "meanstd"}, "pooling"),
        ({"layer": 3}, "layer"),
        ({"heads": 1, "layer": 3}, None),
        ({"heads": 1, "lr": 1e-3}, None),
        ({"steps": 0}, None),
    ],
)
def test_a_run_is_a_variant_if_it_differs_in_one_part(changes, part):
    assert arms.changed_part(CENTRE.replace(**changes)) == part


def test_every_planned_variant_has_a_part_and_words_of_its_own():
    spec = read_spec(ROOT / "data/sweeps/more.yaml")
    planned = [each.config for each in plan(spec) if {"architecture", "measurement"} & set(each.blocks)]
    planned = [config for config in planned if config.steps]
    parts = {arms.arm_of(config): arms.changed_part(config) for config in planned}
    words = {arms.arm_of(config): arms.kinds_of(config).get(arms.changed_part(config)) for config in planned}
    assert len(parts) == 10 and None not in parts.values() and "centre" not in parts.values()
    assert len(set(words.values())) == 10


def test_variants_come_with_the_centre_and_their_untrained_encoders_row_by_row(records, table):
    _, floors = arms.variants(records)
    assert list(table["label"].unique()) == [
        "centre", "heads 8", "decoder 128 x 2", "mean and SD", "block 1", "block 2",
    ]  # fmt: skip
    assert table.groupby("label")["seed"].nunique()["heads 8"] == 3
    assert list(floors["label"]) == list(table["label"]) and set(floors["steps"]) == {0}
    assert list(floors["seed"]) == list(table["seed"]) and list(floors["layer"].fillna(0)) == list(
        table["layer"].fillna(0)
    )


def test_the_short_runs_have_variants_of_their_own():
    table, _ = arms.variants(RECORDS, LIVE)
    assert {"heads 1", "heads 8", "MLP ratio 1", "decoder 128 x 4"} <= set(table["label"])
    assert set(table["stage"]) == {"centre", "built"}


def test_without_a_variant_or_a_floor_there_is_an_error(records):
    with pytest.raises(ValueError, match="differs from it in one part"):
        arms.variants([each for each in RECORDS if axes.same_but(each.config, CENTRE, ())])
    lacks = next(each for each in records if each.config.layer == 2 and not each.config.steps).hash
    with pytest.raises(ValueError, match="without its untrained encoder"):
        arms.variants([each for each in records if each.hash != lacks])


# --- differences ------------------------------------------------------------------------------------------


def blocks(effects, seeds, noise=1.0, shared=10.0, draw=0):
    """A table: y = effect of the label + luck of the seed + noise."""
    rng = np.random.default_rng(draw)
    luck = shared * rng.normal(size=seeds)
    rows = [
        (label, s, effect + luck[s] + noise * rng.normal()) for label, effect in effects.items() for s in range(seeds)
    ]
    return pd.DataFrame(rows, columns=["label", "seed", "y"])


def test_two_arms_are_compared_as_by_a_paired_t_test():
    table = blocks({"centre": 0.0, "a": 1.0}, seeds=6)
    wide = table.pivot(index="seed", columns="label", values="y")
    expected = stats.ttest_rel(wide["a"], wide["centre"]).confidence_interval(0.95)
    (row,) = arms.paired(table, "y").itertuples()
    assert (row.low, row.high) == pytest.approx((expected.low, expected.high))
    assert row.pairs == 6 and row.difference == pytest.approx((wide["a"] - wide["centre"]).mean())


def test_intervals_cover_the_truth_as_often_as_they_say():
    effects = {"centre": 0.0, "a": 1.0, "b": -2.0, "c": 0.0}
    found = pd.concat(arms.paired(blocks(effects, 3, draw=k), "y") for k in range(300))
    truth = found["label"].map(effects)
    assert 0.93 <= ((found["low"] < truth) & (truth < found["high"])).mean() <= 0.97
    assert (found["high"] - found["low"]).mean() < 6  # the seeds' own luck, ten times the noise, has cancelled


def test_missing_cells_are_left_out_and_more_seeds_of_the_centre_change_nothing():
    table = blocks({"centre": 0.0, "a": 1.0, "b": 2.0}, seeds=5)
    fewer = table[(table["seed"] < 3) | (table["label"] == "centre")]
    expected = arms.paired(table[table["seed"] < 3], "y")
    pd.testing.assert_frame_equal(arms.paired(fewer, "y"), expected)
    gap = fewer[(fewer["label"] != "b") | (fewer["seed"] == 0)]
    alone = arms.paired(gap, "y").set_index("label").loc["b"]
    assert alone["pairs"] == 1 and alone["high"] - alone["low"] > 0
    assert "b" not in set(arms.paired(fewer[(fewer["label"] != "b")], "y")["label"])


def test_single_seeds_have_a_difference_and_no_interval():
    found = arms.paired(blocks({"centre": 0.0, "a": 1.0}, seeds=1), "y")
    assert found["difference"].notna().all() and found[["low", "high"]].isna().all(axis=None)


def test_what_is_read_otherwise_has_its_own_noise(table):
    rng = np.random.default_rng(0)
    scale = table["stage"].map({"centre": 0.0, "built": 1.0, "read": 0.01})
    found = arms.against_centre(table.assign(y=scale * rng.normal(size=len(table))), {"y": "noise"})
    width = (found["high"] - found["low"]).set_axis(found["label"])
    assert width["block 1"] < 0.1 * width["heads 8"] and set(found["measure"]) == {"noise"}


# --- figures ----------------------------------------------------------------------------------------------


def draw(chart):
    with alt.theme.enable("rankscale"):
        spec = chart.to_json()
    assert len(spec) < 400_000
    return vl_convert.vegalite_to_svg(spec, vl_version="6.4")


def scores_of(records, table):
    taken = axes.scores_table(each for each in records if each.hash in set(table["hash"]))
    return taken.merge(table[["hash", "stage", "label"]])


@pytest.mark.parametrize("centre", [CENTRE, LIVE], ids=["three seeds", "one seed"])
def test_figures_of_kinds_are_drawn(records, centre):
    table, _ = arms.variants(records, centre)
    kinds = set(table["label"]) - {"centre"}
    star = draw(axis_charts.star_chart(table))
    rows = draw(axis_charts.differences_chart(table, {"rankme": "RankMe", "alpha": "alpha-ReQ"}))
    assert all(kind in star and kind in rows for kind in kinds)
    assert "tempo" in draw(axis_charts.task_differences_chart(scores_of(records, table)))


def test_a_ray_runs_from_the_centres_mean_to_its_kinds(table):
    chart = axis_charts.star_chart(table).to_dict()
    rays = [row for rows in chart["datasets"].values() for row in rows if "end" in row]
    means = table.groupby("label")["rankme"].mean()
    for row in rays:
        assert row["rankme"] == pytest.approx(means[row["label"] if row["end"] else "centre"], rel=1e-3)
    assert len(rays) == 2 * (table["label"].nunique() - 1)


def test_the_band_spans_the_centres_seeds(table):
    chart = axis_charts.differences_chart(table, {"rankme": "RankMe"}).to_dict()
    own = table.loc[table["label"] == "centre", "rankme"]
    base = own[table["seed"].isin(table.loc[table["label"] != "centre", "seed"])].mean()
    bands = [row for rows in chart["datasets"].values() for row in rows if row.keys() == {"measure", "low", "high"}]
    (band,) = [row for row in bands if row["measure"] == "RankMe"]
    assert (band["low"], band["high"]) == pytest.approx((own.min() - base, own.max() - base), rel=1e-3)
    assert len(bands) == 1 + sum(name.startswith("q_") for name in table)


def test_the_band_is_seen_from_the_runs_that_kinds_are_compared_with(table):
    one_seed = table[(table["label"] == "centre") | (table["seed"] == 0)]
    chart = axis_charts.differences_chart(one_seed, {"rankme": "RankMe"}).to_dict()
    own = one_seed[one_seed["label"] == "centre"].set_index("seed")["rankme"]
    bands = [row for rows in chart["datasets"].values() for row in rows if row.keys() == {"measure", "low", "high"}]
    (band,) = [row for row in bands if row["measure"] == "RankMe"]
    assert (band["low"], band["high"]) == pytest.approx((own.min() - own[0], own.max() - own[0]), rel=1e-3)
    assert own[0] != pytest.approx(own.mean(), rel=1e-3)


def test_the_centre_is_grey_and_every_kind_has_a_colour_of_its_own(table):
    colours, _ = axis_charts.kind_scales(table)
    found = dict(zip(colours.domain, colours.range, strict=True))
    assert found.keys() == set(table["label"]) and found["centre"] == charts.INK
    assert len(set(found.values())) == len(found)
