"""The functional forms: what a law may look like, in parameters with names, units and bounds.

A form is reported in the *natural* parameters of its formula and searched in *working* ones, which have sizes near one
and hang together as little as the form allows. These live on scaled data (`Frame`): z is ln x less its mean, and y is
divided by its median size, so that no start, bound or tolerance knows in which units x and y came.
Every curve returns its gradient too, written out by hand; a test holds each against finite differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.special import expit, logsumexp, softmax

STEEPEST = 10.0  # exponent
LEAST_BEND = 1e-3  # below, a limit lies a thousand times the data's own range away, or further
SLIGHTEST = 1e-6  # bend on the way to a limit that is given


@dataclass(frozen=True, eq=False)
class Frame:
    """How data are scaled: x by `centre` (geometric means, one a variable), y by `size` (the median of |y|).

    low, high: (variable,) ends of z = ln(x / centre). bottom, top: ends of y / size.
    """

    centre: np.ndarray
    size: float
    low: np.ndarray
    high: np.ndarray
    bottom: float
    top: float

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> Frame:
        """The frame of x (n, variable), positive, and y (n,)."""
        centre = np.exp(np.log(x).mean(axis=0))
        z, size = np.log(x / centre), float(np.median(np.abs(y)))
        return cls(centre, size, z.min(axis=0), z.max(axis=0), float(y.min() / size), float(y.max() / size))

    def scale(self, x: np.ndarray) -> np.ndarray:
        """z of x: (n, variable), positive, to the same shape."""
        return np.log(x / self.centre)


@dataclass(frozen=True)
class Parameter:
    """A natural parameter: its name, its unit in words, the bounds within which it is looked for."""

    name: str
    unit: str
    low: float = -np.inf
    high: float = np.inf


@dataclass(frozen=True)
class Search:
    """A working parameter: its bounds, the box that its starts fill, and the natural parameter it decides on.

    exact: how it sets that parameter, where it does so alone: "1" as it is, "y" times the size of y, "log y" its
    exponential times that. at_low, at_high: what it means if the data allow that bound.
    """

    low: float
    high: float
    start: tuple[float, float]
    of: str
    exact: str = ""
    at_low: str = ""
    at_high: str = ""

    def invert(self, natural: np.ndarray, frame: Frame) -> np.ndarray:
        """The working value that sets a natural one."""
        scaled = natural if self.exact == "1" else natural / frame.size
        return np.log(scaled) if self.exact == "log y" else scaled


Curve = Callable[[np.ndarray, np.ndarray, Frame], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Pinned:
    """A form in other working parameters, the first of which is its limit over the size of y.

    start: limits (value,) and usual working parameters (parameter,) -> these, (value, parameter).
    """

    curve: Curve
    low: tuple[float, ...]
    high: tuple[float, ...]
    start: Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Form:
    """A functional form of one or two variables.

    curve: working (start, parameter), z (n, variable), frame -> values (start, n) and gradient (start, n, parameter);
    the values are ln y if `logs` and y otherwise, both scaled. search: the working parameters for a frame. natural:
    working (start, parameter), frame -> natural (start, parameter).
    limit: the natural parameter that y tends to. pinned: the form with that limit as a working parameter; None where it
    is one anyhow.
    """

    name: str
    formula: str
    variables: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    curve: Curve
    search: Callable[[Frame], tuple[Search, ...]]
    natural: Callable[[np.ndarray, Frame], np.ndarray]
    logs: bool = False
    limit: str = ""
    pinned: Pinned | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the natural parameters."""
        return tuple(parameter.name for parameter in self.parameters)


def _columns(theta: np.ndarray) -> list[np.ndarray]:
    """(start, parameter) -> (start, 1) for each parameter."""
    return list(theta.T[:, :, None])


def _stack(*parts: np.ndarray) -> np.ndarray:
    """Derivatives that broadcast to (start, n) -> (start, n, parameter)."""
    return np.stack(np.broadcast_arrays(*parts), axis=-1)


def _level(frame: Frame, reach: float = 10.0, start: float = 0.0) -> tuple[float, float, tuple[float, float]]:
    """Bounds and start box of a value of scaled y: the data's range, widened at both ends by shares of itself."""
    low, high, wide = frame.bottom, frame.top, frame.top - frame.bottom
    return low - reach * wide, high + reach * wide, (low - start * wide, high + start * wide)


