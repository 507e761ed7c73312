"""Does one number stand in for every axis? What `data/PLAN.md` judges by, from a table of runs.

The table has one row a run, with columns `cell` (a configuration), `axis` (what the cell varies), `seed`, and
logarithms such as `log_r` (RankMe), `log_q` (quality), `log_k` (width). A cell on several axes, such as the centre of
a design, has its runs once under each of them. Cells are what was chosen; what is random is the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from rankscale import laws

DRAWS = 2000
LABELS = ("cell", "axis", "seed")
MARGIN = 1.5  # factor within which two slopes count as equal
Predict = Callable[[pd.DataFrame, pd.DataFrame], np.ndarray]  # cells fitted, cells to predict -> their log_q


def _check(table: pd.DataFrame, numbers: Sequence[str], labels: Sequence[str] = LABELS) -> pd.DataFrame:
    """The table, once its columns are there, its numbers finite, and no run stands twice with different numbers."""
    if missing := [name for name in (*labels, *numbers) if name not in table.columns]:
        raise ValueError(f"no column {', '.join(missing)}; the table has {', '.join(map(str, table.columns))}")
    bad = ~np.isfinite(table[list(numbers)].to_numpy(dtype=np.float64)).all(axis=1)
    if bad.any():
        raise ValueError(
            f"row {table.index[bad][0]}: {', '.join(numbers)} must be finite in all rows, and are not in {bad.sum()}: "
            "leave out cells without a logarithm, by name"
        )
    if (twice := table.duplicated(list(labels))).any():
        raise ValueError(f"row {table.index[twice][0]}: this run stands in the table twice, by {', '.join(labels)}")
    differ = table.groupby(["cell", "seed"], sort=False)[list(numbers)].nunique().max(axis=1) > 1
    if differ.any():
        cell, seed = differ.index[differ][0]
        raise ValueError(f"cell {cell}, seed {seed}: the run has different numbers under different axes")
    return table


def _cells(table: pd.DataFrame, numbers: Sequence[str]) -> pd.DataFrame:
    """One row a cell: means over its runs, how many these are, and the axes it lies on."""
    runs = table.drop_duplicates(["cell", "seed"]).groupby("cell", sort=False)
    cells = runs[list(numbers)].mean().assign(runs=runs.size())
    if "axis" in table:
        cells["axes"] = table.groupby("cell", sort=False)["axis"].agg(lambda axes: tuple(dict.fromkeys(axes)))
    return cells.reset_index()


def _seed_variance(table: pd.DataFrame, name: str) -> float:
    """Of one run about the mean of its cell, pooled over cells."""
    runs = table.drop_duplicates(["cell", "seed"])
    away = runs[name] - runs.groupby("cell")[name].transform("mean")
    free = len(runs) - runs["cell"].nunique()
    if free == 0:
        raise ValueError("no cell has two seeds: the noise between seeds is not known")
    return float((away**2).sum() / free)


# --- one slope for all axes -------------------------------------------------------------------------------
# Of each axis count the differences between its cells, in ln R and ln Q, with the noise that seeds give both. Which
# differences are taken, neighbours or all against the first, changes nothing: least squares with their covariance sees
# the same information.


@dataclass(frozen=True, eq=False)
class _Design:
    """What links runs to cells; linear maps, so that all resamples go through at once.

    mean: (cell, run), runs to cell effects. rest: (run, run), runs to residuals, on `free` degrees of freedom. weights:
    (axis, cell, cell), the inverse covariance of an axis's differences, as a form on cells. block: (cell,) which cells
    hang together through shared axes. draw: the resampling of residuals, see `_Donors`.
    """

    cells: list
    axes: list
    member: np.ndarray
    mean: np.ndarray
    rest: np.ndarray
    free: int
    weights: np.ndarray
    block: np.ndarray


def _design(table: pd.DataFrame, runs: pd.DataFrame, paired: bool) -> _Design:
    cells, axes = list(dict.fromkeys(runs["cell"])), list(dict.fromkeys(table["axis"]))
    member = runs["cell"].map(cells.index).to_numpy()
    x = np.eye(len(cells))[member]
    if paired:
        x = np.hstack([x, pd.get_dummies(runs["seed"], dtype=float).to_numpy()[:, 1:]])
    if np.linalg.matrix_rank(x) < x.shape[1]:
        raise ValueError("seeds do not link all cells, so that runs cannot be compared in pairs: take paired=False")
    free = len(runs) - x.shape[1]
    if free < 2:
        raise ValueError(f"{len(runs)} runs of {len(cells)} cells tell nothing of the noise between seeds: add seeds")
    solve = np.linalg.pinv(x)
    mean = solve[: len(cells)]
    weights = []
    for axis in axes:
        own = [cells.index(cell) for cell in dict.fromkeys(table.loc[table["axis"] == axis, "cell"])]
        if len(own) < 2:
            raise ValueError(f"axis {axis} has one cell only: a slope needs two")
        steps = np.eye(len(cells))[own[1:]] - np.eye(len(cells))[own[0]]
        weights.append(steps.T @ np.linalg.solve(steps @ mean @ mean.T @ steps.T, steps))
    links = csr_array((np.array(weights) != 0).any(axis=0))
    return _Design(
        cells, axes, member, mean, np.eye(len(runs)) - x @ solve, free, np.array(weights),
        connected_components(links, directed=False)[1],
    )  # fmt: skip


def _slopes(scatter: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors-in-variables slope and its chi-square: scatter (..., 2, 2) of (ln R, ln Q), noise of one run likewise.

    The chi-square of a slope b is v' scatter v / v' noise v with v = (-b, 1): its minimum is the smallest generalised
    eigenvalue (Fuller 1987).
    """
    root = np.linalg.inv(np.linalg.cholesky(noise))
    value, vector = np.linalg.eigh(root @ scatter @ root.swapaxes(-1, -2))
    v = (root.swapaxes(-1, -2) @ vector[..., :1])[..., 0]
    with np.errstate(divide="ignore"):
        return -v[..., 0] / v[..., 1], value[..., 0]


