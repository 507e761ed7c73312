"""How sure a fit is: bootstraps over what was drawn together, bands, and profiles of a limit.

A resample is a row of weights, so that all of them are fitted at once, each from the optima of the fit itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from rankscale.laws.fit import Fit, descend, noise
from rankscale.laws.forms import LEAST_BEND, Search

Kind = Literal["percentile", "bca"]
Number = Callable[[np.ndarray], np.ndarray]  # of working parameters (draw, parameter) -> (draw,)

DRAWS = 1000
WARM = 3  # optima of the fit that every resample starts from
RESAMPLE_STEPS = 100  # of each descent: what is left is far below the spread of the resamples
CLOSER = 2  # rounds of refining where a profile crosses its bound
SHARED = 3  # rounds of a profile: a value's neighbours may know a better place
PROFILED, FURTHEST = 60, 1e3  # values of a profile beyond either end of the data; the last one, in ranges of y


# --- resampling -------------------------------------------------------------------------------------------


def draw_weights(
    n: int, clusters: Sequence[np.ndarray] = (), strata: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """Bootstrap weights of n points, (draws, n).

    clusters: labels (n,) of what was drawn together, from the widest level to the narrowest. Of m clusters m - 1 are
    drawn with replacement and weighted by m / (m - 1), which makes the variance of a mean right for small m, too (Rao &
    Wu 1988); in a drawn cluster, as many of its parts as it has, and so on down. strata: labels (n,) of what is kept as
    it is, such as the cells of a design: clusters are drawn within each, and the only one of a stratum stays.
    Raises ValueError where nothing can vary.
    """
    rng = np.random.default_rng(seed)
    levels = [np.asarray(labels) for labels in clusters] or [np.arange(n)]
    strata = np.zeros(n) if strata is None else np.asarray(strata)
    weights = np.ones((draws, n))
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        units = len(np.unique(levels[0][rows]))
        if units > 1:
            counts = _draw(rows, levels, np.full(draws, units - 1), rng)
            weights[:, rows] = counts * units / (units - 1)
    if (weights == 1).all():
        raise ValueError("there is nothing to resample: take more clusters, or strata of several")
    return weights


def _draw(rows: np.ndarray, levels: list[np.ndarray], total: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How often each row is drawn when `total` (draws,) clusters of the first level are: (draws, len(rows))."""
    units, member = np.unique(levels[0][rows], return_inverse=True)
    counts = rng.multinomial(total, np.full(len(units), 1 / len(units)))
    if len(levels) == 1:
        return counts[:, member]
    drawn = np.empty((len(total), len(rows)))
    for unit in range(len(units)):
        inside = np.flatnonzero(member == unit)
        parts = len(np.unique(levels[1][rows[inside]]))
        drawn[:, inside] = _draw(rows[inside], levels[1:], counts[:, unit] * parts, rng)
    return drawn


def leave_out(n: int, clusters: Sequence[np.ndarray] = (), strata: np.ndarray | None = None) -> np.ndarray:
    """Jackknife weights, (unit, n): zero for one cluster of the widest level in turn, in strata of several."""
    first = np.asarray(clusters[0]) if clusters else np.arange(n)
    strata = np.zeros(n) if strata is None else np.asarray(strata)
    rows = []
    for stratum in np.unique(strata):
        units = np.unique(first[strata == stratum])
        rows += [~((strata == stratum) & (first == unit)) for unit in units if len(units) > 1]
    return np.array(rows, dtype=np.float64)


def refit(fit: Fit, weights: np.ndarray) -> np.ndarray:
    """Working parameters under other weights, (draw, n) -> (draw, parameter), starting from the optima of the fit."""
    starts = np.array([optimum.theta for optimum in fit.optima[:WARM]])
    many = np.repeat(weights * fit.weights, len(starts), axis=0)
    theta, value = descend(fit.problem, np.tile(starts, (len(weights), 1)), many, *fit.problem.bounds(), RESAMPLE_STEPS)
    best = value.reshape(len(weights), -1).argmin(axis=1)
    return theta.reshape(len(weights), len(starts), -1)[np.arange(len(weights)), best]