def _slope(frame: Frame, variable: int = 0) -> tuple[float, float, tuple[float, float]]:
    """Bounds and start box of a slope of scaled y over z, in shares of the one through the ends of the data."""
    steep = (frame.top - frame.bottom) / (frame.high[variable] - frame.low[variable])
    return -100 * steep, 100 * steep, (-2 * steep, 2 * steep)


NO_LIMIT = "{} is not identified: {} fits about as well"
EXPONENT = (-STEEPEST, STEEPEST, (-2.0, 2.0))

# --- straight lines ---------------------------------------------------------------------------------------


def _power(theta, z, frame):
    a, b = _columns(theta)
    return a + b * z[:, 0], _stack(1.0 + 0 * a, z[:, 0])


def _power_natural(theta, frame):
    a, b = theta.T
    return np.stack([frame.size * np.exp(a - b * np.log(frame.centre[0])), b], axis=1)


POWER = Form(
    "power", "y = a x^b", ("x",),
    (Parameter("a", "y at x = 1", 0), Parameter("b", "none", -STEEPEST, STEEPEST)),
    _power,
    lambda frame: (Search(-20, 20, (-1, 1), "a"), Search(*EXPONENT, "b", "1")),
    _power_natural,
    logs=True,
)  # fmt: skip


def _log_linear(theta, z, frame):
    level, slope = _columns(theta)
    return level + slope * z[:, 0], _stack(1.0 + 0 * level, z[:, 0])


def _log_linear_natural(theta, frame):
    level, slope = theta.T
    return frame.size * np.stack([level - slope * np.log(frame.centre[0]), slope], axis=1)


LOG_LINEAR = Form(
    "log_linear", "y = a + b ln x", ("x",),
    (Parameter("a", "y at x = 1"), Parameter("b", "y for a factor e in x")),
    _log_linear,
    lambda frame: (Search(*_level(frame), "a"), Search(*_slope(frame), "b", "y")),
    _log_linear_natural,
)  # fmt: skip


def _shifted(theta, z, frame):
    """Amplitude at the centre, exponent, and the logarithm of how far x_0 lies below the smallest x."""
    a, b, gap = _columns(theta)
    gap, least = np.exp(gap), np.exp(frame.low[0])
    here, centre = np.exp(z[:, 0]) - least + gap, 1 - least + gap
    with np.errstate(invalid="ignore", divide="ignore"):  # below x_0 there is no value
        far = np.log(here) - np.log(centre)
    return a + b * far, _stack(1.0 + 0 * a, far, b * gap * (1 / here - 1 / centre))


def _shifted_natural(theta, frame):
    a, b, gap = theta.T
    start = np.exp(frame.low[0]) - np.exp(gap)
    scale = frame.size * np.exp(a - b * (np.log(frame.centre[0]) + np.log1p(-start)))
    return np.stack([scale, b, frame.centre[0] * start], axis=1)


SHIFTED = Form(
    "shifted_power", "y = a (x - x_0)^b, x > x_0", ("x",),
    (Parameter("a", "y one unit of x above x_0", 0), Parameter("b", "none", -STEEPEST, STEEPEST),
     Parameter("x_0", "x; below the smallest")),
    _shifted,
    lambda frame: (
        Search(-20, 20, (-1, 1), "a"),
        Search(*EXPONENT, "b", "1"),
        Search(frame.low[0] - 7, 5, (frame.low[0] - 3, 2), "x_0"),
    ),
    _shifted_natural,
    logs=True,
)  # fmt: skip

# --- towards a limit --------------------------------------------------------------------------------------
# limit - a exp(-bend t) is searched as a level and a slope at the centre and a bend. Where the data hardly bend, the
# limit is far away and known badly, and only the bend shows it: no valley without end in limit and a.


def _bent(level, slope, bend, t):
    """level + slope (1 - exp(-bend t)) / bend, with derivatives to level, slope, bend and t."""
    fall = np.exp(-bend * t)
    rise = -np.expm1(-bend * t) / bend
    return level + slope * rise, (1.0 + 0 * level, rise, slope * (t * fall - rise) / bend, slope * fall)


