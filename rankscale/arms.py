"""All runs of a sweep side by side: where each lies, which of them are matched, and what choosing among them costs.

An arm is a configuration whatever its seed. Arms are matched where width and training compute are equal: what is left
between them is neither the number of dimensions nor the money. Intervals are percentiles over resampled seeds; the
arms themselves are fixed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from rankscale.axes import (
    AXES,
    CENTRE,
    DRAWS,
    LEVEL,
    Study,
    equal_compute,
    follow_word,
    pooled_sd,
    same_but,
    study,
    value_of,
)
from rankscale.config import RunConfig
from rankscale.records import RunRecord, runs_table
from rankscale.sweep import plan, read_spec

MIDDLE, SEVERAL = "centre", "several"  # of a run that moves along no axis, along more than one
# How an arm may be chosen without labels: column of the table of runs, and whether more (+1) or less (-1) of it wins.
RULES = {
    "highest RankMe": ("log_rank", +1),
    "widest": ("width", +1),
    "lowest held-out loss": ("heldout_loss", -1),
    "at random": (None, 0),
}


def held_back(folder: Path, block: str = "test") -> frozenset[str]:
    """Arms in the block of that name of any sweep's file (`*.yaml`) in a folder: those that no fit may use."""
    planned = [each for path in sorted(folder.glob("*.yaml")) for each in plan(read_spec(path))]
    return frozenset(arm_of(each.config) for each in planned if block in each.blocks and each.config.steps)


def arm_of(config: RunConfig) -> str:
    """What runs share that differ only in their seed."""
    return config.replace(seed=0, attempt=0).hash


def moved(config: RunConfig, centre: RunConfig = CENTRE) -> dict[str, float]:
    """The axes along which a run differs from the centre, and where on them it lies."""
    return {
        name: value_of(axis, config) for name, axis in AXES.items() if value_of(axis, config) != value_of(axis, centre)
    }


def label_of(config: RunConfig, centre: RunConfig = CENTRE) -> str:
    """An arm in words: "width 128, depth 1", or "centre"."""
    return ", ".join(f"{name} {value:g}" for name, value in moved(config, centre).items()) or MIDDLE


def in_reach(config: RunConfig, centre: RunConfig = CENTRE) -> bool:
    """Whether a run is trained and differs from the centre in nothing but axes and the seed."""
    return config.steps > 0 and same_but(config, centre, (name for axis in AXES.values() for name in axis.fields))


def sweep_table(
    records: Iterable[RunRecord], centre: RunConfig = CENTRE, without: Collection[str] = frozenset()
) -> pd.DataFrame:
    """Every finished run in reach of the centre: `records.runs_table` with columns axis, arm, label and log_rank.

    axis: the one along which it moved, or "centre", or "several"; arm: the same for all seeds; label: the arm in words;
    log_rank: ln of RankMe corrected for its number of clips, whose luck does not grow with its size.
    without: arms that are left out (`held_back`). Raises ValueError where nothing is left.
    """
    chosen = [
        each
        for each in records
        if each.status == "ok" and in_reach(each.config, centre) and arm_of(each.config) not in without
    ]
    if not chosen:
        raise ValueError("no finished run differs from the centre in nothing but axes and the seed")
    places = [moved(each.config, centre) for each in chosen]
    return runs_table(chosen).assign(
        log_rank=lambda table: np.log(table["rankme_corrected"].astype(float)),
        arm=[arm_of(each.config) for each in chosen],
        axis=[next(iter(place)) if len(place) == 1 else SEVERAL if place else MIDDLE for place in places],
        label=[label_of(each.config, centre) for each in chosen],
    )


def studies(records: Iterable[RunRecord], centre: RunConfig = CENTRE) -> dict[str, Study]:
    """Every axis along which at least two values have a finished run, by name."""
    records = list(records)
    reached = [each.config for each in records if each.status == "ok" and in_reach(each.config, centre)]
    found = {}
    for name, axis in AXES.items():
        along = {value_of(axis, config) for config in reached if moved(config, centre).keys() <= {name}}
        if len(along) > 1:
            found[name] = study(name, records, centre)
    return found


