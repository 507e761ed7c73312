"""Planning a run: laws fitted to records, a budget, and the width and the number of steps that they say to train.

The law is 1 - Q = E + A / K^alpha + B / D^beta, the joint form of Hoffmann et al. (2022, approach 3), of width K and the
clips heard D, where a clip that was heard before counts for less (Muennighoff et al. 2023, eq. 5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import stats

from rankscale import early, laws
from rankscale.arms import in_reach, moved, sweep_table
from rankscale.axes import CENTRE
from rankscale.budget import budget
from rankscale.config import RunConfig
from rankscale.laws.uncertainty import draw_weights, refit
from rankscale.pretrain import trunk_hash
from rankscale.records import RunRecord
from rankscale.verdict import best_rates

QUALITY = "q_linear_synthetic"
LEVEL = 0.9
DRAWS = 500
PLANNED = {"width", "steps", "clips", "lr"}  # what a run may differ in from the centre to be fitted
REPEATS = tuple(np.geomspace(1, 1000, 13))  # values of R* that are tried
WIDTHS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536)
FEWEST_STEPS = 250  # in the records: below, a run is in its warm-up
WATCHED = 0.1  # share of the steps after which RankMe is to be looked at


def effective(heard: np.ndarray, unique: np.ndarray, repeats: float) -> np.ndarray:
    """What clips are worth that were heard more than once, in clips heard once (Muennighoff et al. 2023, eq. 5).

    heard, unique: numbers of clips. repeats: R*, after how many repetitions a clip has little more to give.
    """
    unique = np.minimum(heard, unique)
    return unique * (1 + repeats * -np.expm1(-(heard / unique - 1) / repeats))


# --- what is fitted ---------------------------------------------------------------------------------------


def planning_runs(
    records: Iterable[RunRecord], quality: str = QUALITY, centre: RunConfig = CENTRE, without: Iterable[str] = ()
) -> tuple[pd.DataFrame, dict[int, float]]:
    """Runs that a plan is fitted to, one row each, and the learning rate of each width.

    They differ from the centre in width, steps, unique clips and the rate alone, and of every width only those at the
    rate count that had the best quality at the centre's length. without: arms (`arms.arm_of`) that are left out.
    Columns of `arms.sweep_table`, and heard (clips, with repeats), trunk, shape (what runs of other seeds share).
    Raises ValueError where a width's rates share no seed.
    """
    kept = [each for each in records if in_reach(each.config, centre) and moved(each.config, centre).keys() <= PLANNED]
    table = sweep_table(kept, centre, frozenset(without))
    by_hash = {each.hash: each.config for each in kept}
    rates = {
        width: max(best)
        for width, best in best_rates(table.assign(short=1 - table[quality]), centre, of="short").items()
    }
    table = table[table["lr"] == table["width"].map(rates)].dropna(subset=[quality]).reset_index(drop=True)
    configs = [by_hash[each] for each in table["hash"]]
    return table.assign(
        heard=table["steps"] * table["batch"],
        trunk=[trunk_hash(config) for config in configs],
        shape=[trunk_hash(config.replace(seed=0)) for config in configs],
    ), rates


@dataclass(frozen=True, eq=False)
class QualityLaw:
    """1 - Q over width and clips heard, with resamples of the seeds.

    fits: one for each value of R* that was tried; best: the one with the smallest sum of losses. drawn: (draws,
    parameter) working parameters of resamples; of: (draws,) which of `fits` each resample took.
    """

    repeats: tuple[float, ...]
    fits: tuple[laws.Fit, ...]
    best: int
    drawn: np.ndarray
    of: np.ndarray

    @classmethod
    def of_runs(cls, table: pd.DataFrame, quality: str = QUALITY, draws: int = DRAWS, seed: int = 0) -> QualityLaw:
        """Fit it to a table of `planning_runs`. Seeds are resampled; the cells of the design are kept."""
        fits = tuple(laws.fit("joint", _points(table, quality, each), starts=2048) for each in REPEATS)
        best = int(np.argmin([each.objective for each in fits]))
        clusters, strata = [table["trunk"].to_numpy()], table["shape"].to_numpy()
        weights = draw_weights(len(table), clusters, strata, draws, seed)
        near = [i for i in range(len(fits)) if fits[i].objective < 2 * fits[best].objective]
        drawn = {i: refit(fits[i], weights) for i in near}
        losses = np.stack([_losses(fits[i], drawn[i], weights) for i in near], axis=1)
        of = np.array(near)[losses.argmin(axis=1)]
        return cls(REPEATS, fits, best, np.stack([drawn[i][row] for row, i in enumerate(of)]), of)

    @property
    def fit(self) -> laws.Fit:
        return self.fits[self.best]

    def predict(self, width: np.ndarray, heard: np.ndarray, unique: np.ndarray) -> np.ndarray:
        """Q at each point, (n,)."""
        return 1 - self.fit.predict(_x(width, heard, unique, self.repeats[self.best]))

    def draws(self, width: np.ndarray, heard: np.ndarray, unique: np.ndarray, seed: int = 0) -> np.ndarray:
        """Q of new runs as resamples have it, (draw, n): the law's uncertainty, and the scatter of runs about it."""
        found = np.empty((len(self.of), len(np.atleast_1d(width))))
        for i in np.unique(self.of):
            rows = self.of == i
            x = _x(width, heard, unique, self.repeats[i])
            found[rows] = self.fits[i].problem.predict(self.drawn[rows], x)
        residual, free = -self.fit.residuals(), len(self.fit.points) - self.drawn.shape[1] - 1
        scatter = np.random.default_rng(seed).choice(residual * np.sqrt(len(residual) / free), (len(found), 1))
        return 1 - found * np.exp(scatter)


def _points(table: pd.DataFrame, quality: str, repeats: float) -> laws.Points:
    x = _x(table["width"], table["heard"], table["clips"], repeats)
    clusters = [table["trunk"].to_numpy()]
    return laws.points(x, 1 - table[quality], ("width", "clips heard", f"1 - {quality}"), clusters=clusters)


def _x(width: np.ndarray, heard: np.ndarray, unique: np.ndarray, repeats: float) -> np.ndarray:
    width, heard, unique = (np.atleast_1d(np.asarray(each, dtype=float)) for each in (width, heard, unique))
    return np.column_stack([width, effective(heard, unique, repeats)])


def _losses(fit: laws.Fit, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return fit.problem.objective(fit.problem.residuals(theta)[0], weights)