def _along(warp: Callable[[np.ndarray], np.ndarray]) -> tuple[Curve, Pinned]:
    """Curves of one variable that bend along t = warp(z)."""

    def curve(theta, z, frame):
        value, parts = _bent(*_columns(theta), warp(z[:, 0]))
        return value, _stack(*parts[:3])

    def pinned(theta, z, frame):
        limit, gap, bend = _columns(theta)
        t = warp(z[:, 0])
        fall = np.exp(-np.minimum(bend * t, 500))
        return limit - gap * fall, _stack(1.0 + 0 * limit, -fall, gap * t * fall)

    def start(limit, theta):
        gap = limit - theta[0]
        return np.stack([limit, gap, np.clip(theta[1] / gap, SLIGHTEST, STEEPEST)], axis=1)

    return curve, Pinned(pinned, (-np.inf, -np.inf, SLIGHTEST), (np.inf, np.inf, 20), start)


def _bend(steepest: float, instead: str, of: str, exact: str = "") -> Search:
    return Search(LEAST_BEND, steepest, (0.02, steepest / 4), of, exact, at_low=NO_LIMIT.format("Q_inf", instead))


def _saturating_natural(theta, frame):
    level, slope, b = theta.T
    a = slope / b * np.exp(b * np.log(frame.centre[0]))
    return np.stack([frame.size * (level + slope / b), frame.size * a, b], axis=1)


_CURVE, _PINNED = _along(lambda z: z)
SATURATING = Form(
    "saturating", "y = Q_inf - a x^-b", ("x",),
    (Parameter("Q_inf", "y"), Parameter("a", "y at x = 1; below 0 where y falls"), Parameter("b", "none", 0, STEEPEST)),
    _CURVE,
    lambda frame: (
        Search(*_level(frame), "Q_inf"),
        Search(*_slope(frame), "a"),
        _bend(STEEPEST, "a straight line in ln x", "b", "1"),
    ),
    _saturating_natural,
    limit="Q_inf",
    pinned=_PINNED,
)  # fmt: skip


def _exponential_natural(theta, frame):
    level, slope, bend = theta.T
    a = slope / bend * np.exp(bend)
    return np.stack([frame.size * (level + slope / bend), frame.size * a, frame.centre[0] / bend], axis=1)


_CURVE, _PINNED = _along(np.expm1)
EXPONENTIAL = Form(
    "exponential", "y = Q_inf - a exp(-x / tau)", ("x",),
    (Parameter("Q_inf", "y"), Parameter("a", "y; below 0 where y falls"), Parameter("tau", "x", 0)),
    _CURVE,
    lambda frame: (
        Search(*_level(frame), "Q_inf"),
        Search(*_slope(frame), "a"),
        _bend(20, "a straight line in x", "tau"),
    ),
    _exponential_natural,
    limit="Q_inf",
    pinned=_PINNED,
)  # fmt: skip


def _sigmoid(theta, z, frame):
    low, high, steep, middle = _columns(theta)
    steep = np.exp(steep)
    share = expit(steep * (z[:, 0] - middle))
    turn = (high - low) * share * (1 - share)
    return low + (high - low) * share, _stack(1 - share, share, turn * steep * (z[:, 0] - middle), -turn * steep)


def _sigmoid_natural(theta, frame):
    low, high, steep, middle = theta.T
    return np.stack([frame.size * low, frame.size * high, np.exp(steep), frame.centre[0] * np.exp(middle)], axis=1)


SIGMOID = Form(
    "sigmoid", "y = Q_0 + (Q_inf - Q_0) / (1 + (x / x_mid)^-k)", ("x",),
    (Parameter("Q_0", "y"), Parameter("Q_inf", "y"), Parameter("k", "none", 0.05, 50), Parameter("x_mid", "x", 0)),
    _sigmoid,
    lambda frame: (
        Search(*_level(frame, 10, 0.5), "Q_0", "y"),
        Search(*_level(frame, 10, 0.5), "Q_inf", "y", *2 * (NO_LIMIT.format("Q_inf", "one ten times as far"),)),
        Search(np.log(0.05), np.log(50), (np.log(0.2), np.log(10)), "k"),
        Search(frame.low[0] - 5, frame.high[0] + 5, (frame.low[0], frame.high[0]), "x_mid"),
    ),
    _sigmoid_natural,
    limit="Q_inf",
)  # fmt: skip

