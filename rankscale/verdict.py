"""One law for all axes? The verdict of `data/PLAN.md`, by the rules that were written there before the runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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
class Foretold:
    """Cells that no fit saw, foretold by several laws.

    labels: (cell,). measured: (1 + draw, cell) log Q, predicted: by law, the same; squares: by law, (1 + draw,) mean
    squared errors. The first row is as measured; in the others the test cells are drawn again, with the seeds of all
    cells beneath.
    """

    labels: tuple[str, ...]
    measured: np.ndarray
    predicted: Mapping[str, np.ndarray]

    @property
    def squares(self) -> dict[str, np.ndarray]:
        return {name: ((each - self.measured) ** 2).mean(axis=1) for name, each in self.predicted.items()}

    def error(self, law: str) -> float:
        """Root mean square error of log Q."""
        return float(np.sqrt(self.squares[law][0]))

    def gain(self, law: str, over: str) -> tuple[float, float, float]:
        """Mean squared error by another law less that by this one, and its 95 % interval: above 0, this is better."""
        return _with_interval(self.squares[over] - self.squares[law])

    def rho(self, law: str) -> tuple[float, float, float]:
        """Spearman's correlation of predicted and measured, with its 95 % interval."""
        return _with_interval(_spearman(self.predicted[law], self.measured))


def foretell(
    fitted: pd.DataFrame,
    test: pd.DataFrame,
    laws_of: Mapping[str, Sequence[str]],
    cell: str = "arm",
    draws: int = DRAWS,
    seed: int = 0,
) -> Foretold:
    """Fit log_q as a plane in each law's columns to `fitted` and foretell `test`.

    fitted, test: of `with_logs`, one row a run. Planes are least squares on means over seeds, one point a cell.
    Raises ValueError for fewer than three test cells, a cell in both, and columns that are missing for a run.
    """
    if both := set(fitted[cell]) & set(test[cell]):
        raise ValueError(f"cell {min(both)} is fitted and foretold: the test cells must be unseen")
    columns = ["log_q", *dict.fromkeys(column for own in laws_of.values() for column in own)]
    every = pd.concat([fitted, test], ignore_index=True)
    if (missing := every[columns].isna().any()).any():
        raise ValueError(f"column {missing.idxmax()} is missing for some runs: leave it out")
    names, means = drawn_means(every, columns, cell, draws, seed)
    unseen = names.isin(test[cell])
    if unseen.sum() < 3:
        raise ValueError(f"{unseen.sum()} test cell(s): three are needed at least")
    chosen = _draw_cells(len(means), int(unseen.sum()), seed)
    q, drawn = means[:, 0], {}
    for name, own in laws_of.items():
        x = np.stack([np.ones_like(q), *(means[:, columns.index(column)] for column in own)], axis=2)
        known, target = x[:, ~unseen], q[:, ~unseen, None]
        turned = known.swapaxes(1, 2)
        plane = np.linalg.solve(turned @ known, turned @ target)
        drawn[name] = np.take_along_axis((x[:, unseen] @ plane)[:, :, 0], chosen, axis=1)
    labels = test.groupby(cell)["label"].first()[names[unseen]]
    return Foretold(tuple(labels), np.take_along_axis(q[:, unseen], chosen, axis=1), drawn)


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


def _with_interval(drawn: np.ndarray) -> tuple[float, float, float]:
    """A statistic, the first of its draws, and the ends of its interval; NaN where there are no others."""
    if len(drawn) < 2:
        return float(drawn[0]), float("nan"), float("nan")
    low, high = np.nanpercentile(drawn[1:], [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return float(drawn[0]), float(low), float(high)


# --- the rule ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """word: of `WORDS`. reasons: what was asked, and what the answer was."""

    word: str
    reasons: tuple[tuple[str, bool], ...]


def judge(inside: CommonSlope | None, everywhere: CommonSlope | None, tested: Foretold | None) -> Verdict:
    """The verdict by the plan's rule, from `estimands.common_slope` inside the region and over all cells.

    tested: by laws named "rank" and "width".
    None stands for what could not be measured: too few axes, too few seeds, no test cells. Nothing follows from it.
    """
    one_inside, one_everywhere = (found is not None and _one_slope(found) for found in (inside, everywhere))
    foretells = tested is not None and tested.gain("rank", over="width")[1] > 0
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
