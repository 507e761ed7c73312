"""One variable at a time: the runs along an axis, their seeds, and whether quality goes where RankMe goes.

An axis is found in the configurations, not in names of blocks: a run lies on it if it differs from the centre in
nothing but that axis and the seed. Statistics here describe one axis; those that compare axes have a room of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from rankscale.config import RunConfig
from rankscale.probe import PROBES
from rankscale.records import RunRecord, runs_table
from rankscale.sound.synthetic_tasks import CANDIDATES as SYNTHETIC

# The run in the middle of data/sweeps/small.yaml (data/PLAN.md).
CENTRE = RunConfig(encoder="en64-4", clips=65_536, schedule="branch", tasks=("synth", "real_audio"))
# The middle of the short runs in data/sweeps/live.yaml, which chapters make again.
LIVE = RunConfig(
    encoder="en64-2", steps=300, batch=32, clips=1024, rank_clips=512, task_clips=300,
    tasks=("synth:tempo", "synth:pitch", "synth:instrument"),
)  # fmt: skip
CENTRES = {"small": CENTRE, "live": LIVE}
SUITES = ("synthetic", "real")
LEVEL = 0.95
DRAWS = 2000


@dataclass(frozen=True)
class Axis:
    """A variable that is scaled.

    fields: what of a `RunConfig` moves along it; column: its value in `records.runs_table`, in the units of `label`.
    low, high: the plan's prediction for the sign of RankMe's and of Q's change as the value grows, 0 where none.
    """

    name: str
    fields: tuple[str, ...]
    column: str
    label: str
    rank_sign: int
    quality_sign: int
    log: bool = True


AXES = {
    axis.name: axis
    for axis in (
        Axis("width", ("encoder",), "width", "width (dimensions)", +1, +1),
        Axis("depth", ("encoder",), "depth", "depth (blocks)", -1, +1),
        Axis("clips", ("clips",), "clips", "unique training clips", -1, +1),
        Axis("steps", ("steps",), "steps", "training steps", +1, +1),
        Axis("mask_ratio", ("mask_ratio",), "mask_ratio", "share of tokens masked", 0, 0, log=False),
        Axis("lr", ("lr",), "lr", "learning rate", -1, +1),
        Axis("clip_s", ("clip_s",), "clip_s", "clip length (s)", +1, +1),
        Axis("patch_frames", ("patch_frames",), "patch_frames", "frames in a patch (10 ms each)", -1, -1),
        Axis("mask_group", ("mask_group",), "mask_group", "tokens masked together", 0, 0),
    )
}


def value_of(axis: Axis, config: RunConfig) -> float:
    """Where a run lies on an axis."""
    return float(getattr(config, axis.column))


def on_axis(axis: Axis, config: RunConfig, centre: RunConfig = CENTRE) -> bool:
    """Whether a run differs from the centre in nothing but this axis and the seed."""
    kept = {"width": config.depth == centre.depth, "depth": config.width == centre.width}  # the two share a field
    return kept.get(axis.name, True) and same_but(config, centre, axis.fields)


def same_but(config: RunConfig, centre: RunConfig, fields: Iterable[str]) -> bool:
    """Whether two runs agree in everything but these fields and the seed."""
    free = {*fields, "seed", "attempt"}
    return config.model_dump(exclude=free) == centre.model_dump(exclude=free)


@dataclass(frozen=True)
class Study:
    """All finished runs along one axis, and the untrained encoders of the same shapes.

    records: the trained runs, sorted by value and seed; floors: the untrained encoder of each, in the same order (one
    may serve many). runs, untrained: the same as tables, `records.runs_table` with a column `value`, the place on the
    axis. lost: how many runs ended without a usable result, by status.
    """

    axis: Axis
    records: tuple[RunRecord, ...]
    floors: tuple[RunRecord, ...]
    lost: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def runs(self) -> pd.DataFrame:
        return self._placed(runs_table(self.records))

    @cached_property
    def untrained(self) -> pd.DataFrame:
        return self._placed(runs_table(self.floors))

    def _placed(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(value=[value_of(self.axis, each.config) for each in self.records])

    def scores(self) -> pd.DataFrame:
        """Scores by task, `scores_table` with `value` and kind ("trained" or "untrained"), one row a run and task."""
        parts = [
            scores_table([record]).assign(kind=kind, value=value_of(self.axis, trained.config))
            for kind, group in (("trained", self.records), ("untrained", self.floors))
            for trained, record in zip(self.records, group, strict=True)
        ]
        return pd.concat(parts, ignore_index=True)

    @property
    def values(self) -> list[float]:
        return sorted(float(value) for value in self.runs["value"].unique())

    def ends(self) -> tuple[float, float]:
        """Smallest and largest value on the axis."""
        return self.values[0], self.values[-1]

    def change(self, column: str) -> Change:
        """From the smallest to the largest value of the axis, see `change`."""
        return change(self.runs, column, *self.ends())

    def associations(self) -> pd.DataFrame:
        """RankMe against each Q over the runs: one row for a suite and a probe, columns as in `Association`."""
        rows = [
            {"tasks": suite, "probe": probe} | asdict(self._association(f"q_{probe}_{suite}"))
            for suite, probe in product(SUITES, PROBES)
            if f"q_{probe}_{suite}" in self.runs
        ]
        return pd.DataFrame(rows).set_index(["tasks", "probe"])

    def _association(self, column: str) -> Association:
        return association(self.runs, "rankme", column, joint=self.axis.name == "steps")

    def facts(self) -> dict[str, Any]:
        """What prose says about an axis, by name: nothing in a chapter's text needs to be typed.

        first, last, cells, seeds (fewest in a cell); for rank, alpha and each q_PROBE_SUITE: _first, _last (means over
        seeds), _low, _high (interval of the change), _sd (of seeds), _word (rises, falls, does not clearly change);
        for each rho_PROBE_SUITE: value, _low, _high, _word (follows, goes against, ...); robust_SUITE: what the four
        probes say together; untrained_first and untrained_last, RankMe of the untrained encoders.
        """
        first, last = self.ends()
        facts: dict[str, Any] = {"first": first, "last": last, "cells": len(self.values)}
        facts["seeds"] = int(self.runs.groupby("value")["seed"].nunique().min())
        floor = self.untrained.groupby("value")["rankme"].mean()
        facts |= {"untrained_first": float(floor[first]), "untrained_last": float(floor[last])}
        columns = {"rank": "rankme", "alpha": "alpha"} | {name: name for name in self.runs if name.startswith("q_")}
        for name, column in columns.items():
            means, moved = self.runs.groupby("value")[column].mean(), self.change(column)
            facts |= {f"{name}_first": float(means[first]), f"{name}_last": float(means[last])}
            facts |= {f"{name}_low": moved.low, f"{name}_high": moved.high, f"{name}_sd": moved.seed_sd}
            facts[f"{name}_word"] = moved.word
            if name.startswith("q_"):
                found = self._association(column)
                rho = f"rho_{name.removeprefix('q_')}"
                facts |= {rho: found.spearman, f"{rho}_low": found.low, f"{rho}_high": found.high}
                facts[f"{rho}_word"] = found.word
        for suite in SUITES:
            if f"q_linear_{suite}" in self.runs:
                facts[f"robust_{suite}"] = robust_words(robust_sign(self, suite)[1])
        return facts


def study(name: str, records: Iterable[RunRecord], centre: RunConfig = CENTRE) -> Study:
    """Collect the runs along an axis. Raises ValueError where fewer than two values of it have a finished run."""
    axis = AXES[name]
    records = list(records)
    by_hash = {each.hash: each for each in records}
    along = [each for each in records if each.config.steps and on_axis(axis, each.config, centre)]
    done = sorted(
        (each for each in along if each.status == "ok"), key=lambda r: (value_of(axis, r.config), r.config.seed)
    )
    if len({value_of(axis, each.config) for each in done}) < 2:
        raise ValueError(f"axis {name}: fewer than two values have a finished run among {len(records)} records")
    missing = [each.hash for each in done if each.config.untrained().hash not in by_hash]
    if missing:
        raise ValueError(f"axis {name}: run {missing[0]} is there without its untrained encoder")
    lost = Counter(each.status for each in along if each.status != "ok")
    return Study(axis, tuple(done), tuple(by_hash[each.config.untrained().hash] for each in done), dict(lost))


def scores_table(records: Iterable[RunRecord]) -> pd.DataFrame:
    """One row for each run, probe and task: hash, seed, probe, suite ("synthetic" or "real"), task, score."""
    rows = [
        (record.hash, record.config.seed, probe, "synthetic" if task in SYNTHETIC else "real", task, metrics["score"])
        for record in records
        for probe, tasks in record.scores.items()
        for task, metrics in tasks.items()
    ]
    return pd.DataFrame(rows, columns=["hash", "seed", "probe", "suite", "task", "score"])


# --- one number along an axis -----------------------------------------------------------------------------


def bands(table: pd.DataFrame, columns: Sequence[str], by: str = "value") -> pd.DataFrame:
    """Mean and range over seeds: one row for each value and column, with mean, low, high (extremes), sd and n."""
    parts = [
        table.groupby(by)[column].agg(mean="mean", low="min", high="max", sd="std", n="count").assign(quantity=column)
        for column in columns
    ]
    return pd.concat(parts).reset_index()


@dataclass(frozen=True)
class Change:
    """A difference between two cells, with an interval from the seeds of all cells of the axis.

    Seeds within a cell spread by `seed_sd`, pooled over cells with `df` degrees of freedom; [low, high] is the t
    interval at 95 %. `low` and `high` are NaN where no cell has two seeds.
    """

    difference: float
    low: float
    high: float
    seed_sd: float
    df: int

    @property
    def sign(self) -> int:
        """+1 or -1 where the interval excludes 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    @property
    def word(self) -> str:
        if not self.df:
            return "has one seed only"
        return {1: "rises", -1: "falls", 0: "does not clearly change"}[self.sign]