# --- broken power laws ------------------------------------------------------------------------------------


def _broken(theta, z, frame):
    """a + b exp(-c_0 z - sum of c_i s_i), where s_i = f_i ln(1 + exp((z - d_i) / f_i)) turns on at the break d_i."""
    a, b, c0, *breaks = _columns(theta)
    z = z[:, 0]
    power, parts = -c0 * z, []
    for c, d, f in zip(breaks[::3], breaks[1::3], breaks[2::3], strict=True):
        f = np.exp(f)
        on, turned = f * np.logaddexp(0, (z - d) / f), expit((z - d) / f)
        power = power - c * on
        parts += [-on, c * turned, -c * (on - (z - d) * turned)]
    shape = np.exp(np.minimum(power, 50))
    return a + b * shape, _stack(1.0 + 0 * a, shape, -b * shape * z, *(b * shape * part for part in parts))


def _broken_search(frame, breaks):
    low, high, wide = frame.low[0], frame.high[0], frame.top - frame.bottom
    search = [
        Search(*_level(frame, 10, 0.5), "a", "y"),
        Search(-100 * wide - 10, 100 * wide + 10, (-2 * wide, 2 * wide), "b"),
        Search(*EXPONENT, "c_0", "1"),
    ]
    for i in range(1, breaks + 1):
        search += [
            Search(*EXPONENT, f"c_{i}"),
            Search(low - 1, high + 1, (low, high), f"d_{i}"),
            Search(np.log(0.01), np.log(2), (np.log(0.03), 0), f"f_{i}"),
        ]
    return tuple(search)


def _broken_natural(theta, frame):
    """Breaks in the order of their places."""
    centre = np.log(frame.centre[0])
    a, b, c0 = theta.T[:3]
    breaks = theta[:, 3:].reshape(len(theta), -1, 3)
    breaks = np.take_along_axis(breaks, np.argsort(breaks[:, :, 1], axis=1)[:, :, None], axis=1)
    c, d, f = breaks.transpose(2, 0, 1)
    natural = np.stack([c, np.exp(d + centre), np.exp(f)], axis=2).reshape(len(theta), -1)
    return np.column_stack([frame.size * a, frame.size * b * np.exp(c0 * centre), c0, natural])


def _bnsl(breaks: int) -> Form:
    each = [
        (
            Parameter(f"c_{i}", "none", -STEEPEST, STEEPEST),
            Parameter(f"d_{i}", "x", 0),
            Parameter(f"f_{i}", "ln x", 0.01, 2),
        )
        for i in range(1, breaks + 1)
    ]
    first = (Parameter("a", "y"), Parameter("b", "y at x = 1"), Parameter("c_0", "none", -STEEPEST, STEEPEST))
    formula = "y = a + b x^-c_0 " + " ".join(f"(1 + (x/d_{i})^(1/f_{i}))^(-c_{i} f_{i})" for i in range(1, breaks + 1))
    parameters = first + tuple(parameter for turn in each for parameter in turn)
    search = partial(_broken_search, breaks=breaks)
    return Form(f"bnsl{breaks}", formula, ("x",), parameters, _broken, search, _broken_natural)


BNSL1, BNSL2 = _bnsl(1), _bnsl(2)  # Caballero et al. 2022, eq. 1

# --- two variables ----------------------------------------------------------------------------------------


def _joint(theta, z, frame):
    """ln of E + A / N^alpha + B / D^beta as the logsumexp of its three terms' logarithms."""
    e, a, alpha, b, beta = _columns(theta)
    n, d = z.T
    terms = _stack(e + 0 * n, a - alpha * n, b - beta * d)
    share = softmax(terms, axis=-1)
    of_e, of_a, of_b = np.moveaxis(share, -1, 0)
    return logsumexp(terms, axis=-1), _stack(of_e, of_a, -of_a * n, of_b, -of_b * d)