# What a run has of a kind and not of a size: the fields of a `RunConfig` that make it up, and whether it is chosen when
# the encoder is built, or when a finished one is read.
BUILT, READ = "built", "read"
PARTS = {
    "heads": (("heads",), BUILT),
    "MLP ratio": (("mlp_ratio",), BUILT),
    "decoder": (("decoder_width", "decoder_depth"), BUILT),
    "pooling": (("pool",), READ),
    "layer": (("layer",), READ),
}


def kinds_of(config: RunConfig) -> dict[str, str]:
    """The kind that a run has of each of `PARTS`, in words."""
    return {
        "heads": f"heads {config.n_heads}",
        "MLP ratio": f"MLP ratio {config.mlp_ratio:g}",
        "decoder": f"decoder {config.decoder_width} x {config.decoder_depth}",
        "pooling": {"mean": "mean", "meanstd": "mean and SD"}[config.pool],
        "layer": f"block {config.layer}" if config.layer else "last layer",
    }


def changed_part(config: RunConfig, centre: RunConfig = CENTRE) -> str | None:
    """Which of `PARTS` a run has of another kind than the centre, all else equal; "centre" for one of its own seeds."""
    if same_but(config, centre, ()):
        return MIDDLE
    parts = [name for name, (fields, _) in PARTS.items() if same_but(config, centre, fields)]
    return next((name for name in parts if kinds_of(config)[name] != kinds_of(centre)[name]), None)


def variants(records: Iterable[RunRecord], centre: RunConfig = CENTRE) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Finished runs that differ from the centre in one of `PARTS` and the seed, and their untrained encoders.

    Both with the centre's own runs first, and row by row: `records.runs_table` with columns part (or "centre"), stage
    ("built", "read" or "centre"), label (the kind in words), arm and log_rank (as in `sweep_table`).
    Raises ValueError where the centre or every other kind has no finished run, or an untrained encoder is missing.
    """
    by_hash = {each.hash: each for each in records}
    found = [(changed_part(each.config, centre), each) for each in by_hash.values() if each.status == "ok"]
    order = [MIDDLE, *PARTS]
    found = sorted(
        ((part, each) for part, each in found if part),
        key=lambda f: (
            order.index(f[0]),
            [getattr(f[1].config, n) or 0 for n in PARTS.get(f[0], ((),))[0]],
            f[1].config.seed,
        ),
    )
    if len({part == MIDDLE for part, _ in found}) < 2:
        raise ValueError("variants need finished runs of the centre and of a run that differs from it in one part")
    missing = [each.hash for _, each in found if each.config.untrained().hash not in by_hash]
    if missing:
        raise ValueError(f"run {missing[0]} is there without its untrained encoder")
    trained = [each for _, each in found]
    places = {
        "part": [part for part, _ in found],
        "stage": [PARTS[part][1] if part in PARTS else MIDDLE for part, _ in found],
        "label": [kinds_of(each.config)[part] if part in PARTS else MIDDLE for part, each in found],
        "arm": [arm_of(each.config) for each in trained],
    }
    tables = (runs_table(each) for each in (trained, [by_hash[r.config.untrained().hash] for r in trained]))
    with_rank = (each.assign(log_rank=np.log(each["rankme_corrected"].astype(float)), **places) for each in tables)
    return tuple(with_rank)


def less_base(table: pd.DataFrame, columns: Sequence[str], base: str = MIDDLE, arm: str = "label") -> pd.DataFrame:
    """Runs of the other arms, each column less that of the base's run of the same seed; without such a run none."""
    of_base = table[table[arm] == base].groupby("seed")[list(columns)].mean()
    others = table[(table[arm] != base) & table["seed"].isin(of_base.index)]
    return others.assign(
        **{name: others[name].to_numpy() - of_base.loc[others["seed"], name].to_numpy() for name in columns}
    )