def pooled_sd(table: pd.DataFrame, column: str, by: str = "value") -> tuple[float, int]:
    """Standard deviation of seeds within cells, pooled over cells, and its degrees of freedom; NaN and 0 if none."""
    grouped = table.dropna(subset=[column]).groupby(by)[column]
    df = int((grouped.size() - 1).sum())
    squares = float(((grouped.size() - 1) * grouped.var().fillna(0.0)).sum())
    return (float(np.sqrt(squares / df)) if df else float("nan")), df


def change(table: pd.DataFrame, column: str, start: float, end: float) -> Change:
    """How a column changes from one value of the axis to another: difference of cell means, `Change`."""
    at = table.dropna(subset=[column]).groupby("value")[column]
    means, counts = at.mean(), at.size()
    sd, df = pooled_sd(table, column)
    difference = float(means[end] - means[start])
    half = stats.t.ppf((1 + LEVEL) / 2, df) * sd * np.sqrt(1 / counts[start] + 1 / counts[end]) if df else float("nan")
    return Change(difference, float(difference - half), float(difference + half), sd, df)


def robust_sign(study: Study, suite: str, probes: Sequence[str] = PROBES) -> tuple[int, dict[str, Change]]:
    """The sign of Q's change along an axis if every probe agrees on it, else 0; and each probe's `Change`."""
    changes = {probe: study.change(f"q_{probe}_{suite}") for probe in probes}
    signs = {each.sign for each in changes.values()}
    return (signs.pop() if len(signs) == 1 else 0), changes