@dataclass(frozen=True, eq=False)
class _State:
    """Slopes and chi-squares of one table, or of many resamples (...,): common, and (..., axis) of each axis's own."""

    effects: np.ndarray  # (..., cell, 2)
    noise: np.ndarray  # (..., 2, 2) covariance of one run
    common: np.ndarray
    own: np.ndarray
    j: np.ndarray


def _measure(design: _Design, effects: np.ndarray, residual: np.ndarray) -> _State:
    noise = residual.swapaxes(-1, -2) @ residual / design.free
    scatter = effects.swapaxes(-1, -2)[..., None, :, :] @ design.weights @ effects[..., None, :, :]
    own, least = _slopes(scatter, noise[..., None, :, :])
    common, chi2 = _slopes(scatter.sum(axis=-3), noise)
    return _State(effects, noise, common, own, chi2 - least.sum(axis=-1))


@dataclass(frozen=True, eq=False)
class CommonSlope:
    """The slope of ln Q on ln R that all axes would share, and whether they do. `common_slope` makes it.

    slope, low, high: with its interval (95 %). j: by how much the chi-square of one slope exceeds that of a slope for
    each axis, df = axes - 1. p: how often tables with one common slope have a larger j. p_chi2: what the chi-square
    distribution would say. drawn: (draw, axis) slopes of resamples. table: see `axes`.
    """

    slope: float
    low: float
    high: float
    j: float
    df: int
    p: float
    p_chi2: float
    names: tuple[str, ...]
    slopes: np.ndarray
    drawn: np.ndarray

    def axes(self, level: float = 0.9) -> pd.DataFrame:
        """One row an axis: axis, slope, low, high, sign (-1 or 1 where the interval excludes 0, else 0)."""
        low, high = np.quantile(self.drawn, [(1 - level) / 2, (1 + level) / 2], axis=0, method="inverted_cdf")
        sign = np.where(low > 0, 1, np.where(high < 0, -1, 0))
        return pd.DataFrame({"axis": self.names, "slope": self.slopes, "low": low, "high": high, "sign": sign})

    def pairs(self, margin: float = MARGIN, level: float = 0.9) -> pd.DataFrame:
        """Which slopes are equal, within a factor: one row a pair of axes.

        Columns: first, second; ratio of their slopes with low and high; equivalent: no value of the one interval
        differs from any of the other by more than the factor, nor in sign; ratio_equivalent: the interval of the
        ratio lies within the factor, as two one-sided tests have it, which asks for less.
        """
        ends = self.axes(level)[["low", "high"]].to_numpy()
        rows = []
        for a, b in combinations(range(len(self.names)), 2):
            ratio = self.drawn[:, a] / self.drawn[:, b]
            low, high = np.quantile(ratio, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
            alike = (ends[[a, b]] > 0).all() or (ends[[a, b]] < 0).all()
            sizes = np.abs(ends[[a, b]])
            rows.append(
                {
                    "first": self.names[a], "second": self.names[b], "ratio": self.slopes[a] / self.slopes[b],
                    "low": low, "high": high,
                    "equivalent": bool(alike and (sizes.max(axis=1) <= margin * sizes.min(axis=1)[::-1]).all()),
                    "ratio_equivalent": bool(1 / margin <= low and high <= margin),
                }
            )  # fmt: skip
        return pd.DataFrame(rows)


def common_slope(table: pd.DataFrame, paired: bool = True, draws: int = DRAWS, seed: int = 0) -> CommonSlope:
    """Do all axes share one slope of log_q on log_r? Errors-in-variables generalised least squares.

    table: columns cell, axis, seed, log_r, log_q, and perhaps cluster, the same for runs that are branches of one
    trunk. paired: equal seeds share initialisation and data across cells, so that what a seed does to all cells is
    taken out. The noise of one run, in both numbers and jointly, is pooled over cells. Each axis brings its own
    differences; that a shared cell makes axes hang together is left to the resampling. Resamples: residuals, drawn
    from all runs with a sign at random (those of a cluster together, from the same cells of another seed), are laid
    on the cells' means: for the slopes on the measured ones, for j on those that the common slope allows. Three seeds
    of a cell would have ten resamples of their own. A curved law gives axes of different reach different slopes: keep
    to small steps, or `straighten` first.
    Raises ValueError for bad columns, axes of one cell, fewer than two axes, and seeds that tell nothing of the noise.
    """
    runs = _check(table, ["log_r", "log_q"]).drop_duplicates(["cell", "seed"])
    design = _design(table, runs, paired)
    if len(design.axes) < 2:
        raise ValueError("one axis only: there is nothing to compare its slope with")
    values = runs[["log_r", "log_q"]].to_numpy(dtype=np.float64)
    residual = design.rest @ values
    found = _measure(design, design.mean @ values, residual)
    noise = _draw_residuals(design, runs, residual, draws, seed)
    shaken, rest = design.mean @ noise, design.rest @ noise
    free = _measure(design, found.effects + shaken, rest)
    null = _measure(design, _on_one_line(design, found) + shaken, rest)
    low, high = np.quantile(free.common, [0.025, 0.975])
    df = len(design.axes) - 1
    return CommonSlope(
        float(found.common), float(low), float(high), float(found.j), df,
        float((1 + (null.j >= found.j).sum()) / (1 + draws)), float(stats.chi2.sf(found.j, df)),
        tuple(map(str, design.axes)), found.own, free.own,
    )  # fmt: skip


def _on_one_line(design: _Design, found: _State) -> np.ndarray:
    """Cell effects, (cell, 2), moved onto the common slope, each along the way its noise would have taken it."""
    (rr, rq), (_, qq) = found.noise
    b = found.common
    error = found.effects @ np.array([-b, 1])
    error = error - (np.bincount(design.block, error) / np.bincount(design.block))[design.block]
    spread = qq - 2 * b * rq + b * b * rr
    return found.effects - np.outer(error, [rq - b * rr, qq - b * rq]) / spread


def _draw_residuals(design: _Design, runs: pd.DataFrame, residual: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """(draw, run, 2): the noise of new runs, from residuals set right for what their own means took."""
    rng = np.random.default_rng(seed)
    left = np.diag(design.rest)
    known = left > 1e-9
    scaled = residual / np.sqrt(np.where(known, left, 1))[:, None]
    label = runs["cluster"].to_numpy() if "cluster" in runs else np.arange(len(runs))
    groups: dict[tuple, list[np.ndarray]] = {}  # runs of one cluster, by the cells they belong to
    for name in pd.unique(label):
        rows = np.flatnonzero(label == name)
        rows = rows[np.argsort(design.member[rows], kind="stable")]
        cells = tuple(design.member[rows]) if len(rows) > 1 else ()
        groups.setdefault(cells, []).append(rows)
    pool = np.flatnonzero(known)
    drawn = np.empty((draws, len(runs), 2))
    for own in groups.values():
        donors = np.array([rows for rows in own if known[rows].all()])
        for rows in own:
            sign = rng.choice([-1.0, 1.0], draws)
            if len(rows) > 1 and len(donors) > 1:
                chosen = donors[rng.integers(len(donors), size=draws)]
            else:
                chosen = rng.choice(pool, (draws, len(rows)))
            drawn[:, rows] = sign[:, None, None] * scaled[chosen]
    return drawn


def straighten(table: pd.DataFrame) -> pd.DataFrame:
    """The table with log_r bent so that one common curve becomes a straight line of slope one.

    The curve is a parabola of log_q in log_r, the same for all axes but for a constant each, fitted to cell means:
    with it taken out, `common_slope` no longer mistakes one curved law for several. Raises ValueError where that
    parabola turns within the data: then no common monotone curve is in sight.
    """
    cells = _cells(_check(table, ["log_r", "log_q"]), ["log_r", "log_q"])
    middle = cells["log_r"].mean()
    long = cells.explode("axes")
    r = long["log_r"].to_numpy() - middle
    x = np.column_stack([r, r**2, pd.get_dummies(long["axes"], dtype=float)])
    linear, square = np.linalg.lstsq(x, long["log_q"].to_numpy(), rcond=None)[0][:2]
    every = table["log_r"] - middle
    if len({np.sign(linear + 2 * square * end) for end in (every.min(), every.max())}) > 1:
        raise ValueError("the common curve of log_q over log_r turns within the data: it is not monotone")
    return table.assign(log_r=linear * every + square * every**2)


# --- prediction, shares ------------------------------------------------------------------------------------


def leave_one_axis_out(
    table: pd.DataFrame, laws_of: Mapping[str, Sequence[str] | Predict] | None = None
) -> pd.DataFrame:
    """How well each axis is foretold by the others: R2 of log_q, 1 - SSE / SSE(mean of the cells that were fitted).

    laws_of: name -> columns that log_q is a straight line in, or a function (cells fitted, cells to predict) -> log_q,
    such as `law` makes; by default "rank" (log_r), "width" (log_k) and "both". Fitted and predicted are means of cells;
    a cell that also lies on another axis is never among those predicted.
    Returns one row an axis, and "all": cells, one column a law, and ceiling: what the noise between seeds leaves of R2.
    A column that does not vary among the cells fitted foretells their mean, and has an R2 of 0.
    """
    laws_of = laws_of or {"rank": ["log_r"], "width": ["log_k"], "both": ["log_r", "log_k"]}
    numbers = list(dict.fromkeys(["log_q", *(c for of in laws_of.values() if not callable(of) for c in of)]))
    _check(table, numbers)
    others = [name for name in table.columns if name in ("log_r", "log_k") and name not in numbers]
    cells, noise = _cells(table, numbers + others), _seed_variance(table, "log_q")
    rows = []
    for axis in dict.fromkeys(table["axis"]):
        own = cells["axes"] == (axis,)
        fitted, left = cells[~own], cells[own]
        if own.any() and len(fitted) > 1:
            sums = {name: _squares(_predict(of, fitted, left), left) for name, of in laws_of.items()}
            naive = _squares(np.full(len(left), fitted["log_q"].mean()), left)
            rows.append(
                {"axis": axis, "cells": len(left), **sums, "ceiling": (noise / left["runs"]).sum(), "naive": naive}
            )
    if not rows:
        raise ValueError("no axis has cells of its own beside two of others: there is nothing to foretell")
    found = pd.DataFrame(rows)
    found = pd.concat([found, found.sum(numeric_only=True).to_frame().T.assign(axis="all")], ignore_index=True)
    for name in (*laws_of, "ceiling"):
        found[name] = 1 - found[name] / found["naive"]
    return found.astype({"cells": int}).drop(columns="naive")


def law(form: str, column: str = "log_r") -> Predict:
    """A law of `rankscale.laws` in one column, for `leave_one_axis_out`: least squares of log_q."""

    def predict(fitted: pd.DataFrame, left: pd.DataFrame) -> np.ndarray:
        data = laws.points(np.exp(fitted[column]), np.exp(fitted["log_q"]), (column, "log_q"))
        return np.log(laws.fit(form, data, delta=np.inf).predict(np.exp(left[column])))

    return predict


def _predict(of: Sequence[str] | Predict, fitted: pd.DataFrame, left: pd.DataFrame) -> np.ndarray:
    if callable(of):
        return of(fitted, left)
    x, new = fitted[list(of)].to_numpy(), left[list(of)].to_numpy()
    middle, level = x.mean(axis=0), fitted["log_q"].mean()
    return level + (new - middle) @ np.linalg.lstsq(x - middle, fitted["log_q"].to_numpy() - level, rcond=1e-9)[0]


def _squares(predicted: np.ndarray, cells: pd.DataFrame) -> float:
    return float(((predicted - cells["log_q"].to_numpy()) ** 2).sum())


def variance_shares(table: pd.DataFrame, rank: str = "log_r", quality: str = "log_q") -> pd.Series:
    """What the variance of quality over runs goes with: shares that add up to 1.

    rank: one straight line in a cell's mean rank. axis: a level for each axis. axis x rank: a slope for each axis.
    cell: what else differs between cells. seed: the rest. Rank and axis overlap: each gets the mean of what it adds
    first and what it adds second (Shapley). Of every share but the last is taken what noise of seeds alone would give
    it (epsilon squared, Kelley 1935), so that a share of nothing is around 0 and may be negative. Cells on several
    axes are left out, as they have no axis of their own.
    Raises ValueError where no cell has two seeds, or fewer than two axes are left.
    """
    cells = _cells(_check(table, [rank, quality]), [rank, quality])
    alone = cells.loc[cells["axes"].str.len() == 1, "cell"]
    runs = table[table["cell"].isin(alone)].reset_index(drop=True)
    if runs["axis"].nunique() < 2:
        raise ValueError("variance shares need two axes with cells of their own")
    y = runs[quality].to_numpy(dtype=np.float64)
    mean_rank = runs.groupby("cell")[rank].transform("mean").to_numpy()[:, None]
    one, levels = np.ones((len(runs), 1)), pd.get_dummies(runs["axis"], dtype=float).to_numpy()
    nothing, line, level, both, slopes, cell = (
        _explained(x, y)
        for x in (
            one, np.hstack([one, mean_rank]), levels, np.hstack([levels, mean_rank]),
            np.hstack([levels, levels * mean_rank]), pd.get_dummies(runs["cell"], dtype=float).to_numpy(),
        )
    )  # fmt: skip
    noise, total = _seed_variance(runs, quality), ((y - y.mean()) ** 2).sum()
    gain = {
        "rank": (line - nothing + both - level) / 2,
        "axis": (level - nothing + both - line) / 2,
        "axis x rank": slopes - both,
        "cell": cell - slopes,
    }
    shares = {name: (squares - noise * df) / total for name, (squares, df) in gain.items()}
    return pd.Series(shares | {"seed": 1 - sum(shares.values())}, name="share")


def _explained(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sum of squares that the columns of x account for, and their rank."""
    fitted = x @ np.linalg.lstsq(x, y, rcond=1e-9)[0]
    return np.array([fitted @ fitted, np.linalg.matrix_rank(x, rtol=1e-9)])