def _joint_natural(theta, frame):
    e, a, alpha, b, beta = theta.T
    n, d = np.log(frame.centre)
    return np.stack(
        [frame.size * np.exp(e), frame.size * np.exp(a + alpha * n), alpha, frame.size * np.exp(b + beta * d), beta],
        axis=1,
    )


def _joint_search(frame):
    exponent = (LEAST_BEND, 5.0, (0.05, 1.5))
    return (
        Search(-15, 5, (-3, 0), "E", "log y", at_low=NO_LIMIT.format("E", "a law without it")),
        Search(-15, 5, (-4, 0), "A", at_low=NO_LIMIT.format("alpha", "a law without N")),
        Search(*exponent, "alpha", "1"),
        Search(-15, 5, (-4, 0), "B", at_low=NO_LIMIT.format("beta", "a law without D")),
        Search(*exponent, "beta", "1"),
    )


JOINT = Form(
    "joint", "y = E + A / N^alpha + B / D^beta", ("n", "d"),
    (Parameter("E", "y", 0), Parameter("A", "y at N = 1", 0), Parameter("alpha", "none", 0, 5),
     Parameter("B", "y at D = 1", 0), Parameter("beta", "none", 0, 5)),
    _joint,
    _joint_search,
    _joint_natural,
    logs=True,
    limit="E",
)  # fmt: skip
"""Hoffmann et al. 2022 (Chinchilla), approach 3: a loss over model size N and tokens D."""


def _rank_width(theta, z, frame):
    level, by_rank, by_width, bend = _columns(theta)
    t = by_rank * z[:, 0] + by_width * z[:, 1]
    value, (to_level, _, to_bend, to_t) = _bent(level, 1.0, bend, t)
    return value, _stack(to_level, to_t * z[:, 0], to_t * z[:, 1], to_bend)


def _rank_width_pinned(theta, z, frame):
    limit, gap, b, g = _columns(theta)
    r, k = z.T
    fall = gap * np.exp(-np.clip(b * r + g * k, -500, 500))
    return limit - fall, _stack(1.0 + 0 * limit, -fall / gap, r * fall, k * fall)


def _rank_width_start(limit, theta):
    gap = np.maximum(limit - theta[0], SLIGHTEST)
    return np.stack([limit, gap, np.clip(theta[1] / gap, -5, 5), np.clip(theta[2] / gap, -5, 5)], axis=1)


def _rank_width_natural(theta, frame):
    level, by_rank, by_width, bend = theta.T
    b, g = bend * by_rank, bend * by_width
    a = np.exp(b * np.log(frame.centre[0]) + g * np.log(frame.centre[1])) / bend
    return np.stack([frame.size * (level + 1 / bend), frame.size * a, b, g], axis=1)


RANK_WIDTH = Form(
    "rank_width", "y = Q_inf - a R^-b K^-g", ("r", "k"),
    (Parameter("Q_inf", "y"), Parameter("a", "y at R = K = 1", 0),
     Parameter("b", "none; 0: rank adds nothing to width"), Parameter("g", "none; 0: width adds nothing to rank")),
    _rank_width,
    lambda frame: (
        Search(*_level(frame), "Q_inf"),
        Search(*_slope(frame, 0), "b"),
        Search(*_slope(frame, 1), "g"),
        _bend(50, "a plane in ln R and ln K", "a"),
    ),
    _rank_width_natural,
    limit="Q_inf",
    pinned=Pinned(
        _rank_width_pinned, (-np.inf, SLIGHTEST, -STEEPEST, -STEEPEST), (np.inf, np.inf, STEEPEST, STEEPEST),
        _rank_width_start,
    ),
)  # fmt: skip
"""What is missing to the best quality is a power of rank times a power of width. If rank tells all, g is 0."""

ONE_VARIABLE = (POWER, LOG_LINEAR, SATURATING, SHIFTED, EXPONENTIAL, SIGMOID, BNSL1, BNSL2)
FORMS = {form.name: form for form in (*ONE_VARIABLE, JOINT, RANK_WIDTH)}


def find_form(name: str) -> Form:
    """A form by its name. Raises ValueError with the names there are."""
    if name not in FORMS:
        raise ValueError(f"no form {name!r}; there are {', '.join(FORMS)}")
    return FORMS[name]