def robust_words(changes: Mapping[str, Change]) -> str:
    """What the probes say together about the sign of an effect."""
    if not any(each.df for each in changes.values()):
        return next(iter(changes.values())).word
    signs = {each.sign for each in changes.values()}
    if signs == {1} or signs == {-1}:
        return f"{next(iter(changes.values())).word} by all {len(changes)} probes"
    if signs == {0}:
        return f"does not clearly change by any of the {len(changes)} probes"
    counts = Counter(each.sign for each in changes.values())
    parts = [
        f"{word} by {counts[sign]}" for sign, word in ((1, "rises"), (-1, "falls"), (0, "is unclear")) if counts[sign]
    ]
    return f"depends on the probe ({', '.join(parts)})"


# --- two numbers together ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Association:
    """Rank correlation of two columns over runs, with bootstrap intervals; see `association`."""

    spearman: float
    low: float
    high: float
    kendall: float
    kendall_low: float
    kendall_high: float
    runs: int
    cells: int

    @property
    def sign(self) -> int:
        return int(self.low > 0) - int(self.high < 0)

    @property
    def word(self) -> str:
        return follow_word(self.sign, self.low)


def follow_word(sign: int, low: float) -> str:
    """What quality does with a number, from the sign of their relation; low: end of its interval, NaN without one."""
    if np.isnan(low):
        return "cannot yet, with single seeds, be said to follow"
    return {1: "follows", -1: "goes against", 0: "does not clearly follow"}[sign]


