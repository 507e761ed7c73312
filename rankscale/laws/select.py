"""Which form to believe: the one that foretells what it has not seen. In-sample R2 is no judge here.

Forms are compared by extrapolation (fit the smaller runs, predict the larger ones) and by leaving out one group, such
as an axis, at a time. AICc stands beside them and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import erf

from rankscale.laws.fit import Fit, TooFewPoints, check, fit
from rankscale.laws.forms import ONE_VARIABLE, Form, find_form
from rankscale.laws.points import Points
from rankscale.laws.uncertainty import leave_out, refit

SHARES = (0.5, 0.6, 0.7, 0.8)  # of the runs, smallest first, that are fitted; the rest is predicted
AS_GOOD = 1.25  # an error that is larger by less than this factor counts as equal
STARTS, KEPT = 1024, 24  # of the many fits of a comparison


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Predictions of points that a form was not fitted to; one row a point and split, which may hold it out again.

    split: (n,) labels. row: (n,) index into the points. error: (n,) predicted less measured, in the space of the fit;
    infinite where the form has no value. naive: (n,) the same for the mean of the points that were fitted.
    """

    split: np.ndarray
    row: np.ndarray
    error: np.ndarray
    naive: np.ndarray

    @property
    def size(self) -> float:
        """Root mean square error, the geometric mean over splits: the longest extrapolation does not count for all."""
        with np.errstate(divide="ignore"):  # of an exact form
            return float(np.exp(np.log(self.by_split()["error"]).mean()))

    @property
    def r2(self) -> float:
        """1 - SSE / SSE of the mean of the fitted points. Below 0: worse than that mean."""
        return float(1 - (self.error**2).sum() / (self.naive**2).sum())

    def by_split(self) -> pd.DataFrame:
        """One row a split: split, points, error (root mean square), r2."""
        table = pd.DataFrame({"split": self.split, "own": self.error**2, "naive": self.naive**2})
        sums = table.groupby("split", sort=False).agg(
            points=("own", "size"), own=("own", "sum"), naive=("naive", "sum")
        )
        sums["error"], sums["r2"] = np.sqrt(sums["own"] / sums["points"]), 1 - sums["own"] / sums["naive"]
        return sums[["points", "error", "r2"]].reset_index()


def extrapolate(
    form: Form | str, data: Points, shares: Sequence[float] = SHARES, order: np.ndarray | None = None, **how: Any
) -> HeldOut:
    """Fit the smallest runs and predict the others, for several shares of the runs.

    order: (n,) sizes of the runs, by default x, or the product of two variables. Runs of one cluster (the widest level)
    stay on one side, at their mean place. how: for `fit`.
    Raises ValueError where the smallest share has too few points for the form.
    """
    order = np.log(data.x).sum(axis=1) if order is None else np.asarray(order, dtype=np.float64)
    if data.clusters:
        order = pd.Series(order).groupby(data.clusters[0]).transform("mean").to_numpy()
    splits = {f"smallest {share:.0%}": order <= np.quantile(order, share) for share in shares}
    return _hold_out(form, data, splits, how)


def leave_groups_out(form: Form | str, data: Points, **how: Any) -> HeldOut:
    """Predict each group, such as an axis, from all others. Raises ValueError for data without two groups."""
    if data.group is None or len(np.unique(data.group)) < 2:
        raise ValueError("leaving a group out needs points of two groups or more: name their column")
    return _hold_out(form, data, {str(group): data.group != group for group in np.unique(data.group)}, how)


