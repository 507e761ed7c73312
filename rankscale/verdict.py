"""One law for all axes? The verdict of `data/PLAN.md`, by the rules that were written there before the runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from rankscale.arms import arm_of, drawn_means, moved, studies, sweep_table
from rankscale.axes import CENTRE, DRAWS, LEVEL
from rankscale.config import RunConfig
from rankscale.estimands import CommonSlope
from rankscale.pretrain import trunk_hash
from rankscale.records import RunRecord
from rankscale.sweep import plan, read_spec

AXES = ("steps", "width", "depth", "clips", "mask_ratio", "lr")  # those that the verdict rests on
MOST_EPOCHS = 4  # beyond: the stress arm
FEWEST_STEPS = 500  # inside the region
WORDS = ("holds", "conditional", "fails at this scale", "undecided")


# --- the cells --------------------------------------------------------------------------------------------


def counted_arms(spec: Path, without: str = "test") -> frozenset[str]:
    """Arms (`arms.arm_of`) of the trained runs in a sweep's file, but for the block named `without`."""
    return frozenset(
        arm_of(each.config) for each in plan(read_spec(spec)) if each.config.steps and without not in each.blocks
    )


def with_logs(table: pd.DataFrame, rank: str, quality: str, cell: str = "cell") -> tuple[pd.DataFrame, list[str]]:
    """Add log_r, log_q, log_k (of `rank`, `quality`, width), leaving out cells in which a run has no positive quality.

    table: one row a run, with columns `label` and `cell`. Returns it, and the labels of the cells that were left out.
    """
    without = table.groupby(cell)[quality].transform("min") <= 0
    kept = table[~without]
    logs = {
        name: np.log(kept[of].astype(float)) for name, of in (("log_r", rank), ("log_q", quality), ("log_k", "width"))
    }
    return kept.assign(**logs).reset_index(drop=True), sorted(table.loc[without, "label"].unique())


def axis_table(records: Iterable[RunRecord], counted: Collection[str], centre: RunConfig = CENTRE) -> pd.DataFrame:
    """The runs along each axis as `estimands` wants them: the centre's stand once under every axis.

    counted: arms that may be used, of `counted_arms`; runs of more than `MOST_EPOCHS` are never among them.
    Columns of `records.runs_table`, and axis, cell, label, cluster (branches of one trunk share it), epochs.
    Axes with fewer than two cells left are left out.
    """
    parts = []
    for name, found in studies(records, centre).items():
        configs = [each.config for each in found.records]
        table = found.runs.assign(
            axis=name,
            cell=[arm_of(config) for config in configs],
            label=[", ".join(f"{axis} {value:g}" for axis, value in moved(config, centre).items()) or "centre"
                   for config in configs],
            cluster=[trunk_hash(config) for config in configs],
            epochs=[config.steps * config.batch / config.clips for config in configs],
        )  # fmt: skip
        parts.append(table[table["cell"].isin(counted) & (table["epochs"] <= MOST_EPOCHS)])
    every = pd.concat([part for part in parts if part["axis"].isin(AXES).all()], ignore_index=True)
    return _with_two_cells(every)


def _with_two_cells(table: pd.DataFrame) -> pd.DataFrame:
    return table[table.groupby("axis")["cell"].transform("nunique") > 1].reset_index(drop=True)


def best_rates(table: pd.DataFrame, centre: RunConfig = CENTRE, tolerance: float = 0.0) -> dict[int, set[float]]:
    """Learning rates by width whose held-out loss is the lowest, or higher by at most `tolerance`.

    table: of `arms.sweep_table`; only its runs that differ from the centre in width and rate alone are compared, by
    means over the seeds that all rates of a width share. tolerance: in units of the loss.
    """
    same = ["depth", "clips", "steps", "mask_ratio"]
    alike = (table[same] == [getattr(centre, name) for name in same]).all(axis=1)
    found = {}
    for width, part in table[alike].groupby("width"):
        losses = part.pivot_table("heldout_loss", "seed", "lr").dropna()
        if losses.empty:
            raise ValueError(f"width {width}: its learning rates share no seed, so their losses cannot be compared")
        mean = losses.mean()
        found[int(width)] = set(mean.index[mean <= mean.min() + tolerance])
    return found


def inside_region(table: pd.DataFrame, rates: Mapping[int, Collection[float]]) -> pd.DataFrame:
    """Of an `axis_table`, the authors' fair trial: past the dip, few epochs, and a rate that suits the width.

    rates: of `best_rates`. Axes with fewer than two cells left are left out.
    """
    tuned = np.array([lr in rates.get(width, ()) for lr, width in zip(table["lr"], table["width"], strict=True)], bool)
    return _with_two_cells(table[(table["steps"] >= FEWEST_STEPS) & tuned])


# --- the test cells ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Headline:
    """Cells that no fit saw, foretold by a law in rank and by one in width.

    cells: one row a test cell: label, log_r, log_k, log_q, and log_q as foretold by "rank" and by "width".
    rank_error, width_error: root mean square errors of log Q. gain: mean square error by width less that by rank, with
    its 95 % interval. rho: Spearman's correlation of rank and quality over the test cells, with its interval.
    slope, intercept: of the law in rank.
    """

    cells: pd.DataFrame
    slope: float
    intercept: float
    rank_error: float
    width_error: float
    gain: float
    low: float
    high: float
    rho: float
    rho_low: float
    rho_high: float