def interval_words(low: float, high: float) -> str:
    """A 95 % interval in a sentence, or why there is none (NaN)."""
    return "no interval: single seeds" if np.isnan(low) else f"95 % interval [{low:.2f}, {high:.2f}]"


def noise_words(table: pd.DataFrame, cell: str = "value") -> str:
    """What intervals over a table of runs rest on where some cells have one run only, in sentences."""
    sizes = table.groupby(cell)["seed"].nunique()
    single, most = int((sizes == 1).sum()), int(sizes.max())
    if not single:
        return "Every cell has several runs."
    if most == 1:
        return "No cell has a second seed, so that nothing here can be told from luck."
    return (
        f"{single} of {len(sizes)} cells have one run only. Where an interval stands beside them all the same, their "
        f"noise is taken to be that of the others, which nobody has checked; and with {most} of {sizes.sum()} runs in "
        "one cell, a rank correlation over runs is as much about its seeds as about the cells."
    )


def association(
    table: pd.DataFrame, x: str, y: str, cell: str = "value", joint: bool = False, draws: int = DRAWS, seed: int = 0
) -> Association:
    """Spearman's and Kendall's correlation of columns x and y over runs.

    Intervals: percentiles at 95 % over runs that other seeds would have given; the cells, values of column `cell`, are
    fixed. joint: seeds are drawn for all cells together, as they must be where one run serves several cells (points of
    one trunk).
    With three seeds a cell such an interval is rough: it says how much the seeds matter, not more. Where a cell has
    one seed there is none (NaN).
    Raises ValueError for fewer than three runs, or a column that does not vary.
    """
    table = table.dropna(subset=[x, y])
    if len(table) < 3 or table[x].nunique() < 2 or table[y].nunique() < 2:
        raise ValueError(f"a rank correlation of {x} and {y} needs three runs that differ in both, got {len(table)}")
    pairs = table[[x, y]].to_numpy(float)
    drawn = _redraw(table, [x, y], cell, joint, draws, np.random.default_rng(seed))
    found = []
    for measure in (_spearman, _kendall):
        ends = np.nanpercentile(measure(*np.moveaxis(drawn, 2, 0)), [2.5, 97.5]) if len(drawn) else [np.nan, np.nan]
        found += [float(measure(*pairs.T[:, None])[0]), *map(float, ends)]
    return Association(*found, len(table), table[cell].nunique())


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each row: x, y (draw, n) -> (draw,); NaN where one does not vary."""
    x, y = (each - each.mean(axis=1, keepdims=True) for each in (stats.rankdata(x, axis=1), stats.rankdata(y, axis=1)))
    return _ratio((x * y).sum(axis=1), np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1)))


def _kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each row, as `_spearman`."""
    x, y = (np.sign(each[:, :, None] - each[:, None, :]) for each in (x, y))
    return _ratio((x * y).sum(axis=(1, 2)), np.sqrt((x * x).sum(axis=(1, 2)) * (y * y).sum(axis=(1, 2))))


def _ratio(up: np.ndarray, down: np.ndarray) -> np.ndarray:
    return np.divide(up, down, out=np.full(len(up), np.nan), where=down > 0)


