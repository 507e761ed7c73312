"""What the first part of a run tells of its end: how well an early number ranks arms, and what stopping by it costs.

A history has its points at fixed steps. What is known at a moment is the last point not after it: nothing is
interpolated from what comes later. Arms are compared at one step, so they should have one number of steps. Unlike in
`arms`, intervals draw the arms again as well as their seeds: a rule for stopping is to hold for arms not tried yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from math import ceil

import numpy as np
import pandas as pd
from scipy import stats

from rankscale.arms import MIDDLE, draw_again, drawn_means, rank_correlation, standardised_ranks
from rankscale.axes import DRAWS, LEVEL
from rankscale.pretrain import HistoryPoint, trunk_end, trunk_hash
from rankscale.records import RunRecord
from rankscale.spectra import alpha_req, sample_bias, stable_rank

# Columns of `points`, turned so that more should be better, and what they are called.
NUMBERS = {
    "log_rank": "RankMe",
    "low_loss": "low held-out loss",
    "regrown": "RankMe against step 0",
    "flatness": "flat tail (-alpha-ReQ)",
    "log_stable": "stable rank",
}
FEWEST_ARMS = 4  # for a rank correlation


# --- what is known, and when ------------------------------------------------------------------------------


def points(records: Iterable[RunRecord]) -> pd.DataFrame:
    """One row for each trained run and point of its history.

    Columns: hash, step, share (of the run's steps), decaying (a "branch" run whose rate falls), rankme, and those of
    `NUMBERS`. log_rank: ln of RankMe, with the leading bias of its few clips taken out; regrown: log_rank less that of
    step 0; low_loss: minus the held-out loss; flatness: minus alpha-ReQ, and log_stable: ln of the stable rank, both of
    the raw spectrum, NaN where it was not kept or has too few ranks.
    """
    rows = [
        {"hash": each.hash, "share": point.step / each.config.steps, "decaying": _decaying(each, point)}
        | _numbers(point, each.config.width)
        for each in records
        if each.config.steps
        for point in each.history
    ]
    table = pd.DataFrame(rows)
    first = table.sort_values("step").groupby("hash")["log_rank"].transform("first")
    return table.assign(regrown=table["log_rank"] - first)


def _decaying(record: RunRecord, point: HistoryPoint) -> bool:
    return record.config.schedule == "branch" and point.step > trunk_end(record.config)


def _numbers(point: HistoryPoint, dim: int) -> dict[str, float]:
    found = {"step": point.step, "rankme": point.rankme, "low_loss": -point.heldout_loss}
    found["log_rank"] = float(np.log(point.rankme / sample_bias(point.rank_clips, dim)))
    found |= {"flatness": float("nan"), "log_stable": float("nan")}
    if point.singular_values:
        found["log_stable"] = float(np.log(stable_rank(np.array(point.singular_values))))
        found["flatness"] = _flatness(np.array(point.singular_values))
    return found


def _flatness(sigma: np.ndarray) -> float:
    try:
        return -alpha_req(sigma).alpha
    except ValueError:  # too few ranks
        return float("nan")


def at(table: pd.DataFrame, share: float) -> pd.DataFrame:
    """Of each run in `points` the last point not after a share of its steps.

    share: from 0 (untrained) to 1 (the end). Raises ValueError outside.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is a part of a run's steps, from 0 to 1, got {share}")
    known = table[table["share"] <= share + 1e-9].reset_index(drop=True)
    return known.loc[known.groupby("hash")["step"].idxmax()].reset_index(drop=True)


def shorter(records: Iterable[RunRecord], steps: int) -> pd.DataFrame:
    """Finished "branch" runs that left the trunk of a run of `steps` steps before it: an early look with a probe.

    One row for each such pair of equal pooling and layer: hash of the long run; early_hash, early_steps, share of the
    short one.
    """
    trunks: dict[tuple, list[RunRecord]] = {}
    for each in records:
        if each.status == "ok" and each.config.steps and each.config.schedule == "branch":
            key = (trunk_hash(each.config), each.config.pool, each.config.layer)
            trunks.setdefault(key, []).append(each)
    rows = [
        (long.hash, short.hash, short.config.steps, short.config.steps / steps)
        for own in trunks.values()
        for long, short in product(own, own)
        if long.config.steps == steps and short.config.steps < steps
    ]
    return pd.DataFrame(rows, columns=["hash", "early_hash", "early_steps", "share"])


# --- phases -----------------------------------------------------------------------------------------------

WORDS = {(): "flat", (-1,): "collapse", (1,): "expand", (-1, 1): "collapse, expand"}
WORDS |= {(-1, 1, -1): "collapse, expand, compress", (1, -1): "expand, compress"}


def legs(steps: Sequence[float], values: Sequence[float], noise: float) -> pd.DataFrame:
    """A path cut where it turns by more than `noise`: one row a leg, with start, end (steps) and change.

    steps: ascending; values and noise: in one unit, such as ln RankMe. A path that never moves by more has no legs.
    """
    steps, values = np.asarray(steps), np.asarray(values, dtype=float)
    turns, low, high, way = [], 0, 0, 0  # way: +1 rising, -1 falling, 0 not known yet
    for i in range(1, len(values)):
        low = i if values[i] < values[low] else low
        high = i if values[i] > values[high] else high
        if way <= 0 and values[i] - values[low] > noise:
            turns, way, high = [*turns, low] if way else [low], 1, i
        elif way >= 0 and values[high] - values[i] > noise:
            turns, way, low = [*turns, high] if way else [high], -1, i
    ends = np.array([*turns, high if way > 0 else low] if way else [], dtype=int)
    found = {"start": steps[ends[:-1]], "end": steps[ends[1:]], "change": np.diff(values[ends])}
    return pd.DataFrame(found)


def phases(table: pd.DataFrame, noise: float, column: str = "log_rank", arm: str = "arm") -> pd.DataFrame:
    """How RankMe moved in each arm: one row an arm, with phases (in words), dip_step, dip, growth, drop.

    table: of `points`, with a column for the arm; the path is the mean over seeds at each step. noise: as in `legs`.
    dip: how far it fell at first and dip_step where to; growth: how far it rose in all after that; drop: how far it
    fell in its last leg, if that was not the first fall. All in units of the column, and 0 where there was none.
    """
    rows = []
    for name, path in table.groupby([arm, "step"])[column].mean().groupby(level=0, sort=False):
        found = legs(path.index.get_level_values("step"), path, noise)
        change = found["change"].to_numpy()
        signs = tuple(np.sign(change).astype(int))
        first = len(signs) > 0 and signs[0] < 0
        rows.append(
            {
                arm: name,
                "phases": WORDS.get(signs, "several turns"),
                "dip_step": found["end"].iloc[0] if first else np.nan,
                "dip": -change[0] if first else 0.0,
                "growth": change[change > 0].sum(),
                "drop": -change[-1] if len(signs) > 1 and signs[-1] < 0 else 0.0,
            }
        )
    return pd.DataFrame(rows)


# --- the ranking ------------------------------------------------------------------------------------------


def correlations(
    table: pd.DataFrame,
    numbers: Sequence[str],
    qualities: Sequence[str],
    given: str | None = None,
    arm: str = "arm",
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman's correlation of numbers and qualities over arms: one column a pair, as measured in the first row.

    The other rows are draws, of arms and of the seeds of each arm beneath (`arms.drawn_means`), the same for all
    columns, so that two of them may be subtracted; there are none where no arm has two seeds. given: a column whose
    share in both is taken out. Raises ValueError for fewer than `FEWEST_ARMS` arms.
    """
    columns = list(dict.fromkeys([*numbers, *qualities, *([given] if given else [])]))
    names, means = drawn_means(table, columns, arm, draws, seed)
    if len(names) < FEWEST_ARMS:
        raise ValueError(f"{len(names)} arms: a rank correlation of {columns[0]} needs at least {FEWEST_ARMS}")
    means = np.take_along_axis(means, draw_again(len(means), len(names), seed)[:, None, :], axis=2)
    rank = {name: standardised_ranks(means[:, i]) for i, name in enumerate(columns)}
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {(x, y): rank_correlation(rank[x], rank[y], rank.get(given)) for x in numbers for y in qualities}
    return pd.DataFrame(found).rename_axis(columns=["number", "quality"])


# --- the value --------------------------------------------------------------------------------------------


def foretell(
    table: pd.DataFrame,
    models: Mapping[str, Sequence[str]],
    quality: str,
    group: str = "axis",
    always: str = MIDDLE,
    arm: str = "arm",
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """How far off the quality of an arm is when it is foretold from arms of other groups: one column a model.

    models: name -> columns that quality is a straight line in, by least squares; with no columns the mean of the
    others. Each group is foretold from all others; arms of the group `always` are in every fit and never foretold.
    Returns root mean square errors over the arms foretold, in units of quality: the first row as measured, the others
    with seeds drawn again in all arms and the foretold arms drawn again. Raises ValueError without two groups to
    foretell.
    """
    columns = list(dict.fromkeys([quality, *(column for of in models.values() for column in of)]))
    names, means = drawn_means(table, columns, arm, draws, seed)
    of_arm = table.groupby(arm)[group].first()[names].to_numpy()
    groups = [each for each in pd.unique(of_arm) if each != always]
    if len(groups) < 2:
        raise ValueError(f"{group}: {len(groups)} group(s) to foretell, two are needed")
    y, squares = means[:, 0], {}
    for name, of in models.items():
        x = means[:, [columns.index(column) for column in of]]
        errors = [_foretold(x, y, of_arm == each) - y[:, of_arm == each] for each in groups]
        squares[name] = np.concatenate(errors, axis=1) ** 2
    chosen = draw_again(len(means), int((of_arm != always).sum()), seed)
    errors = {name: np.sqrt(np.take_along_axis(each, chosen, axis=1).mean(axis=1)) for name, each in squares.items()}
    return pd.DataFrame(errors)


def _foretold(x: np.ndarray, y: np.ndarray, left: np.ndarray) -> np.ndarray:
    """y of the arms in `left`, (row, left), by a line through the others; x (row, column, arm), y (row, arm)."""
    level = y[:, ~left].mean(axis=1)
    if not x.shape[1]:
        return np.repeat(level[:, None], left.sum(), axis=1)
    middle = x[:, :, ~left].mean(axis=2, keepdims=True)
    fitted, new = (x - middle)[:, :, ~left].swapaxes(1, 2), (x - middle)[:, :, left].swapaxes(1, 2)
    slopes = np.linalg.pinv(fitted, rcond=1e-9) @ (y[:, ~left] - level[:, None])[:, :, None]
    return level[:, None] + (new @ slopes)[:, :, 0]


# --- what stopping early costs ----------------------------------------------------------------------------


def halving(
    table: pd.DataFrame,
    rules: Mapping[str, np.ndarray],
    quality: str,
    shares: Sequence[float],
    entrants: int = 8,
    arm: str = "arm",
    cost: str = "train_flop",
    against: str | None = None,
    draws: int = 20_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Quality lost by successive halving: train some arms, drop the worse half at each look, finish the one left.

    table: one row a run. rules: name -> (look, run) scores, more is better; ties are broken at random. shares: of a
    run's steps at which the looks are taken; the last look leaves one run, so that one share is a single look. A trial
    takes `entrants` arms at random and one run of each. Rows, one a rule: regret, the quality of the trial's best run
    less that of the run kept, as a mean over trials, with low and high; gain, how much smaller it is than that of the
    rule `against`, or of a blind choice, with gain_low and gain_high; cost, of the training that was done in units of
    finishing all entrants.
    Intervals are 95 % t intervals from leaving out one arm, with its seeds, at a time (jackknife, Quenouille 1956), so
    that they hold for arms drawn again. Source of the scheme: Jamieson & Talwalkar 2016. Raises ValueError for rules of
    another shape, shares that do not grow within (0, 1], and fewer arms than `entrants` + 1.
    """
    table = table.reset_index(drop=True)
    shares = list(shares)
    if not shares or sorted(set(shares)) != shares or not 0 < shares[0] <= shares[-1] <= 1:
        raise ValueError(f"shares must grow within (0, 1], got {shares}")
    for name, scores in rules.items():
        if np.shape(scores) != (len(shares), len(table)) or not np.isfinite(scores).all():
            raise ValueError(f"rule {name!r}: give finite scores of shape {(len(shares), len(table))} (look, run)")
    arms, runs = _trials(table[arm].to_numpy(), entrants, draws, seed)
    member = np.zeros((draws, arms.max() + 1), dtype=bool)
    np.put_along_axis(member, arms, True, axis=1)
    y, price = table[quality].to_numpy(float)[runs], table[cost].to_numpy(float)[runs]
    lost, paid = {None: y.max(axis=1) - y.mean(axis=1)}, {}
    for name, scores in rules.items():
        kept, spent = _halve(np.asarray(scores)[:, runs], shares)
        lost[name] = y.max(axis=1) - np.take_along_axis(y, kept[:, None], axis=1)[:, 0]
        paid[name] = float(((spent * price).sum(axis=1) / price.sum(axis=1)).mean())
    rows = []
    for name in rules:
        regret, low, high = _jackknife(lost[name], member)
        gain = _jackknife(lost[against] - lost[name], member)
        rows.append((name, regret, max(0.0, low), high, *gain, paid[name]))  # no regret is negative
    return pd.DataFrame(rows, columns=["rule", "regret", "low", "high", "gain", "gain_low", "gain_high", "cost"])


def _trials(arm: np.ndarray, entrants: int, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Arms and one run of each, (draw, entrant), in random order: that of the columns is no information."""
    names, member = np.unique(arm, return_inverse=True)
    if len(names) < entrants + 1:
        raise ValueError(f"{len(names)} arms: trials of {entrants} entrants need {entrants + 1} at least")
    rng = np.random.default_rng(seed)
    arms = rng.random((draws, len(names))).argsort(axis=1)[:, :entrants]
    order, counts = np.argsort(member, kind="stable"), np.bincount(member)
    begin = np.cumsum(counts) - counts
    return arms, order[begin[arms] + rng.integers(counts[arms])]


def _halve(scores: np.ndarray, shares: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Who is left of each trial, (draw,), and what share of its steps each entrant got, (draw, entrant).

    scores: (look, draw, entrant).
    """
    alive = np.ones(scores.shape[1:], dtype=bool)
    spent = np.full(alive.shape, shares[0], dtype=float)
    for look, each in enumerate(scores):
        last = look == len(shares) - 1
        left = 1 if last else ceil(alive[0].sum() / 2)
        order = np.argsort(-np.where(alive, each, -np.inf), axis=1, kind="stable")[:, :left]
        alive = np.zeros_like(alive)
        np.put_along_axis(alive, order, True, axis=1)
        spent[alive] = 1.0 if last else shares[look + 1]
    return alive.argmax(axis=1), spent


def _jackknife(values: np.ndarray, member: np.ndarray) -> tuple[float, float, float]:
    """Mean over trials with an interval over arms: those without an arm are what its absence would have given."""
    n = member.shape[1]
    without = (values.sum() - values @ member) / (len(member) - member.sum(axis=0))
    error = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * error
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)