def headline(
    fitted: pd.DataFrame, test: pd.DataFrame, cell: str = "arm", draws: int = DRAWS, seed: int = 0
) -> Headline:
    """Fit straight lines of log_q on log_r and on log_k to `fitted` and foretell `test`.

    fitted, test: of `with_logs`, one row a run. Lines are least squares on means over seeds, one point a cell. The
    intervals come from drawing the test cells again, and the seeds of all cells beneath (`arms.drawn_means`).
    Raises ValueError for fewer than three test cells, or a cell in both.
    """
    if both := set(fitted[cell]) & set(test[cell]):
        raise ValueError(f"cell {min(both)} is fitted and foretold: the test cells must be unseen")
    columns = ["log_r", "log_k", "log_q"]
    names, means = drawn_means(pd.concat([fitted, test], ignore_index=True), columns, cell, draws, seed)
    unseen = names.isin(test[cell])
    if unseen.sum() < 3:
        raise ValueError(f"{unseen.sum()} test cell(s): three are needed at least")
    r, k, q = means.swapaxes(0, 1)  # (1 + draw, cell) each, the first row as measured
    lines = [_line(x[:, ~unseen], q[:, ~unseen]) for x in (r, k)]
    foretold = [level + slope * x[:, unseen] for x, (level, slope) in zip((r, k), lines, strict=True)]
    chosen = _draw_cells(len(means), int(unseen.sum()), seed)
    r, q = (np.take_along_axis(x[:, unseen], chosen, axis=1) for x in (r, q))
    by_rank, by_width = (((np.take_along_axis(x, chosen, axis=1) - q) ** 2).mean(axis=1) for x in foretold)
    gain, rho = by_width - by_rank, _spearman(r, q)
    labels = test.groupby(cell)["label"].first()[names[unseen]].to_numpy()
    cells = pd.DataFrame(dict(zip(columns, means[0][:, unseen], strict=True)))
    cells = cells.assign(label=labels, rank=foretold[0][0], width=foretold[1][0])
    ends = [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2]
    (low, high), (rho_low, rho_high) = (np.nanpercentile(x[1:], ends) for x in (gain, rho))
    return Headline(
        cells, float(lines[0][1][0, 0]), float(lines[0][0][0, 0]), float(np.sqrt(by_rank[0])),
        float(np.sqrt(by_width[0])), float(gain[0]), float(low), float(high), float(rho[0]), float(rho_low),
        float(rho_high),
    )  # fmt: skip


def _line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intercept and slope of each row, (row, 1): least squares of y on x, (row, cell) each."""
    middle, level = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
    slope = ((x - middle) * (y - level)).sum(axis=1, keepdims=True) / ((x - middle) ** 2).sum(axis=1, keepdims=True)
    return level - slope * middle, slope


def _draw_cells(rows: int, cells: int, seed: int) -> np.ndarray:
    """Which cells each row takes, (row, cell): the first row all of them once, the others with replacement."""
    chosen = np.random.default_rng(seed).integers(cells, size=(rows, cells))
    chosen[0] = np.arange(cells)
    return chosen


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each row, (row, cell) -> (row,); NaN where one of them does not vary."""
    x, y = (stats.rankdata(each, axis=1) for each in (x, y))
    x, y = (each - each.mean(axis=1, keepdims=True) for each in (x, y))
    with np.errstate(invalid="ignore"):
        return (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))


# --- the rule ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """word: of `WORDS`. reasons: what was asked, and what the answer was."""

    word: str
    reasons: tuple[tuple[str, bool], ...]


def judge(inside: CommonSlope | None, everywhere: CommonSlope | None, tested: Headline | None) -> Verdict:
    """The verdict by the plan's rule, from `estimands.common_slope` inside the region and over all cells.

    None stands for what could not be measured: too few axes, too few seeds, no test cells. Nothing follows from it.
    """
    one_inside, one_everywhere = (found is not None and _one_slope(found) for found in (inside, everywhere))
    foretells = tested is not None and tested.low > 0
    refused = inside is not None and inside.p < 1 - LEVEL
    opposed = inside is not None and set(inside.axes(LEVEL)["sign"]) >= {-1, 1}
    reasons = (
        ("inside the region, one slope is measurable", inside is not None),
        ("inside the region, one slope is not refused and all slopes are equivalent", one_inside),
        ("over all cells, one slope is not refused and all slopes are equivalent", one_everywhere),
        ("the law in rank foretells the test cells better than the law in width", foretells),
        ("inside the region, one slope is refused", refused),
        ("inside the region, two axes have slopes of opposite sign", opposed),
    )
    if one_inside and foretells:
        return Verdict("holds", reasons)
    if one_inside and everywhere is not None and not one_everywhere:
        return Verdict("conditional", reasons)
    if refused and opposed:
        return Verdict("fails at this scale", reasons)
    return Verdict("undecided", reasons)


def _one_slope(found: CommonSlope) -> bool:
    return found.p >= 1 - LEVEL and bool(found.pairs()["equivalent"].all())


def region_of(
    records: Iterable[RunRecord], counted: Collection[str], centre: RunConfig = CENTRE, tolerance: float = 0.0
) -> pd.DataFrame:
    """The region's runs: `axis_table`, at the rates that `best_rates` finds among the counted arms."""
    records = list(records)
    runs = sweep_table(records, centre)
    return inside_region(
        axis_table(records, counted, centre), best_rates(runs[runs["arm"].isin(counted)], centre, tolerance)
    )