def _redraw(
    table: pd.DataFrame, columns: Sequence[str], cell: str, joint: bool, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Runs as other seeds would have given them, (draw, n_run, column): cell means and deviations drawn anew.

    A deviation is drawn within its own cell, or, if joint, from one other seed for all cells of a seed; only seeds that
    are in every cell are drawn then. Deviations from a mean of n runs are too small by sqrt(1 - 1 / n); this is undone:
    else runs would agree better within their cell than real ones do. No draw without two runs in each.
    """
    table = table.reset_index(drop=True)
    values, cells = table[list(columns)].to_numpy(float), table[cell].factorize()[0]
    means = table.groupby(cell)[list(columns)].transform("mean").to_numpy(float)
    if not joint:
        own = [np.flatnonzero(cells == each) for each in range(cells.max() + 1)]
        draws = draws if min(map(len, own)) > 1 else 0  # a cell of one run would pass for one without noise
        size = np.array([len(rows) for rows in own])[cells][:, None]
        luck = (values - means) * np.sqrt(size / np.maximum(size - 1, 1))
        drawn = np.empty((draws, len(table)), int)
        for rows in own:
            drawn[:, rows] = rng.choice(rows, (draws, len(rows)))
        return means + luck[drawn]
    rows = pd.DataFrame({"cell": cells, "seed": table["seed"], "row": table.index}).pivot(
        index="seed", columns="cell", values="row"
    )
    whole = rows.dropna().to_numpy(int)  # (seed, cell)
    seeds, draws = len(whole), draws if len(whole) > 1 else 0
    luck = (values[whole] - values[whole].mean(axis=0)) * np.sqrt(seeds / max(seeds - 1, 1)) if draws else values[:0]
    donor = rng.integers(max(seeds, 1), size=(draws, len(rows)))[:, table["seed"].factorize()[0]]
    return means + luck[donor, cells] if draws else np.empty((0, *values.shape))


def within_arms(table: pd.DataFrame, x: str, y: str, arm: str) -> tuple[float, float, float, int]:
    """Do seeds of one arm with larger x have larger y? Correlation of the deviations from the arms' means.

    Returns Pearson's r, its 95 % interval and its degrees of freedom, runs less arms (Fisher's z; each arm's mean costs
    one degree, where a plain correlation has one mean). Arms with a single run say nothing and are left out.
    """
    table = table.dropna(subset=[x, y])
    table = table[table.groupby(arm)[x].transform("size") > 1]
    dx, dy = (table[column] - table.groupby(arm)[column].transform("mean") for column in (x, y))
    df = len(table) - table[arm].nunique()
    if df < 3:
        raise ValueError(f"{len(table)} runs in {table[arm].nunique()} arms: too few seeds to correlate within arms")
    r = float(np.corrcoef(dx, dy)[0, 1])
    half = stats.norm.ppf((1 + LEVEL) / 2) / np.sqrt(df - 2)
    low, high = np.tanh(np.arctanh(r) + np.array([-half, half]))
    return r, float(low), float(high), df


# --- where the differences come from ----------------------------------------------------------------------


@dataclass(frozen=True)
class Shares:
    """How much of a column's variance lies between arms and how much between seeds of one arm.

    arm: the share of arms, sigma_arm^2 / (sigma_arm^2 + sigma_seed^2), with its 95 % interval; 1 - arm is the seeds'.
    """

    arm: float
    low: float
    high: float
    arm_sd: float
    seed_sd: float
    arms: int
    runs: int


def variance_shares(table: pd.DataFrame, column: str, arm: str = "value") -> Shares:
    """One-way random-effects decomposition of a column into arms and seeds.

    Intervals from the F distribution (Searle, Casella & McCulloch 1992, section 3.6), with the usual mean size for
    arms of unequal numbers. The share of arms is 0 where they differ by less than their seeds would make them.
    Raises ValueError where no arm has two runs, or there is one arm only.
    """
    groups = [group.to_numpy(float) for _, group in table.dropna(subset=[column]).groupby(arm)[column]]
    sizes = np.array([len(group) for group in groups])
    k, n = len(groups), int(sizes.sum())
    if k < 2 or n == k:
        raise ValueError(f"{n} runs in {k} arms: seeds and arms cannot be told apart")
    values = np.concatenate(groups)
    means = np.array([group.mean() for group in groups])
    between = float((sizes * (means - values.mean()) ** 2).sum()) / (k - 1)
    within = float(sum(((group - group.mean()) ** 2).sum() for group in groups)) / (n - k)
    size = (n - (sizes**2).sum() / n) / (k - 1)
    ratio = between / within if within else np.inf
    tail = (1 - LEVEL) / 2
    low, high = (ratio / stats.f.ppf(p, k - 1, n - k) for p in (1 - tail, tail))
    share = [_share(each, size) for each in (ratio, low, high)]
    return Shares(*share, float(np.sqrt(max(0.0, between - within) / size)), float(np.sqrt(within)), k, n)


def _share(ratio: float, size: float) -> float:
    """The share of arms from an F ratio; 0 below one."""
    if np.isinf(ratio):
        return 1.0
    return float(max(0.0, ratio - 1) / (ratio - 1 + size)) if ratio > 1 else 0.0


def equal_compute(table: pd.DataFrame, factor: float = 1.25, column: str = "train_flop") -> pd.Series:
    """Groups of runs whose compute lies within a factor: the number of its group for every row.

    Groups are cut greedily from the cheapest run upwards, so that each spans at most `factor`.
    """
    order = table[column].sort_values()
    groups, start, number = {}, -np.inf, -1
    for row, flop in order.items():
        if flop > factor * start:
            start, number = flop, number + 1
        groups[row] = number
    return pd.Series(groups).reindex(table.index)