def paired(table: pd.DataFrame, column: str, base: str = MIDDLE, arm: str = "label") -> pd.DataFrame:
    """Each arm against the base, seed by seed: a row an arm, in the table's order; pairs, difference (mean), low, high.

    Runs of one seed share more than chance would give them, such as the order of the data. What they share cancels in
    a difference; what is left of the noise is the residual of a fit of arms plus seeds, a design in randomised blocks,
    and makes the t intervals at 95 %. They are NaN where no two arms have two seeds in common.
    """
    table = table.dropna(subset=[column])
    values, both = table[column].to_numpy(float), pd.get_dummies(table[[arm, "seed"]].astype(str), dtype=float)
    fitted, _, rank, _ = np.linalg.lstsq(both.to_numpy(), values, rcond=None)
    df = len(values) - rank
    sd = np.sqrt(((values - both.to_numpy() @ fitted) ** 2).sum() / df) if df else np.nan
    apart = less_base(table, [column], base, arm).groupby(arm, sort=False)[column].agg(pairs="size", difference="mean")
    half = stats.t.ppf((1 + LEVEL) / 2, df) * sd * np.sqrt(2 / apart["pairs"]) if df else np.nan
    return apart.assign(low=apart["difference"] - half, high=apart["difference"] + half).reset_index()


