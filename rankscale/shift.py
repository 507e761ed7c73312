"""Encoders trained on one family of sounds and measured on all: rank here, quality there, and shares of each.

The runs are those of data/sweeps/shift.yaml: they differ from a centre in their synthetic corpus and the seed alone.
Ranks are corrected for their number of clips (`spectra.rankme_corrected`), since recordings are fewer.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from rankscale.axes import CENTRE, LEVEL, LIVE, same_but, scores_table
from rankscale.config import FAMILIES, RunConfig, family_of, is_synthetic
from rankscale.records import RunRecord, moments_path
from rankscale.spectra import SpectrumAccumulator, SpectrumWarning, mixture, rankme

MIXTURE, RECORDINGS, EVEN = "mixture", "recordings", "even"
EVEN_SHARES = (1 / 3, 1 / 3, 1 / 3)
ROUNDING = 1e-9  # differences below are zeros
ON = (*(f"synth:{family}" for family in FAMILIES), "synth")
CENTRES = {
    "small": CENTRE.replace(clips=16_384, rank_on=(*ON, "real_audio")),  # fewer clips than the centre: data/PLAN.md
    "live": LIVE.replace(rank_on=ON, tasks=("synth:vowel_order", "synth:pitch", "synth:event_rate")),
}
# The family of the sounds that a task is made of (data/PLAN.md); of the other synthetic tasks none, or several.
FAMILY_OF_TASK = {
    "speech": ("word", "speaker", "vowel_order", "noise_level", "fsdd_digit", "fsdd_speaker"),
    "music": ("instrument", "pitch", "contour", "notes_instrument", "notes_pitchclass"),
    "environment": ("environment", "tempo", "rhythm", "event_rate", "esc10"),
}
_FAMILY = {task: family for family, tasks in FAMILY_OF_TASK.items() for task in tasks}


def name_of(entry: str) -> str:
    """What an entry of `corpus` or `rank_on` is called in figures: a family, "mixture" or "recordings"."""
    return (family_of(entry) or MIXTURE) if is_synthetic(entry) else RECORDINGS


def shift_runs(
    records: Iterable[RunRecord], centre: RunConfig = CENTRES["small"], steps: bool = True
) -> list[RunRecord]:
    """The finished runs that differ from the centre in their synthetic corpus and the seed, in the families' order.

    Only seeds that all four corpora have, so that no corpus is compared by other luck than the rest.
    steps: False for the untrained encoders of these runs. Raises ValueError where there are fewer than two such seeds.
    """
    centre = centre if steps else centre.untrained()
    found = [
        each
        for each in records
        if each.status == "ok" and len(each.config.corpus) == 1 and is_synthetic(each.config.corpus[0])
        and same_but(each.config, centre, ("corpus",))
    ]  # fmt: skip
    seeds = [{each.config.seed for each in found if each.config.corpus == (entry,)} for entry in ON]
    shared = set.intersection(*seeds)
    if len(shared) < 2:
        raise ValueError(
            f"fewer than two seeds have a finished run of {centre.encoder}, {centre.steps} steps, of each corpus "
            f"({', '.join(ON)}), measured on {', '.join(centre.rank_on)}: make them with "
            "rankscale sweep data/sweeps/shift.yaml --publish"
        )
    kept = [each for each in found if each.config.seed in shared]
    return sorted(kept, key=lambda each: (ON.index(each.config.corpus[0]), each.config.seed))


def ranks_table(records: Iterable[RunRecord]) -> pd.DataFrame:
    """One row for each run and audio: hash, seed, trained, measured, own (whether they are the same), n_clip, rankme
    (corrected for n_clip), centred (not corrected) and log_rank, ln rankme.

    Audio with too few clips for a rank is left out.
    """
    rows = []
    for record in records:
        trained = name_of(record.config.corpus[0])
        for entry, rank in record.rank_on.items():
            if rank is not None:
                measured = name_of(entry)
                row = (record.hash, record.config.seed, trained, measured, trained == measured)
                rows.append((*row, rank.n_clip, rank.rankme_corrected, rank.rankme_centred))
    columns = ["hash", "seed", "trained", "measured", "own", "n_clip", "rankme", "centred"]
    return pd.DataFrame(rows, columns=columns).assign(log_rank=lambda table: np.log(table["rankme"].astype(float)))


def quality_table(records: Iterable[RunRecord]) -> pd.DataFrame:
    """One row for each run, probe, suite and family of tasks: hash, seed, trained, probe, suite, family, q, tasks.

    q: mean score of the family's tasks of that suite; tasks: how many they are. Family "all": of every task, those of
    no family too.
    """
    records = list(records)
    trained = {each.hash: name_of(each.config.corpus[0]) for each in records}
    scores = scores_table(records)
    parts = [scores.assign(family=scores["task"].map(_FAMILY)).dropna(subset=["family"]), scores.assign(family="all")]
    keys = ["hash", "seed", "probe", "suite", "family"]
    means = pd.concat(parts).groupby(keys, sort=False)["score"].agg(q="mean", tasks="size").reset_index()
    return means.assign(trained=means["hash"].map(trained))


def both(ranks: pd.DataFrame, quality: pd.DataFrame) -> pd.DataFrame:
    """Every rank beside every quality of the same run: the columns of both tables, and `match`.

    match: whether rank was measured on audio like that of the tasks: on their family (for all synthetic tasks on
    mixtures), and for real tasks on recordings.
    """
    joined = ranks.merge(quality.drop(columns=["seed", "trained"]), on="hash")
    real = joined["suite"] == "real"
    like = joined["family"].mask(joined["family"] == "all", real.map({True: RECORDINGS, False: MIXTURE}))
    return joined.assign(match=(joined["measured"] == like) | (real & (joined["measured"] == RECORDINGS)))


def choices(ranks: pd.DataFrame, quality: pd.DataFrame, probe: str = "linear", column: str = "rankme") -> pd.DataFrame:
    """Choose the corpus with the highest RankMe (mean over seeds) on each audio: what it costs on each family of tasks.

    column: "rankme", or "centred" to choose by that. One row for each audio, suite and family: chosen, best (corpora),
    regret (Q of the best less Q of the chosen), blind (of a corpus drawn at random), match (see `both`). Means of few
    seeds pick a lucky best: regrets are a little large.
    """
    rows = []
    table = both(ranks, quality[quality["probe"] == probe])
    for (suite, family, measured), part in table.groupby(["suite", "family", "measured"], sort=False):
        means = part.groupby("trained", sort=False)[[column, "q"]].mean()
        chosen, best = means[column].idxmax(), means["q"].idxmax()
        lost, blind = means["q"].max() - means["q"][chosen], means["q"].max() - means["q"].mean()
        rows.append((suite, family, measured, chosen, best, lost, blind, bool(part["match"].iloc[0])))
    columns = ["suite", "family", "measured", "chosen", "best", "regret", "blind", "match"]
    return pd.DataFrame(rows, columns=columns)


def family_regrets(ranks: pd.DataFrame, quality: pd.DataFrame, column: str = "rankme") -> pd.DataFrame:
    """Regrets (`choices`) by family of tasks, for each way to take one run of each corpus (`one_of_each`).

    One row a set (its number), suite and family: mean regret on audio `like` that of the tasks, on `foreign` audio, of
    a `blind` choice, and two differences. "all" is left out, since its tasks are counted already.
    """
    sets = {}
    for number, hashes in enumerate(one_of_each(ranks)):
        table = choices(ranks[ranks["hash"].isin(hashes)], quality, column=column).query("family != 'all'")
        kind = table["match"].map({True: "like", False: "foreign"})
        each = table.groupby(["suite", "family", kind], sort=False)["regret"].mean().unstack().rename_axis(columns=None)
        sets[number] = each.assign(blind=table.groupby(["suite", "family"])["blind"].first())
    found = pd.concat(sets, names=["set"])[["like", "foreign", "blind"]]
    found["foreign - like"] = found["foreign"] - found["like"]
    found["like - blind"] = found["like"] - found["blind"]
    return found


def over_families(regrets: pd.DataFrame) -> pd.DataFrame:
    """Means of `family_regrets`, every family of a suite counting once: mean, low, high (95 % t interval over families
    of tasks), least, most (range over sets of runs).

    The families of two suites share encoders and partly audio, so that the interval is, if anything, too narrow.
    """
    families, sets = regrets.groupby(["suite", "family"]).mean(), regrets.groupby("set").mean()
    half = stats.t.ppf((1 + LEVEL) / 2, len(families) - 1) * families.sem()
    ends = {"low": families.mean() - half, "high": families.mean() + half, "least": sets.min(), "most": sets.max()}
    return pd.DataFrame({"mean": families.mean(), **ends})


# --- how sure: seeds, and the signs that were expected ----------------------------------------------------


def one_of_each(runs: pd.DataFrame) -> list[set[str]]:
    """Every way to take one run of each corpus, as sets of hashes: 2 ** 4 with two seeds of four corpora.

    runs: columns hash and trained. What is read off four encoders can be read off each set; its range over the sets
    says how much hangs on luck. It is not an interval of known level.
    """
    groups = runs.groupby("trained", sort=False)["hash"].unique()
    return [set(each) for each in product(*groups)]


def sum_over_corpora(values: pd.Series, trained: pd.Index) -> tuple[float, float, float]:
    """The sum over corpora of the mean over their runs, and the ends of its 95 % interval by Welch's t.

    values: one number a run, of which every corpus has two or more. Each corpus has a spread over seeds of its own; the
    degrees of freedom are Welch and Satterthwaite's. The interval is about other seeds of the same corpora and sounds.
    """
    groups = values.groupby(np.asarray(trained))
    of_mean, counts = groups.var() / groups.size(), groups.size()
    total, variance = groups.mean().sum(), of_mean.sum()
    if variance == 0:  # runs that agree to the last digit
        return total, total, total
    df = variance**2 / (of_mean**2 / (counts - 1)).sum()
    half = stats.t.ppf((1 + LEVEL) / 2, df) * np.sqrt(variance)
    return total, total - half, total + half


def split_variance(ranks: pd.DataFrame, column: str = "log_rank") -> pd.Series:
    """Shares of the variance of a column over runs and audio, that sum to 1 (two-way analysis of variance).

    measured on: between kinds of audio; trained on: between corpora; interaction of the two; seed: what is left,
    between runs of one corpus. ranks: every run measured on every audio, as many runs of each corpus.
    """
    y = ranks[column] - ranks[column].mean()
    audio, corpus = y.groupby(ranks["measured"]).transform("mean"), y.groupby(ranks["trained"]).transform("mean")
    cell = y.groupby([ranks["trained"], ranks["measured"]]).transform("mean")
    parts = {"measured on": audio, "trained on": corpus, "interaction": cell - audio - corpus, "seed": y - cell}
    return pd.Series({name: part @ part for name, part in parts.items()}) / (y @ y)


Pairs = list[tuple[tuple[str, str], tuple[str, str]]]  # of (trained, across): the second is taken from the first


def expected_signs(
    ranks: pd.DataFrame, quality: pd.DataFrame, mixed: pd.DataFrame, column: str = "rankme"
) -> pd.DataFrame:
    """What data/PLAN.md expected of the shift, line by line, and what was found (linear probe).

    mixed: one row a run and mixture: hash, trained, the shares of the families, and the column; of it the corners and
    the even mixture are used. column: "rankme", or "centred", of which the plan says nothing. One row a question (one
    for each suite where Q is asked for): question, unit, expected (+ or -), found, low, high, by ("seeds": 95 %
    interval of `sum_over_corpora`; "families": of `over_families`; "range": over `one_of_each`), so (comparisons that
    have the sign expected: of means over seeds, families of tasks, or sets of runs), of (how many there are), answer.
    """
    on_audio = ranks.rename(columns={"measured": "across"}).assign(value=lambda t: np.log(t[column].astype(float)))
    on_tasks = quality[quality["probe"] == "linear"].rename(columns={"family": "across", "q": "value"})
    corner = {tuple(float(each == family) for each in FAMILIES): family for family in FAMILIES} | {EVEN_SHARES: EVEN}
    places = [corner.get(tuple(shares)) for shares in mixed[list(FAMILIES)].to_numpy()]
    on_shares = mixed.assign(across=places, value=np.log(mixed[column])).dropna(subset="across")

    own: Pairs = [((a, a), (b, a)) for a in FAMILIES for b in FAMILIES if a != b]
    rich: Pairs = [((a, MIXTURE), (a, b)) for a in (*FAMILIES, MIXTURE) for b in FAMILIES]
    tilted: Pairs = [((a, b), (a, EVEN)) for a in (*FAMILIES, MIXTURE) for b in FAMILIES]
    every: Pairs = [((MIXTURE, "all"), (a, "all")) for a in FAMILIES]
    log, share = "ln RankMe", "share of variance"
    rows = [
        ("RankMe on family A: trained on A against another", log, "+", *_contrast(on_audio, own)),
        ("what moves RankMe: the audio against the corpus", share, "+", *_range(on_audio, _audio_less_corpus)),
        ("RankMe on mixtures against one family, same encoder", log, "+", *_contrast(on_audio, rich)),
    ]
    for suite, part in on_tasks.groupby("suite", sort=False):
        question = f"Q on {suite} tasks of family A: trained on A against another"
        rows.append((question, "Q", "+", *_contrast(part, own)))
        question = f"Q over all {suite} tasks: trained on mixtures against one family"
        rows.append((question, "Q", "+", *_contrast(part, every)))

    rows += [
        (
            "regret of choosing by RankMe: wrong audio against the tasks'",
            "Q",
            "+",
            *_more_regret(ranks, quality, column),
        ),
        ("RankMe as one family's share goes from even to all", log, "-", *_contrast(on_shares, tilted, -1)),
    ]
    table = pd.DataFrame(rows, columns=["question", "unit", "expected", "found", "low", "high", "by", "so", "of"])
    sign = (table["low"] > ROUNDING).astype(int) - (table["high"] < -ROUNDING).astype(int)
    toward = sign * table["expected"].map({"+": 1, "-": -1})
    return table.assign(answer=toward.map({1: "as expected", 0: "open", -1: "the reverse"}))


def _contrast(table: pd.DataFrame, pairs: Pairs, sign: int = 1) -> tuple[float, float, float, str, int, int]:
    """Mean difference of `value` over pairs of cells, its interval over seeds, and how many pairs have that sign."""
    weights: Counter = Counter()
    for first, second in pairs:
        weights[first] += 1 / len(pairs)
        weights[second] -= 1 / len(pairs)
    keys = zip(table["trained"], table["across"], strict=True)
    runs = (table["value"] * [weights[key] for key in keys]).groupby([table["trained"], table["hash"]]).sum()
    means = table.groupby(["trained", "across"])["value"].mean()
    so = sum(sign * (means[first] - means[second]) > 0 for first, second in pairs)
    return *sum_over_corpora(runs, runs.index.get_level_values("trained")), "seeds", int(so), len(pairs)


def _range(table: pd.DataFrame, measure: Callable) -> tuple[float, float, float, str, int, int]:
    """Mean and range of a measure over the ways to take one run of each corpus, and how many of them are above 0."""
    each = [measure(table[table["hash"].isin(chosen)]) for chosen in one_of_each(table)]
    return float(np.mean(each)), min(each), max(each), "range", sum(value > ROUNDING for value in each), len(each)


def _more_regret(ranks, quality, column) -> tuple[float, float, float, str, int, int]:
    """Regret on foreign audio less that on audio like the tasks', its interval over families, and in how many it is."""
    regrets = family_regrets(ranks, quality, column)
    each = regrets.groupby(["suite", "family"])["foreign - like"].mean()
    mean, low, high = over_families(regrets).loc["foreign - like", ["mean", "low", "high"]]
    return mean, low, high, "families", int((each > ROUNDING).sum()), len(each)


