"""Robust fits from many starts, and what they say of the parameters.

The objective is the *sum* of Huber losses over points. Hoffmann et al. 2022 took the mean: it has the same minimum, but
where residuals are half a percent and delta is 1e-3 it is a few millionths, and its slope is below L-BFGS-B's default
tolerance far from the minimum, where their search stopped (Besiroglu et al. 2024; a test shows it). Here the sum is
divided by delta, which makes it about the sum of absolute residuals, and a descent ends when no step lowers it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats
from scipy.stats import qmc

from rankscale.laws.forms import Form, Frame, find_form
from rankscale.laws.points import Points, refuse

Loss = Literal["huber", "lad"]
Space = Literal["log", "linear"]

LAD_DELTA = 1e-9  # where the square ends and the absolute residual begins, for least absolute deviations
FLOOR = 1e-4  # of the size of y: below, the logarithm of a curve goes on as a straight line
STARTS, KEPT = 4096, 64  # scored at once; followed down
LISTED = 24  # distinct optima, at most
MOST_STEPS = 400
SETTLED = 1e-11  # a descent has arrived when a round of steps lowers its objective by a smaller share
ROUND = 10  # steps
LEAST_DAMPING, STUCK = 1e-9, 1e8  # of Levenberg and Marquardt
CHUNK = 4_000_000  # numbers of a gradient held at once
SURE = 0.9  # level of the intervals and tests behind words on what is not identified


class TooFewPoints(ValueError):
    """A form has too many parameters for the points it was given."""


# --- a fit ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Optimum:
    """A place from which no step leads down. parameters: natural. objective: the sum of losses there."""

    objective: float
    parameters: dict[str, float]
    theta: np.ndarray  # working


@dataclass(frozen=True, eq=False)
class Fit:
    """A form fitted to points. `fit` makes it; `parameters` are unrounded.

    objective: weighted sum of Huber losses of the residuals (of |residual| for "lad"): of ln y in log space, of y over
    the median |y| in linear space, the unit of `delta` too. optima: the distinct ones that were found, best first.
    condition: of the Gauss-Newton Hessian in working parameters, whose sizes are near one: above about 1e6, some
    parameters can make up for each other. at_bounds: natural parameters whose search ended at a bound. remarks: what
    the data cannot tell, in words.
    """

    form: Form
    points: Points
    loss: Loss
    space: Space
    delta: float
    weights: np.ndarray
    problem: Problem
    optima: tuple[Optimum, ...]
    condition: float
    at_bounds: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def theta(self) -> np.ndarray:
        """Working parameters, (parameter,)."""
        return self.optima[0].theta

    @property
    def parameters(self) -> dict[str, float]:
        return self.optima[0].parameters

    @property
    def objective(self) -> float:
        return self.optima[0].objective

    def residuals(self) -> np.ndarray:
        """Predicted less measured, (n,), in the space of the fit."""
        return self.problem.residuals(self.theta[None])[0][0]

    def predict(self, x: np.ndarray) -> np.ndarray:
        """y at x (n,) or (n, variable), positive; NaN where the form has no value."""
        return self.problem.predict(self.theta[None], x)[0]


def fit(
    form: Form | str,
    data: Points,
    loss: Loss = "huber",
    delta: float = 1e-3,
    space: Space = "log",
    weights: np.ndarray | None = None,
    starts: int = STARTS,
    kept: int = KEPT,
) -> Fit:
    """The best parameters of a form, from many starts: deterministic, float64, unrounded.

    form: of `FORMS`, or its name. data: of `points` or `read_points`. loss: "huber", or "lad" for least absolute
    deviations. delta: where Huber's loss turns from square to absolute: in log space a relative error of y, in linear
    space a share of its median size; infinite for least squares. space: residuals of ln y, or of y. weights: (n,), not
    negative. starts: of which the best `kept` are followed down; a power of two.
    Raises TooFewPoints (a ValueError) where the form has as many parameters as there are points, or more than there are
    different x; ValueError for y that is not positive in log space.
    """
    form = find_form(form) if isinstance(form, str) else form
    check(form, data, space)
    weights = np.ones(len(data)) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.shape != (len(data),) or not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ValueError(f"weights must be {len(data)} finite numbers, none negative and not all zero")
    if loss not in ("huber", "lad") or not delta > 0:
        raise ValueError(f"loss {loss!r} with delta {delta}: take huber with a positive delta, or lad")
    problem = Problem.of(form, data, space, LAD_DELTA if loss == "lad" else delta)
    theta, value = search(problem, weights, starts, kept)
    optima = _distinct(problem, theta, value)
    free = zip(form.search(problem.frame), _free(problem, optima[0].theta), strict=True)
    at_bounds = tuple(search.of for search, inside in free if not inside)
    return Fit(
        form, data, loss, space, delta, weights, problem, optima,
        _condition(problem, optima[0].theta, weights), at_bounds, tuple(_remarks(problem, optima, weights, at_bounds)),
    )  # fmt: skip


def check(form: Form, data: Points, space: Space) -> None:
    """Raise what `fit` does where the points do not fit the form or the space."""
    if space not in ("log", "linear"):
        raise ValueError(f"space {space!r}: take log or linear")
    if data.x.shape[1] != len(form.variables):
        wanted, given = len(form.variables), data.x.shape[1]
        raise ValueError(f"{form.name} is a law of {wanted} variable(s) ({', '.join(form.variables)}), got {given}")
    need, different = len(form.parameters), len(np.unique(data.x, axis=0))
    if len(data) <= need or different < need:
        raise TooFewPoints(
            f"{form.name} has {need} parameters and needs at least {need + 1} points with {need} different "
            f"{' and '.join(data.names[:-1])}; there are {len(data)} with {different}"
        )
    if space == "log":
        words = "are not positive, so ln y does not exist: leave the rows out, or fit in linear space"
        refuse(data.names[-1], data.y <= 0, data.rows, words)


# --- points and form as a problem -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Problem:
    """Points of a form in a space: residuals and their gradient for any number of starts.

    target: (n,) ln y or y, scaled. delta: Huber's, in the same units.
    """

    form: Form
    frame: Frame
    z: np.ndarray
    target: np.ndarray
    space: Space
    delta: float

    @classmethod
    def of(cls, form: Form, points: Points, space: Space, delta: float) -> Problem:
        frame = Frame.of(points.x, points.y)
        target = np.log(points.y / frame.size) if space == "log" else points.y / frame.size
        return cls(form, frame, frame.scale(points.x), target, space, delta)

    @property
    def unit(self) -> float:
        """What the method `objective` divides the sum of losses by."""
        return 1.0 if self.delta in (LAD_DELTA, np.inf) else self.delta

    def curve(self, theta: np.ndarray, z: np.ndarray, pinned: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Values in the space of the fit, (start, n), and their gradient, (start, n, parameter)."""
        value, gradient = (self.form.pinned if pinned else self.form).curve(theta, z, self.frame)
        if self.form.logs == (self.space == "log"):
            return value, gradient
        if self.form.logs:
            value = np.exp(value)
            return value, gradient * value[:, :, None]
        above = np.maximum(value, FLOOR)
        return np.log(above) + np.minimum(value - FLOOR, 0) / FLOOR, gradient / above[:, :, None]

    def residuals(self, theta: np.ndarray, pinned: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """As `curve`, less the target."""
        value, gradient = self.curve(theta, self.z, pinned)
        return value - self.target, gradient

    def predict(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """y for each row of theta at x (n,) or (n, variable): (start, n), unscaled."""
        x = np.asarray(x, dtype=np.float64).reshape(-1, len(self.form.variables))
        value = self.form.curve(theta, self.frame.scale(x), self.frame)[0]
        return self.frame.size * (np.exp(value) if self.form.logs else value)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the working parameters, (parameter,) each."""
        low, high = zip(*((search.low, search.high) for search in self.form.search(self.frame)), strict=True)
        return np.array(low), np.array(high)

    def objective(self, residual: np.ndarray, weights: np.ndarray, delta: np.ndarray | None = None) -> np.ndarray:
        """Weighted sums of Huber losses, over delta if that is finite: (start,)."""
        delta = np.full((len(residual), 1), self.delta) if delta is None else delta
        size = np.abs(residual)
        inside = size <= delta
        per = np.where(np.isfinite(delta), delta, 1.0)
        with np.errstate(invalid="ignore", over="ignore"):  # the branch that is not taken
            loss = np.where(inside, size**2 / (2 * per), size - per / 2)
        return (weights * loss).sum(axis=1)


# --- the way down -----------------------------------------------------------------------------------------


def descend(
    problem: Problem,
    theta: np.ndarray,
    weights: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    most_steps: int = MOST_STEPS,
    pinned: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Follow many starts down at once: (start, parameter), and the objective at each, (start,).

    theta: (start, parameter). weights: (start, n) or (1, n). low, high: (start, parameter) or (parameter,) bounds; a
    parameter is held where they are equal.
    Huber's loss is bounded from above by the parabola through the same point with the weight 1 / max(|r|, delta)
    (Huber 1981), and a Levenberg-Marquardt step goes towards the minimum of these parabolas. delta
    begins at the median residual and is halved each step, so that the search sees a smooth valley first and its sharp
    floor last.
    """
    theta = theta.copy()
    low, high = np.broadcast_to(low, theta.shape), np.broadcast_to(high, theta.shape)
    weights = np.broadcast_to(weights, (len(theta), len(problem.target)))
    found = np.empty(len(theta))
    each = max(1, CHUNK // (len(problem.target) * theta.shape[1]))
    for start in range(0, len(theta), each):
        part = slice(start, start + each)
        theta[part], found[part] = _descend(
            problem, theta[part], weights[part], low[part], high[part], most_steps, pinned
        )
    return theta, found


def _descend(problem, theta, weights, low, high, most_steps, pinned):
    walk = _Walk(problem, theta.copy(), weights, low, high, pinned)
    theta, value = theta.copy(), walk.value()
    active = np.arange(len(theta))
    for _ in range(most_steps // ROUND):
        before, smooth = walk.value(), walk.delta[:, 0] > problem.delta
        for _ in range(ROUND):
            walk.step()
        after = walk.value()
        better = after < value[active]
        theta[active[better]], value[active[better]] = walk.theta[better], after[better]
        trying = (walk.stretch == 1) & (walk.damping < STUCK)  # the last step failed, a shorter one may not
        moving = smooth | trying | (before - after > SETTLED * after)
        if not moving.any():
            break
        active = active[moving]
        walk.keep(moving)
    return theta, value


class _Walk:
    """The starts that are still moving: where they are, and how far each trusts its parabolas."""

    def __init__(self, problem, theta, weights, low, high, pinned):
        self.problem, self.pinned = problem, pinned
        self.theta, self.weights, self.low, self.high = theta, weights, low, high
        self.residual, self.gradient = problem.residuals(theta, pinned)
        typical = np.median(np.abs(self.residual), axis=1, keepdims=True)
        self.delta = np.maximum(typical, problem.delta)
        self.damping = np.full(len(theta), 1e-3)
        self.stretch = np.ones(len(theta))

    def value(self) -> np.ndarray:
        return self.problem.objective(self.residual, self.weights)

    def keep(self, chosen: np.ndarray) -> None:
        for name in ("theta", "weights", "low", "high", "residual", "gradient", "delta", "damping", "stretch"):
            setattr(self, name, getattr(self, name)[chosen])

    def step(self) -> None:
        problem = self.problem
        self.delta = np.maximum(self.delta / 2, problem.delta)
        trial = np.clip(self.theta + self.stretch[:, None] * self._direction(), self.low, self.high)
        residual, gradient = problem.residuals(trial, self.pinned)
        before = problem.objective(self.residual, self.weights, self.delta)
        better = problem.objective(residual, self.weights, self.delta) < before
        self.theta[better], self.residual[better] = trial[better], residual[better]
        self.gradient[better] = gradient[better]
        worse = ~better & (self.stretch == 1)  # a step that failed for its stretch says nothing about the damping
        self.damping = np.clip(self.damping * np.where(better, 0.3, np.where(worse, 5, 1)), LEAST_DAMPING, 1e12)
        self.stretch = np.where(better, self.stretch * 1.4, 1.0)

    def _direction(self) -> np.ndarray:
        """Towards the minimum of the parabolas, with parameters left out that press against a bound."""
        pull = self.weights / np.maximum(np.abs(self.residual), self.delta)
        pull = np.where(np.isfinite(self.delta), pull, self.weights)
        weighted = self.gradient * pull[:, :, None]
        slope = np.einsum("snp,sn->sp", weighted, self.residual)
        bend = weighted.transpose(0, 2, 1) @ self.gradient
        pressed = ((self.theta <= self.low) & (slope > 0)) | ((self.theta >= self.high) & (slope < 0))
        bend = np.where(pressed[:, :, None] | pressed[:, None, :], 0, bend)
        index = np.arange(bend.shape[1])
        size = bend[:, index, index]
        size = np.maximum(size, 1e-12 * size.max(axis=1, keepdims=True) + 1e-300)
        bend[:, index, index] = np.where(pressed, 1, size * (1 + self.damping[:, None]))
        return -np.linalg.solve(bend, np.where(pressed, 0, slope)[:, :, None])[:, :, 0]


def search(problem: Problem, weights: np.ndarray, starts: int, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Score many starts at once and follow the best down: working (kept, parameter) and objectives, best first.

    The starts are Sobol points in the boxes that the form's `search` names, the same ones each time.
    """
    boxes = np.array([search.start for search in problem.form.search(problem.frame)])
    sobol = qmc.Sobol(len(boxes), scramble=True, rng=0).random(starts)
    theta = boxes[:, 0] + sobol * (boxes[:, 1] - boxes[:, 0])
    score = np.concatenate(
        [problem.objective(problem.residuals(part)[0], weights[None]) for part in _chunks(problem, theta)]
    )
    best = np.argsort(score, kind="stable")[:kept]
    theta, value = descend(problem, theta[best], weights[None], *problem.bounds())
    order = np.argsort(value, kind="stable")
    return theta[order], value[order]


def _chunks(problem: Problem, theta: np.ndarray) -> list[np.ndarray]:
    each = max(1, CHUNK // (len(problem.target) * theta.shape[1]))
    return [theta[start : start + each] for start in range(0, len(theta), each)]


# --- what the optimum says --------------------------------------------------------------------------------


def _distinct(problem: Problem, theta: np.ndarray, value: np.ndarray) -> tuple[Optimum, ...]:
    """Optima whose curves differ at some point by more than a hundredth of the typical residual, best first."""
    residual = problem.residuals(theta)[0]
    same = 0.01 * np.median(np.abs(residual[0])) + 1e-9
    chosen: list[int] = []
    for index, own in enumerate(residual):
        if np.isfinite(value[index]) and all(np.abs(own - residual[other]).max() > same for other in chosen):
            chosen.append(index)
    natural = problem.form.natural(theta, problem.frame)
    names = problem.form.names
    return tuple(
        Optimum(float(value[i] * problem.unit), dict(zip(names, natural[i].tolist(), strict=True)), theta[i])
        for i in chosen[:LISTED]
    )


@dataclass(frozen=True)
class Noise:
    """Of the residuals, through psi, the derivative of the loss: mean(psi'), and mean(psi^2) for n - p degrees.

    Where a loss is no likelihood, the covariance of the parameters is spread / slope^2 times the inverse of the
    Gauss-Newton Hessian, and a rise of the objective times 2 slope / spread is F(1, n - p) where one parameter is held
    at its true value (Huber 1981; Hampel et al. 1986).
    """

    slope: float
    spread: float
    free: int  # n - p

    def allowed(self, level: float) -> float:
        """By how much the objective may rise where one parameter is held, at a level such as 0.9."""
        return float(stats.f.ppf(level, 1, self.free)) * self.spread / (2 * self.slope)


def noise(problem: Problem, theta: np.ndarray, weights: np.ndarray) -> Noise:
    """How the residuals scatter about a fit, theta (parameter,).

    For mean(psi') they are smoothed by a Gaussian kernel: the few within delta of zero are too few to be counted.
    """
    residual = problem.residuals(theta[None])[0][0]
    share, free = weights / weights.sum(), len(residual) - len(theta)
    if np.isfinite(problem.delta):
        psi = np.clip(residual / problem.delta, -1, 1)
        width = 0.9 * min(residual.std(), stats.iqr(residual) / 1.349) * len(residual) ** -0.2
        width = max(width, 1e-12)  # of an exact fit
        near = stats.norm.cdf((problem.delta - residual) / width) - stats.norm.cdf((-problem.delta - residual) / width)
        slope = float((share * near).sum() / problem.delta)
    else:
        psi, slope = residual, 1.0
    return Noise(slope, float((share * weights * psi**2).sum() * len(residual) / free), free)


def _free(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Which working parameters do not stand at a bound, (parameter,)."""
    low, high = problem.bounds()
    return (theta > low) & (theta < high)


def _information(problem: Problem, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The Gauss-Newton Hessian of squared residuals over the free parameters."""
    gradient = problem.residuals(theta[None])[1][0][:, _free(problem, theta)]
    return (gradient * weights[:, None]).T @ gradient


def _condition(problem: Problem, theta: np.ndarray, weights: np.ndarray) -> float:
    sizes = np.linalg.eigvalsh(_information(problem, theta, weights))
    return float(sizes[-1] / sizes[0]) if sizes[0] > 0 else float("inf")


def _remarks(
    problem: Problem, optima: tuple[Optimum, ...], weights: np.ndarray, at_bounds: tuple[str, ...]
) -> Iterator[str]:
    """What the data cannot tell: limits they allow, parameters without a value, other optima as good."""
    best = optima[0].theta
    scatter = noise(problem, best, weights)
    allowed = scatter.allowed(SURE)
    limits = dict(_allowed_limits(problem, optima, weights, allowed))
    yield from dict.fromkeys(limits.values())
    error = stats.norm.ppf((1 + SURE) / 2) * _standard_errors(problem, best, weights, scatter)
    searches = {i: search for i, search in enumerate(problem.form.search(problem.frame)) if i not in limits}
    lost = [search.of for i, search in searches.items() if error[i] > np.ptp(search.start)]
    if lost:
        yield f"not identified: {', '.join(lost)}; the interval is wider than the range of the starts"
    if ended := [search.of for i, search in searches.items() if search.of in at_bounds]:
        yield f"ended at a bound of the search: {', '.join(ended)}"
    rivals = sum((other.objective - optima[0].objective) / problem.unit < allowed for other in optima[1:])
    if rivals:
        yield f"{rivals} other optima fit about as well" if rivals > 1 else "another optimum fits about as well"


def _allowed_limits(
    problem: Problem, optima: tuple[Optimum, ...], weights: np.ndarray, allowed: float
) -> Iterator[tuple[int, str]]:
    """Working parameters that may as well stand at a bound that has a meaning, and what it means."""
    theta = np.array([optimum.theta for optimum in optima])
    low, high = problem.bounds()
    for index, search in enumerate(problem.form.search(problem.frame)):
        held = np.arange(len(low)) == index
        for bound, words in ((search.low, search.at_low), (search.high, search.at_high)):
            bounds = np.where(held, bound, low), np.where(held, bound, high)
            if words and (
                descend(problem, np.where(held, bound, theta), weights[None], *bounds)[1].min()
                < optima[0].objective / problem.unit + allowed
            ):
                yield index, words


def _standard_errors(problem: Problem, theta: np.ndarray, weights: np.ndarray, scatter: Noise) -> np.ndarray:
    """Of the working parameters, (parameter,): infinite where a direction changes nothing, 0 at a bound."""
    size, direction = np.linalg.eigh(_information(problem, theta, weights))
    flat = size <= 1e-13 * size[-1]
    variance = (direction[:, ~flat] ** 2 / size[~flat]).sum(axis=1)
    lost = (np.abs(direction[:, flat]) > 1e-6).any(axis=1)
    error = np.zeros(len(theta))
    error[_free(problem, theta)] = np.where(lost, np.inf, np.sqrt(variance * scatter.spread) / scatter.slope)
    return error