def _hold_out(form: Form | str, data: Points, splits: dict[str, np.ndarray], how: dict[str, Any]) -> HeldOut:
    how = {"starts": STARTS, "kept": KEPT} | how
    form = find_form(form) if isinstance(form, str) else form
    check(form, data, how.get("space", "log"))
    parts = []
    for name, inside in splits.items():
        rows = np.flatnonzero(~inside)
        found = fit(form, data.take(inside), **how)
        level, value = (np.log if found.space == "log" else np.asarray)(data.y[inside]).mean(), data.y[rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            predicted = found.predict(data.x[rows])
            error = np.log(predicted) - np.log(value) if found.space == "log" else predicted - value
        error = np.where(np.isfinite(error), error, np.inf)
        naive = level - (np.log(value) if found.space == "log" else value)
        parts.append((np.full(len(rows), name), rows, error, naive))
    return HeldOut(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def aicc(found: Fit) -> float:
    """Akaike's criterion for small samples, under the density whose likelihood the loss is, at its best scale.

    That density is Gaussian within delta and exponential beyond. Only differences between forms fitted to the same
    points in the same space mean anything; infinite for fewer than three points more than parameters.
    """
    n, counted = len(found.points), len(found.theta) + 1
    if n - counted - 1 <= 0:
        return float("inf")
    problem, residual = found.problem, found.residuals()
    loss = problem.objective(residual[None], found.weights[None])[0] * (
        problem.delta if np.isfinite(problem.delta) else 1
    )

    def negative_log_likelihood(log_scale: float) -> float:
        return loss / np.exp(log_scale) + n * _log_mass(problem.delta, np.exp(log_scale))

    typical = np.log(max(loss / n, 1e-300))
    best = minimize_scalar(negative_log_likelihood, bounds=(typical - 20, typical + 20), method="bounded")
    return float(2 * best.fun + 2 * counted + 2 * counted * (counted + 1) / (n - counted - 1))


def _log_mass(delta: float, scale: float) -> float:
    """ln of the integral of exp(-huber(r) / scale) over r."""
    if not np.isfinite(delta):
        return 0.5 * np.log(2 * np.pi * scale)
    inside = np.sqrt(2 * np.pi * scale) * erf(delta / np.sqrt(2 * scale))
    return float(np.log(inside + 2 * scale / delta * np.exp(-(delta**2) / (2 * scale))))


def sensitivity(found: Fit) -> pd.DataFrame:
    """What becomes of each parameter when a point is left out: one row a point, that moves the fit most first.

    Columns: row (its label), error (predicted by the others less measured, in the space of the fit), one a natural
    parameter, and moved: the largest change of the curve at any point, in the space of the fit.
    """
    problem, n = found.problem, len(found.points)
    theta = refit(found, leave_out(n))
    residual = problem.residuals(theta)[0]
    natural = dict(zip(found.form.names, problem.form.natural(theta, problem.frame).T, strict=True))
    moved = np.abs(residual - found.residuals()).max(axis=1)
    table = pd.DataFrame(
        {"row": found.points.rows, "error": residual[np.arange(n), np.arange(n)], **natural, "moved": moved}
    )
    return table.sort_values("moved", ascending=False, kind="stable", ignore_index=True)


# --- several forms at once --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Trial:
    """A form on trial: fitted to all points, extrapolated, and with one group left out in turn if there are any."""

    fit: Fit
    heldout: HeldOut
    groups: HeldOut | None


def try_forms(
    data: Points, forms: Sequence[Form] = ONE_VARIABLE, **how: Any
) -> tuple[dict[str, Trial], dict[str, str]]:
    """Everything by which forms are judged, by their names; for those with too many parameters the reason why not.

    how: for `fit`. Raises ValueError as `fit` does, where no form at all can be fitted.
    """
    several = data.group is not None and len(np.unique(data.group)) > 1
    trials, refused = {}, {}
    for form in forms:
        try:
            heldout = extrapolate(form, data, **how)
            groups = leave_groups_out(form, data, **how) if several else None
            trials[form.name] = Trial(fit(form, data, **how), heldout, groups)
        except TooFewPoints as error:
            refused[form.name] = str(error)
    if not trials:
        raise TooFewPoints("; ".join(refused.values()))
    return trials, refused


def choose(heldout: Mapping[str, HeldOut]) -> str:
    """The simplest of the forms that foretell about as well as the best one; heldout: by names of `FORMS`.

    About as well: an error (`HeldOut.size`) less than a quarter larger than the smallest. On simulated tables that
    picked the true form more often than one standard error did, which takes neighbours that are wrong together for
    independent. Simplest: the fewest parameters; of equals, the smaller error.
    Raises ValueError where no form has a value at every point held out.
    """
    error = {name: own.size for name, own in heldout.items()}
    best = min(error.values())
    if not np.isfinite(best):
        raise ValueError(f"none of {', '.join(heldout)} has a value at all of the larger runs")
    good = [name for name in error if error[name] <= AS_GOOD * best]
    return min(good, key=lambda name: (len(find_form(name).parameters), error[name]))
