"""Encoders trained on one family of sounds and measured on all: rank here, quality there, and shares of each.

The runs are those of data/sweeps/shift.yaml: they differ from a centre in their synthetic corpus and the seed alone.
Ranks are corrected for their number of clips (`spectra.rankme_corrected`), since recordings are fewer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rankscale.axes import CENTRE, LIVE, same_but, scores_table
from rankscale.config import FAMILIES, RunConfig, family_of, is_synthetic
from rankscale.records import RunRecord, moments_path
from rankscale.spectra import SpectrumAccumulator, SpectrumWarning, mixture, rankme

MIXTURE, RECORDINGS, EVEN = "mixture", "recordings", "even"
ON = (*(f"synth:{family}" for family in FAMILIES), "synth")
CENTRES = {
    "small": CENTRE.replace(rank_on=(*ON, "real_audio")),
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

    steps: False for the untrained encoders of these runs. Raises ValueError where there are fewer than two corpora.
    """
    centre = centre if steps else centre.untrained()
    found = [
        each
        for each in records
        if each.status == "ok" and len(each.config.corpus) == 1 and is_synthetic(each.config.corpus[0])
        and same_but(each.config, centre, ("corpus",))
    ]  # fmt: skip
    if len({each.config.corpus for each in found}) < 2:
        raise ValueError(
            f"fewer than two corpora have a finished run of {centre.encoder}, {centre.steps} steps, measured on "
            f"{', '.join(centre.rank_on)}: make them with rankscale sweep data/sweeps/shift.yaml --publish"
        )
    return sorted(found, key=lambda each: (ON.index(each.config.corpus[0]), each.config.seed))


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


def choices(ranks: pd.DataFrame, quality: pd.DataFrame, probe: str = "linear") -> pd.DataFrame:
    """Choose the corpus with the highest RankMe (mean over seeds) on each audio: what it costs on each family of tasks.

    One row for each audio, suite and family: chosen, best (corpora), regret (Q of the best less Q of the chosen), blind
    (of a corpus drawn at random), match (see `both`). Means of few seeds pick a lucky best: regrets are a little large.
    """
    rows = []
    table = both(ranks, quality[quality["probe"] == probe])
    for (suite, family, measured), part in table.groupby(["suite", "family", "measured"], sort=False):
        means = part.groupby("trained", sort=False)[["rankme", "q"]].mean()
        chosen, best = means["rankme"].idxmax(), means["q"].idxmax()
        lost, blind = means["q"].max() - means["q"][chosen], means["q"].max() - means["q"].mean()
        rows.append((suite, family, measured, chosen, best, lost, blind, bool(part["match"].iloc[0])))
    columns = ["suite", "family", "measured", "chosen", "best", "regret", "blind", "match"]
    return pd.DataFrame(rows, columns=columns)


# --- shares of families among the clips that are measured -------------------------------------------------


def family_moments(record: RunRecord, folder: Path) -> dict[str, SpectrumAccumulator]:
    """Moments of a run's embeddings of each family alone, by family. Raises ValueError where a file is not there."""
    return {
        family: SpectrumAccumulator.load(moments_path(folder, record.config, f"synth:{family}")) for family in FAMILIES
    }


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
        with warnings.catch_warnings():  # the direction that the last layer norm leaves empty counts as 0, as it should
            warnings.simplefilter("ignore", SpectrumWarning)
            raw, centred = mixed.spectrum(), mixed.spectrum(center=True)
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