def against_centre(table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """`paired` for every one of `columns` (column: its name in `measure`) over a table of `variants`.

    What is built otherwise and what is read otherwise have their own noise: readings share an encoder, with its luck.
    """
    stages = [table["stage"].isin([stage, MIDDLE]) for stage in (BUILT, READ) if (table["stage"] == stage).any()]
    parts = [paired(table[rows], column).assign(measure=name) for column, name in columns.items() for rows in stages]
    return pd.concat(parts, ignore_index=True)


def matched_groups(table: pd.DataFrame, factor: float = 1.25) -> pd.Series:
    """Runs of equal width whose training compute lies within a factor: the name of its group for every row."""
    return "width " + table["width"].astype(str) + ", group " + equal_compute(table, factor).astype(str)


def drawn_means(
    table: pd.DataFrame, columns: Sequence[str], arm: str = "arm", draws: int = DRAWS, seed: int = 0
) -> tuple[pd.Index, np.ndarray]:
    """Means over the seeds of each arm, and over seeds drawn again: arms, and (1 + draws, column, arm).

    The first row holds the means themselves. An arm with one run borrows the luck of the others: it gets the deviation
    of one of their runs from its arm's mean, scaled up as far as a mean of few seeds follows them. Where no arm has two
    seeds there is no luck to be seen, and no other row.
    """
    table = table.dropna(subset=list(columns)).reset_index(drop=True)
    rows = {name: each.to_numpy() for name, each in table.groupby(arm).groups.items()}
    values = table[list(columns)].to_numpy(float).T
    luck = [
        (values[:, own] - values[:, own].mean(axis=1, keepdims=True)) * np.sqrt(len(own) / (len(own) - 1))
        for own in rows.values()
        if len(own) > 1
    ]
    draws, rng = draws if luck else 0, np.random.default_rng(seed)
    means = []
    for own in rows.values():
        drawn = values[:, rng.choice(own, (draws, len(own)))].mean(axis=2)
        if luck and len(own) == 1:
            drawn = drawn + rng.choice(np.hstack(luck), draws, axis=1)
        means.append(np.hstack([values[:, own].mean(axis=1)[:, None], drawn]))
    return pd.Index(rows), np.stack(means, axis=2).swapaxes(0, 1)


def estimate(drawn: Sequence[float] | pd.Series) -> tuple[float, float, float]:
    """A statistic that stands first among its draws, with their 95 % percentiles; NaN where it has no others."""
    drawn = np.asarray(drawn, dtype=float)
    if len(drawn) < 2 or np.isnan(drawn[1:]).all():
        return float(drawn[0]), float("nan"), float("nan")
    low, high = np.nanpercentile(drawn[1:], [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return float(drawn[0]), float(low), float(high)


def draw_again(rows: int, n: int, seed: int) -> np.ndarray:
    """Which of n arms each row takes, (row, n): the first row all of them once, the others with replacement."""
    chosen = np.random.default_rng((seed, 1)).integers(n, size=(rows, n))  # not the stream of `drawn_means`
    chosen[0] = np.arange(n)
    return chosen


def standardised_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks within each row, (row, arm), with mean 0 and standard deviation 1; NaN where nothing varies."""
    ranks = stats.rankdata(values, axis=1)
    with np.errstate(invalid="ignore"):
        return (ranks - ranks.mean(axis=1, keepdims=True)) / ranks.std(axis=1, keepdims=True)


def rank_correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray | None = None) -> np.ndarray:
    """Spearman's correlation of each row of `standardised_ranks`, (row, arm); given: what is taken out of both."""
    xy = (x * y).mean(axis=1)
    if given is None:
        return xy
    xz, yz = (x * given).mean(axis=1), (y * given).mean(axis=1)
    return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))


# --- does a number rank arms? -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """How well x ranks y over arms, with an interval from the seeds and a p value by permutation within groups.

    estimate: a share of pairs or a correlation; none: its value where x says nothing of y (0.5 or 0).
    p: how often shuffling y within the groups gives an estimate as far from `none`, in either direction.
    """

    estimate: float
    low: float
    high: float
    p: float
    n: int
    none: float

    @property
    def sign(self) -> int:
        """+1 or -1 where the interval excludes chance and the permutations do too, else 0."""
        if not self.p < 1 - LEVEL:
            return 0
        return int(self.low > self.none) - int(self.high < self.none)

    @property
    def word(self) -> str:
        return follow_word(self.sign, self.low)


def pair_agreement(
    table: pd.DataFrame, x: str, y: str, group: str, arm: str = "arm", draws: int = DRAWS, seed: int = 0
) -> Ranking:
    """Of all pairs of arms in one group, the share in which the arm with more x has more y; 0.5 is chance.

    x and y are means over seeds. Raises ValueError where no group has two arms.
    """
    arms, means = drawn_means(table, [x, y], arm, draws, seed)
    groups = _groups_of(arms, table, group, arm)
    pairs = np.array([pair for own in groups for pair in combinations(own, 2)]).reshape(-1, 2)
    if not len(pairs):
        raise ValueError(f"no two arms share a {group}: there is nothing to compare")
    shuffled = _shuffle(means[:1, 1], groups, draws, seed)
    found = _concordance(means[:, 0], means[:, 1], pairs)
    chance = _concordance(means[:1, 0], shuffled, pairs)
    return Ranking(*estimate(found), _p_value(found[0] - 0.5, chance - 0.5), len(pairs), 0.5)


def partial_spearman(
    table: pd.DataFrame, x: str, y: str, given: str, arm: str = "arm", draws: int = DRAWS, seed: int = 0
) -> Ranking:
    """Spearman's correlation of x and y over arms, with what both owe to `given` taken out; 0 is chance.

    The p value shuffles y among arms of equal `given`. Raises ValueError where `given` has one value only.
    """
    arms, means = drawn_means(table, [x, y, given], arm, draws, seed)
    if len(np.unique(means[0, 2])) < 2:
        raise ValueError(f"{given} is the same in all {len(arms)} arms: nothing to take out")
    groups = _groups_of(arms, table, given, arm)
    shuffled = _shuffle(means[:1, 1], groups, draws, seed)
    found = rank_correlation(*(standardised_ranks(each) for each in means.swapaxes(0, 1)))
    chance = rank_correlation(*(standardised_ranks(each) for each in (means[:1, 0], shuffled, means[:1, 2])))
    return Ranking(*estimate(found), _p_value(found[0], chance), len(arms), 0.0)


def _groups_of(arms: pd.Index, table: pd.DataFrame, group: str, arm: str) -> list[np.ndarray]:
    """Places in `arms` of those that share a group."""
    of_arm = table.groupby(arm)[group].first()[arms]
    return [np.flatnonzero(of_arm == each) for each in of_arm.unique()]


def _shuffle(values: np.ndarray, groups: Sequence[np.ndarray], draws: int, seed: int) -> np.ndarray:
    """values (1, arm), shuffled within groups: (draws, arm)."""
    shuffled, rng = np.repeat(values, draws, axis=0), np.random.default_rng(seed)
    for own in groups:
        shuffled[:, own] = rng.permuted(shuffled[:, own], axis=1)
    return shuffled


def _concordance(x: np.ndarray, y: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Of each row, (row, arm): the share of pairs in which x and y have the same order; a tie is half."""
    a, b = pairs.T
    return (1 + (np.sign(x[:, a] - x[:, b]) * np.sign(y[:, a] - y[:, b])).mean(axis=1)) / 2


def _p_value(found: float, chance: np.ndarray) -> float:
    """Two-sided; the order that was found counts as one of the shuffles."""
    return float((1 + (np.abs(chance) >= abs(found) - 1e-12).sum()) / (1 + len(chance)))


def resolved_pairs(table: pd.DataFrame, x: str, y: str, group: str, arm: str = "arm") -> pd.DataFrame:
    """All pairs of arms in one group, and whether their differences are larger than seeds make them.

    One row a pair: group, one, other (labels), dx, dy (differences of means), and verdict: "agree" or "disagree" where
    both differences exceed the 95 % t interval of the seeds, pooled over arms; else "x not told apart" or "only x told
    apart". The intervals are those of single pairs: of twenty equal pairs about one is called different.
    """
    table = table.dropna(subset=[x, y])
    noise = {column: _noise(table, column, arm) for column in (x, y)}
    rows = []
    for name, part in table.groupby(group):
        cells = part.groupby(arm).agg(label=("label", "first"), x=(x, "mean"), y=(y, "mean"), n=(x, "size"))
        for one, other in combinations(cells.itertuples(), 2):
            spread = np.sqrt(1 / one.n + 1 / other.n)
            dx, dy = one.x - other.x, one.y - other.y
            told = abs(dx) > noise[x] * spread, abs(dy) > noise[y] * spread
            rows.append((name, one.label, other.label, dx, dy, _verdict(dx * dy, *told)))
    return pd.DataFrame(rows, columns=["group", "one", "other", "dx", "dy", "verdict"])


def _noise(table: pd.DataFrame, column: str, arm: str) -> float:
    """Half the 95 % interval of the difference of two single runs, over sqrt(2); infinite without seeds."""
    sd, df = pooled_sd(table, column, by=arm)
    return float(stats.t.ppf((1 + LEVEL) / 2, df) * sd) if df else float("inf")


def _verdict(product: float, x_told: bool, y_told: bool) -> str:
    if not x_told:
        return "x not told apart"
    if not y_told:
        return "only x told apart"
    return "agree" if product > 0 else "disagree"


# --- what choosing costs ----------------------------------------------------------------------------------


def regret(
    table: pd.DataFrame,
    quality: str,
    group: str,
    rules: Mapping[str, tuple[str | None, int]] = RULES,
    arm: str = "arm",
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """Quality lost by choosing an arm of each group by a rule, against the group's best arm.

    One row for each rule and each group of two arms or more, and one for their mean, group "all": arms, chosen (labels;
    those that tie share), regret, low, high; gain, gain_low, gain_high: how much smaller that is than the regret of a
    blind choice. Rules are as in `RULES`; None is the blind choice, the mean over the group's arms. The best arm is the
    best of noisy means, so regrets are a little too large, and none is negative; gains are free of that.
    Raises ValueError where no group has two arms.
    """
    columns = [quality, *dict.fromkeys(column for column, _ in rules.values() if column)]
    arms, means = drawn_means(table, columns, arm, draws, seed)
    labels = table.groupby(arm)["label"].first()[arms].to_numpy()
    groups = [own for own in _groups_of(arms, table, group, arm) if len(own) > 1]
    if not groups:
        raise ValueError(f"no two arms share a {group}: there is nothing to choose from")
    names = table.groupby(arm)[group].first()[arms].to_numpy()
    blind = [_lost(means[:, 0, own], np.zeros_like(means[:, 0, own])) for own in groups]
    rows = []
    for rule, (column, sign) in rules.items():
        scores = sign * means[:, columns.index(column)] if column else np.zeros_like(means[:, 0])
        lost = [_lost(means[:, 0, own], scores[:, own]) for own in groups]
        for own, each, without in zip(groups, lost, blind, strict=True):
            chosen = labels[own][np.isclose(scores[0, own], scores[0, own].max())] if column else ["any"]
            rows.append((names[own[0]], rule, len(own), " | ".join(chosen), *estimate(each), *estimate(without - each)))
        mean, gain = np.mean(lost, axis=0), np.mean(blind, axis=0) - np.mean(lost, axis=0)
        rows.append(("all", rule, sum(map(len, groups)), "", *estimate(mean), *estimate(gain)))
    columns = ["group", "rule", "arms", "chosen", "regret", "low", "high", "gain", "gain_low", "gain_high"]
    return pd.DataFrame(rows, columns=columns)


def _lost(quality: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Of each row (row, arm): the best quality less that of the arm with the highest score, or of those that tie."""
    wins = np.isclose(score, score.max(axis=1, keepdims=True))
    return quality.max(axis=1) - (quality * wins).sum(axis=1) / wins.sum(axis=1)