def _audio_less_corpus(table: pd.DataFrame) -> float:
    parts = split_variance(table.rename(columns={"across": "measured"}), "value")
    return parts["measured on"] - parts["trained on"]


# --- shares of families among the clips that are measured -------------------------------------------------


def family_moments(record: RunRecord, folder: Path) -> dict[str, SpectrumAccumulator]:
    """Moments of a run's embeddings of each family alone, by family. Raises ValueError where a file is not there."""
    return {
        family: SpectrumAccumulator.load(moments_path(folder, record.config, f"synth:{family}")) for family in FAMILIES
    }


def mean_shares(records: Iterable[RunRecord], folder: Path) -> pd.DataFrame:
    """One row for each run and audio: hash, measured, and mean_share, the share of the mean embedding, squared, in the
    mean square of the embeddings: 0 (no common part) to 1 (all clips alike).

    Raises ValueError where a file of moments is not there.
    """
    rows = []
    for record in records:
        for entry, rank in record.rank_on.items():
            if rank is not None:
                moments = SpectrumAccumulator.load(moments_path(folder, record.config, entry))
                rows.append((record.hash, name_of(entry), _mean_share(*_spectra(moments))))
    return pd.DataFrame(rows, columns=["hash", "measured", "mean_share"])


def _spectra(moments: SpectrumAccumulator) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values, raw and centred."""
    with warnings.catch_warnings():  # the direction that the last layer norm leaves empty counts as 0, as it should
        warnings.simplefilter("ignore", SpectrumWarning)
        return moments.spectrum(), moments.spectrum(center=True)


def _mean_share(raw: torch.Tensor, centred: torch.Tensor) -> float:
    return 1 - float(centred.square().sum() / raw.square().sum())


def mixed_ranks(
    moments: Mapping[str, SpectrumAccumulator], shares: Iterable[Sequence[float]], eps: float = 1e-7
) -> pd.DataFrame:
    """RankMe of the families' clips mixed in each of `shares` (one number a family, in the order of `moments`).

    One row a mixture: a column for each family's share, rankme, centred (RankMe of the centred embeddings), and
    between, the share of the centred variance that lies between the families' means. Not corrected for the number of
    clips.
    Raises ValueError as `spectra.mixture` does.
    """
    means = torch.stack([each.mean for each in moments.values()])
    rows = []
    for each in shares:
        mixed = mixture(list(moments.values()), each)
        raw, centred = _spectra(mixed)
        between = (
            mixed.rows
            * (torch.tensor(each, dtype=torch.float64) @ (means - mixed.mean).square()).sum()
            / centred.square().sum()
        )
        rows.append((*each, rankme(raw, eps), rankme(centred, eps), float(between)))
    return pd.DataFrame(rows, columns=[*moments, "rankme", "centred", "between"])


def triangle(parts: int = 10) -> list[tuple[float, float, float]]:
    """All shares of three families in steps of 1 / parts, each summing to 1."""
    return [(i / parts, j / parts, (parts - i - j) / parts) for i in range(parts + 1) for j in range(parts + 1 - i)]


def towards(family: str, parts: int = 20) -> list[tuple[float, ...]]:
    """Shares that go from none of a family to nothing else; the others share the rest evenly."""
    rest = len(FAMILIES) - 1
    return [
        tuple(k / parts if name == family else (1 - k / parts) / rest for name in FAMILIES) for k in range(parts + 1)
    ]