# --- bootstrap intervals ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Resampled fits. theta: (draws, parameter), working; left_out: the same with one cluster left out in turn."""

    fit: Fit
    theta: np.ndarray
    left_out: np.ndarray
    seed: int

    def interval(self, of: str | Number, level: float = 0.9, kind: Kind = "percentile") -> tuple[float, float]:
        """Ends of an interval for a natural parameter, by its name, or for any number of the working ones.

        kind: "percentile", or "bca", which corrects for bias and for a spread that depends on the parameter (Efron
        1987).
        """
        number = self._natural(of) if isinstance(of, str) else of
        drawn = number(self.theta)
        tails = np.array([(1 - level) / 2, (1 + level) / 2])
        if kind == "bca":
            tails = _bca_tails(tails, drawn, number(self.fit.theta[None])[0], number(self.left_out))
        low, high = np.quantile(drawn, tails, method="inverted_cdf")  # no mixture of two values: one may be infinite
        return float(low), float(high)

    def _natural(self, name: str) -> Number:
        form, problem = self.fit.form, self.fit.problem
        if name not in form.names:
            raise ValueError(f"{form.name} has no parameter {name!r}; it has {', '.join(form.names)}")

        def number(theta: np.ndarray) -> np.ndarray:
            value = form.natural(theta, problem.frame)[:, form.names.index(name)]
            if name == form.limit and form.pinned:  # without a bend there is no limit
                bend = [bool(search.at_low) for search in form.search(problem.frame)].index(True)
                return np.where(theta[:, bend] <= LEAST_BEND, np.copysign(np.inf, value - problem.frame.size), value)
            return value

        return number

    def table(self, level: float = 0.9, kind: Kind = "percentile") -> dict[str, tuple[float, float]]:
        """The intervals of all natural parameters, by name."""
        return {name: self.interval(name, level, kind) for name in self.fit.form.names}

    def band(self, x: np.ndarray, level: float = 0.9, new: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end at each x, (n,): of the law, or of a `new` measurement there.

        x: (n,) or (n, variable). For a new one the fit's own residuals are added, drawn at random and widened by
        sqrt(n / (n - parameters)): that holds for points that scatter as those of the fit do.
        """
        drawn = self.fit.problem.predict(self.theta, x)
        if new:
            rng = np.random.default_rng(self.seed)
            residual, free = -self.fit.residuals(), len(self.fit.points) - self.theta.shape[1]
            noise = rng.choice(residual * np.sqrt(len(residual) / free), drawn.shape)
            drawn = drawn * np.exp(noise) if self.fit.space == "log" else drawn + noise * self.fit.problem.frame.size
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high


def bootstrap(
    fit: Fit,
    draws: int = DRAWS,
    seed: int = 0,
    clusters: Sequence[np.ndarray] | None = None,
    strata: np.ndarray | None = None,
) -> Bootstrap:
    """Resample what was drawn together and fit again.

    clusters, strata: see `draw_weights`; by default the clusters of the points.
    """
    clusters = fit.points.clusters if clusters is None else clusters
    n = len(fit.points)
    weights = draw_weights(n, clusters, strata, draws, seed)
    return Bootstrap(fit, refit(fit, weights), refit(fit, leave_out(n, clusters, strata)), seed)


def _bca_tails(tails: np.ndarray, drawn: np.ndarray, value: float, left_out: np.ndarray) -> np.ndarray:
    below = (np.sum(drawn < value) + 0.5 * np.sum(drawn == value)) / len(drawn)
    bias = stats.norm.ppf(np.clip(below, 1 / len(drawn), 1 - 1 / len(drawn)))
    away = left_out.mean() - left_out if np.isfinite(left_out).all() else np.zeros(1)
    acceleration = (away**3).sum() / max(6 * (away**2).sum() ** 1.5, 1e-300)
    shifted = bias + stats.norm.ppf(tails)
    return stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))


# --- the profile of a limit -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Profile:
    """How much worse a form fits where its limit is held at other values.

    values: (m,) rising, in units of y. statistic: (m,), F(1, n - parameters) at the true value. low, high: the interval
    of the values that are not refused; infinite where those go on to a thousand ranges of y from the data.
    """

    name: str
    values: np.ndarray
    statistic: np.ndarray
    level: float
    low: float
    high: float

    @property
    def is_bounded(self) -> bool:
        """Whether the data identify the limit."""
        return bool(np.isfinite([self.low, self.high]).all())


def profile(fit: Fit, level: float = 0.9) -> Profile:
    """Profile of a form's limit, such as Q_inf, with its interval at a level.

    Every other parameter is fitted again at each value. The rise of the objective is scaled as `Noise` says, so that it
    needs no likelihood; it takes the points for independent, which checkpoints of one run are not: compare it with a
    cluster bootstrap. Raises ValueError for a form without a limit.
    """
    form, problem = fit.form, fit.problem
    if not form.limit:
        raise ValueError(f"{form.name} has no limit to profile")
    scatter = noise(problem, fit.theta, fit.weights)
    most = float(stats.f.ppf(level, 1, scatter.free))
    values = _profile_values(fit)
    rise = _rises(fit, values)
    for _ in range(CLOSER):  # once more where it crosses
        kept = np.flatnonzero(rise - rise.min() <= most * scatter.spread / (2 * scatter.slope))
        ends = values[[max(kept[0] - 1, 0), kept[0]]], values[[kept[-1], min(kept[-1] + 1, len(values) - 1)]]
        between = np.concatenate([np.linspace(*end, PROFILED // 4)[1:-1] for end in ends])
        values, order = np.unique(np.concatenate([values, between]), return_index=True)
        rise = np.concatenate([rise, _rises(fit, between)])[order]
    statistic = (rise - min(rise.min(), fit.objective / problem.unit)) * 2 * scatter.slope / scatter.spread
    return Profile(form.limit, values, statistic, level, *_inside(values, statistic, most))


def _rises(fit: Fit, values: np.ndarray) -> np.ndarray:
    """The objective with the limit held at each value, (value,), and everything else fitted."""
    theta, low, high = _hold(fit, values)
    best = np.full(len(values), np.inf)
    for _ in range(SHARED):
        several = theta.shape[1]
        found, rise = descend(
            fit.problem,
            theta.reshape(len(values) * several, -1),
            fit.weights[None],
            np.repeat(low, several, axis=0),
            np.repeat(high, several, axis=0),
            RESAMPLE_STEPS,
            bool(fit.form.pinned),
        )
        found, rise = found.reshape(theta.shape), rise.reshape(len(values), several)
        best = np.minimum(best, rise.min(axis=1))
        own = found[np.arange(len(values)), rise.argmin(axis=1)]
        theta = np.stack([own, *(np.clip(np.roll(own, step, axis=0), low, high) for step in (1, -1))], axis=1)
    return best


def _profile_values(fit: Fit) -> np.ndarray:
    """Close to each other at the ends of the data, far apart far away; (value,) rising, in units of y."""
    frame = fit.problem.frame
    far = (frame.top - frame.bottom) * np.geomspace(1e-3, FURTHEST, PROFILED)
    inside = np.linspace(frame.bottom, frame.top, PROFILED // 2)
    values = np.concatenate([frame.bottom - far, inside, frame.top + far]) * frame.size
    if not fit.form.pinned and _holding(fit)[1].exact == "log y":
        values = values[values > 0]
    return np.union1d(values, fit.parameters[fit.form.limit])


def _holding(fit: Fit) -> tuple[int, Search]:
    """The working parameter that holds the limit."""
    searches = fit.form.search(fit.problem.frame)
    index = [search.of for search in searches].index(fit.form.limit)
    return index, searches[index]


def _hold(fit: Fit, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts with the limit at each value, (value, optimum, parameter), and bounds that hold it, (value, parameter)."""
    frame, optima = fit.problem.frame, [optimum.theta for optimum in fit.optima]
    if pinned := fit.form.pinned:
        index, held = 0, values / frame.size
        theta = np.stack([pinned.start(held, theta) for theta in optima], axis=1)
        bounds = pinned.low, pinned.high
    else:
        index, search = _holding(fit)
        held = search.invert(values, frame)
        theta = np.repeat(np.array(optima)[None], len(values), axis=0)
        bounds = fit.problem.bounds()
    low, high = (np.repeat(np.array(bound)[None], len(values), axis=0) for bound in bounds)
    low[:, index] = high[:, index] = held
    return np.clip(theta, low[:, None], high[:, None]), low, high


def _inside(values: np.ndarray, statistic: np.ndarray, most: float) -> tuple[float, float]:
    """Where the statistic crosses `most` for the first and the last time; infinite where it is below at an end."""
    kept = np.flatnonzero(statistic <= most)
    first, last = kept[0], kept[-1]
    low, high = -np.inf, np.inf
    if first > 0:
        low = np.interp(most, statistic[[first, first - 1]], values[[first, first - 1]])
    if last < len(values) - 1:
        high = np.interp(most, statistic[[last, last + 1]], values[[last, last + 1]])
    return float(low), float(high)
