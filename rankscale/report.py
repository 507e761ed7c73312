"""What an embedding matrix says about itself: every label-free number, its interval, and warnings in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from scipy import stats
from torch import Tensor

from rankscale import spectra
from rankscale.pretrain import COLLAPSED_RANKME
from rankscale.spectra import DEFAULT_EPS, FEWEST_PER_DIMENSION, PowerLawDecay, Resampled
from rankscale.spectra.accumulate import check_shape
from rankscale.terminal import wrapped

if TYPE_CHECKING:
    import altair as alt

LEVEL = 0.95
SAMPLED_ROWS = 5000  # numbers that compare all pairs of clips are taken from this many, drawn at random
ALPHA_PER_DIMENSION = 8  # clips: below, a corrected exponent misses the true one of known spectra by over 1 %
EMPTY = 1e-6  # share of the largest singular value below which a direction counts as unused


class Metric(BaseModel):
    """One number of a report.

    centred: whether the mean clip was subtracted. value: as measured; None where it is infinite. corrected: less its
    bias from few clips, None where that is not known. low, high: the 95 % interval around `corrected`, or around
    `value` where there is none; it covers the choice of clips. says: what the value means, in a few words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    label: str
    centred: bool
    value: float | None
    corrected: float | None = None
    low: float | None = None
    high: float | None = None
    says: str


class RankReport(BaseModel):
    """All numbers of one embedding matrix, with every choice that they depend on. `rank_report` makes it.

    clusters: independent recordings that the clips were cut from, None where every clip counts as one. groups: of the
    jackknife, 0 where there are too few clips for intervals. center: None where every number is centred, or not, as its
    authors have it. singular_values: largest first, of the embeddings as they are, and less the mean clip.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    n_clip: int
    dim: int
    clusters: int | None
    eps: float
    center: bool | None
    pool: str
    groups: int
    seed: int
    metrics: tuple[Metric, ...]
    warnings: tuple[str, ...]
    alpha_req: PowerLawDecay | None
    singular_values: tuple[float, ...]
    singular_values_centred: tuple[float, ...]

    def __getitem__(self, name: str) -> Metric:
        """A metric by its name, for example report["rankme"].value. Raises KeyError with the names there are."""
        found = {metric.name: metric for metric in self.metrics}
        if name not in found:
            raise KeyError(f"no metric {name!r}; the report has {', '.join(found)}")
        return found[name]

    def table(self) -> pd.DataFrame:
        """One row a metric: name, label, centred, value, corrected, low, high, says."""
        return pd.DataFrame([metric.model_dump() for metric in self.metrics])

    def to_json(self) -> str:
        """Everything in the report, as JSON; numbers that do not exist are null."""
        return self.model_dump_json(indent=2)

    def text(self) -> str:
        """Head, table and warnings for a terminal, at most 100 characters wide."""
        warnings = [wrapped(f"! {warning}", "  ") for warning in self.warnings]
        parts = [self._head(), self._rows(), [wrapped(self._foot())], warnings]
        return "\n\n".join("\n".join(part) for part in parts if part)

    def chart(self) -> alt.LayerChart:
        """The eigenspectrum with the power law that alpha-ReQ fits, in log-log."""
        from rankscale import charts  # not at the top: numbers alone should not wait for a charting library

        sigma = self.singular_values if self.center is False else self.singular_values_centred
        return charts.eigenspectrum_chart(np.square(sigma), self.alpha_req)

    def save_plot(self, path: str | Path) -> Path:
        """Write the chart as one HTML page that draws offline, with the report below it.

        Raises ValueError if the packages for charts are not installed.
        """
        try:
            from rankscale import charts

            chart, page = self.chart(), charts.save_page
            return page(chart, path, f"Eigenspectrum: {self.source}", self._caption(), self.text())
        except ModuleNotFoundError as error:
            raise ValueError(f"plots need {error.name}: pip install 'rankscale[book]'") from error

    def _caption(self) -> str:
        fit, centring = self.alpha_req, "as they are" if self.center is False else "less the mean clip"
        law = "Too few ranks for a power law."
        if fit:
            law = (
                f"The line is the power law i^-{fit.alpha:.2f} (standard error {fit.standard_error:.2g} at least, "
                f"R2 {fit.r_squared:.3f}), fitted to the filled points; hollow points were held out."
            )
        return f"Share of the variance in each direction of {self.n_clip:,} embeddings {centring}. {law}"

    def _head(self) -> list[str]:
        centring = {None: "as each number's authors have it", True: "all numbers", False: "none"}[self.center]
        some = self.clusters is not None and self.clusters < self.n_clip
        clips = f"{self.n_clip:,} clips" + (f" of {self.clusters:,} recordings" if some else "")
        return [
            wrapped(f"{self.source}: N = {clips}, K = {self.dim:,} dimensions, N/K = {self.n_clip / self.dim:.3g}"),
            wrapped(f"eps {self.eps:g}; centred: {centring}; pooling: {self.pool}"),
        ]

    def _rows(self) -> list[str]:
        layout = "{:22} {:7} {:>9} {:>9}  {:18}  {}"
        lines = [layout.format("metric", "centred", "value", "corrected", "95 % interval", "what it says")]
        for metric in self.metrics:
            interval = "" if metric.low is None else f"{_short(metric.low)} .. {_short(metric.high)}"
            corrected = "" if metric.corrected is None else _short(metric.corrected)
            centred = "yes" if metric.centred else ""
            cells = (metric.label, centred, _short(metric.value), corrected, interval, metric.says)
            lines.append(layout.format(*cells).rstrip())
        return lines

    def _foot(self) -> str:
        foot = "No intervals: too few independent clips."
        if self.groups:
            foot = (
                f"Intervals: around the corrected value where there is one, else around the value; {self.groups} "
                "groups of clips left out in turn. They cover the choice of clips, not that of a training seed."
            )
        if self.n_clip > SAMPLED_ROWS:
            foot += f" Self-clustering and uniformity: of {SAMPLED_ROWS:,} clips drawn at random."
        return foot


def _short(value: float | None) -> str:
    """Four digits, for reading."""
    if value is None:
        return "infinite"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:.{min(4, max(0, 3 - math.floor(math.log10(abs(value) or 1))))}f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


# --- measuring --------------------------------------------------------------------------------------------


def rank_report(
    z: Tensor | np.ndarray,
    source: str = "embeddings",
    eps: float = DEFAULT_EPS,
    center: bool | None = None,
    pool: str = "not known",
    groups: int = 10,
    seed: int = 0,
    clusters: np.ndarray | None = None,
    remarks: tuple[str, ...] = (),
) -> RankReport:
    """Every label-free number of an embedding matrix, with intervals where resampling clips gives them.

    z: (n_clip, dim), finite; may be memory-mapped. eps: RankMe's. center: True or False centres all numbers or none;
    None does what each number's authors do. groups, seed: of the jackknife. clusters: (n_clip,) labels of what was
    drawn independently, such as the recording a clip was cut from. source, pool, remarks: words for the report.
    Raises ValueError as `spectra.spectrum` does.
    """
    n_clip, dim = check_shape(z).shape
    labels = np.arange(n_clip) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    independent = len(np.unique(labels))
    jackknife = groups if independent >= 2 * groups else 0
    raw, centred = (_resample(z, c, jackknife, seed, labels) for c in (False, True))
    metrics, problems = _collect(
        *_spectrum_metrics(raw, centred, center, eps), *_row_metrics(z, raw.full, center, jackknife, seed, labels)
    )
    fit = _fit(raw.full if center is False else centred.full)
    report = RankReport(
        source=source,
        n_clip=n_clip,
        dim=dim,
        clusters=None if clusters is None else independent,
        eps=eps,
        center=center,
        pool=pool,
        groups=jackknife,
        seed=seed,
        metrics=metrics,
        warnings=(),
        alpha_req=fit,
        singular_values=tuple(raw.full.tolist()),
        singular_values_centred=tuple(centred.full.tolist()),
    )
    warnings = (*remarks, *_warnings(report, independent, groups), *problems)
    return report.model_copy(update={"warnings": warnings})


def _resample(z: Tensor | np.ndarray, center: bool, groups: int, seed: int, labels: np.ndarray) -> Resampled:
    if groups:
        return spectra.resample(z, center, groups, seed, labels)
    return Resampled(spectra.spectrum(z, center), (), *z.shape)


def _collect(*found: Metric | str) -> tuple[tuple[Metric, ...], tuple[str, ...]]:
    """Metrics, and the reasons why others are missing."""
    return tuple(f for f in found if isinstance(f, Metric)), tuple(f for f in found if isinstance(f, str))


@dataclass(frozen=True)
class _Number:
    """A number of a spectrum: measure(singular values, eps), and says(value, singular values)."""

    name: str
    label: str
    measure: Callable[[Tensor, float], float]
    says: Callable[[float, Tensor], str]
    centred: bool = False  # by its authors
    correct_from: float = FEWEST_PER_DIMENSION  # clips a dimension
    interval: bool = True


def _share(rank: float, sigma: Tensor) -> str:
    return f"{_percent(rank / len(sigma))} of at most {len(sigma)}"


def _largest(rank: float, _: Tensor) -> str:
    return f"largest direction: {_percent(1 / rank)}"


def _decay(alpha: float, sigma: Tensor) -> str:
    return f"falls as i^-{alpha:.2f} (R2 {spectra.alpha_req(sigma).r_squared:.2f})"


def _used(sigma: Tensor) -> Tensor:
    """Without empty directions: what a layer norm leaves in one is the rounding of float32."""
    return sigma[sigma > EMPTY * sigma[0]]


NUMBERS = (
    _Number("rankme", "RankMe", spectra.rankme, _share),
    _Number("rankme_centred", "RankMe", spectra.rankme, _share, centred=True),
    _Number("effective_rank", "effective rank", lambda s, _: spectra.effective_rank(s), lambda *_: "RankMe, no eps"),
    _Number(
        "effective_rank_squared", "effective rank squared", lambda s, _: spectra.effective_rank_squared(s),
        lambda *_: "strong directions count more", centred=True,
    ),
    _Number(
        "participation_ratio", "participation ratio", lambda s, _: spectra.participation_ratio(s),
        lambda *_: "the same, more so", centred=True,
    ),
    _Number("stable_rank", "stable rank", lambda s, _: spectra.stable_rank(s), _largest),
    _Number("nesum", "NESum", lambda s, _: spectra.nesum(s), _largest, centred=True),
    _Number(
        "condition_number", "condition number", lambda s, _: spectra.condition_number(s),
        lambda v, _: "largest / smallest direction" if math.isfinite(v) else "rank-deficient", interval=False,
    ),
    _Number(
        "alpha_req", "alpha-ReQ", lambda s, _: spectra.alpha_req(s).alpha, _decay,
        centred=True, correct_from=ALPHA_PER_DIMENSION,
    ),
    _Number(
        "power_law_tail", "power-law tail", lambda s, _: spectra.power_law_tail(s).exponent,
        lambda v, _: f"density falls as x^-{v:.2f}", centred=True, correct_from=math.inf,
    ),
)  # fmt: skip


def _spectrum_metrics(raw: Resampled, centred: Resampled, center: bool | None, eps: float) -> Iterator[Metric | str]:
    for number in NUMBERS:
        wanted = number.centred if center is None else center
        if center is None or number.name != "rankme_centred":  # which RankMe itself is then, or nobody wants
            yield _measure(number, centred if wanted else raw, wanted, eps)


def _measure(number: _Number, seen: Resampled, centred: bool, eps: float) -> Metric | str:
    """A metric, or why it is missing. Around a value the interval has the same width as around a corrected one."""
    corrected = low = high = None
    try:
        raw = number.measure(seen.full, eps)
        if seen.left_out and number.interval:
            estimate = seen.estimate(lambda sigma: number.measure(sigma, eps), LEVEL)
            corrected = estimate.value if seen.n_clip >= number.correct_from * seen.dim else None
            reach = _quantile(len(seen.left_out)) * estimate.standard_error
            low, high = ((corrected or raw) * math.exp(side * reach) for side in (-1, 1))
    except (ValueError, OverflowError) as error:
        return f"{number.label} is left out: {error}"
    return Metric(
        name=number.name,
        label=number.label,
        centred=centred,
        value=raw if math.isfinite(raw) else None,
        corrected=corrected,
        low=low,
        high=high,
        says=number.says(raw, seen.full),
    )


def _quantile(groups: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, groups - 1))


def _row_metrics(
    z: Tensor | np.ndarray, sigma: Tensor, center: bool | None, groups: int, seed: int, labels: np.ndarray
) -> Iterator[Metric | str]:
    """Numbers that need the rows: coherence of all, as it hangs on the worst; of a sample what compares pairs."""
    n_clip, centred = len(z), bool(center)
    worst = n_clip / _rank(sigma)
    yield Metric(
        name="coherence",
        label="coherence",
        centred=centred,
        value=spectra.coherence(z, centred),
        says=f"1 (even) to {worst:.0f} (outlier)",
    )

    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(n_clip, SAMPLED_ROWS, replace=False)) if n_clip > SAMPLED_ROWS else np.arange(n_clip)
    rows = torch.as_tensor(np.array(z[chosen]) if isinstance(z, np.ndarray) else z[chosen]).cpu().double()
    rows = rows - rows.mean(dim=0) if centred else rows
    if zero := int((rows == 0).all(dim=1).sum()):
        yield f"self-clustering and uniformity are left out: {zero} embeddings hold nothing but zeros"
        return
    member = spectra.deal(n_clip, groups, seed, labels)[chosen] if groups else None
    for name, label, measure, most, says in (
        ("self_cluster", "self-clustering", spectra.self_cluster, 1.0, "0: random, 1: one line"),
        ("uniformity", "uniformity", spectra.uniformity, 0.0, "0: one place, -4: even"),
    ):
        value = measure(rows)
        reach = _row_reach(measure, rows, member)
        low, high = (None, None) if reach is None else (value - reach, min(value + reach, most))
        yield Metric(name=name, label=label, centred=centred, value=value, low=low, high=high, says=says)


def _rank(sigma: Tensor) -> int:
    return int((sigma > 1e-9 * sigma[0]).sum())  # as coherence has it


def _row_reach(measure: Callable[[Tensor], float], rows: Tensor, member: np.ndarray | None) -> float | None:
    """Half the interval of a number of the rows: the jackknife again, without its logarithm, as it may be negative."""
    if member is None:
        return None
    groups = int(member.max()) + 1
    left_out = [measure(rows[torch.from_numpy(member != group)]) for group in range(groups)]
    return _quantile(groups) * math.sqrt((groups - 1) * np.var(left_out))


def _fit(sigma: Tensor) -> PowerLawDecay | None:
    try:
        return spectra.alpha_req(sigma)
    except ValueError:  # too few ranks: a warning says so where the metric is missing
        return None


# --- warnings in words ------------------------------------------------------------------------------------


def _warnings(report: RankReport, independent: int, groups: int) -> Iterator[str]:
    """What a reader of the numbers should know, the gravest first."""
    yield from _warn_of_collapse(report)
    yield from _warn_of_few_clips(report, independent, groups)
    yield from _warn_of_one_direction(report)
    yield from _warn_of_empty_directions(report)
    yield from _warn_of_details(report)


def _warn_of_collapse(report: RankReport) -> Iterator[str]:
    for metric in report.metrics:
        if metric.label == "RankMe" and metric.value < COLLAPSED_RANKME:
            which = "RankMe, centred," if metric.centred else "RankMe"
            yield f"{which} is {metric.value:.2f}: collapsed, one direction holds nearly everything"


def _warn_of_few_clips(report: RankReport, independent: int, groups: int) -> Iterator[str]:
    n_clip, dim, recordings = report.n_clip, report.dim, report.clusters or report.n_clip
    loss = _percent(1 - spectra.sample_bias(n_clip, dim))
    enough = FEWEST_PER_DIMENSION * dim
    if n_clip < dim:
        yield (
            f"{n_clip} clips for {dim} dimensions: no rank can exceed {n_clip}, whatever the encoder does (rows are "
            "clips: is the matrix transposed?)"
        )
    if n_clip < enough:
        yield (
            f"N/K is {n_clip / dim:.3g}: RankMe is biased low by about {loss} or more, and below N/K 2 that cannot be "
            f"corrected; intervals lie around the biased value. Take {enough:,} clips, better {2 * enough:,}"
        )
    elif n_clip < 6 * dim:
        yield f"N/K is {n_clip / dim:.3g}: RankMe is biased low by about {loss}; the corrected value allows for it"
    if recordings < enough <= n_clip:
        yield (
            f"the clips come from {recordings} recordings for {dim} dimensions, and clips of one recording are alike: "
            "expect RankMe to rise with more recordings"
        )
    if not report.groups:
        yield (
            f"{independent} independent clips or recordings cannot be dealt into {groups} groups of two: no intervals, "
            "no corrected values"
        )


def _warn_of_one_direction(report: RankReport) -> Iterator[str]:
    raw, centred = (np.square(s) for s in (report.singular_values, report.singular_values_centred))
    first, first_centred = raw[0] / raw.sum(), centred[0] / centred.sum()
    offset = 1 - centred.sum() / raw.sum()  # energy of the mean clip
    if offset > 0.5 and report.center is not True:
        yield (
            f"the largest direction holds {_percent(first)} of the variance: is a constant offset in the embeddings? "
            f"The mean clip makes up {_percent(offset)}; look at the centred numbers"
        )
    if first_centred > 0.5:
        yield f"the largest direction holds {_percent(first_centred)} of the variance about the mean clip"


def _warn_of_empty_directions(report: RankReport) -> Iterator[str]:
    centred = report.center is not False
    sigma = torch.tensor(report.singular_values_centred if centred else report.singular_values)
    possible = min(report.n_clip - centred, report.dim)
    empty = possible - len(_used(sigma))
    if empty > 0:
        layer_norm = " (a layer norm leaves one)" if empty == 1 else ""
        yield f"rank-deficient: {empty} of {possible} possible directions empty{layer_norm}"


def _warn_of_details(report: RankReport) -> Iterator[str]:
    fit, rank = report.alpha_req, _rank(torch.tensor(report.singular_values))
    if fit and fit.r_squared < 0.9:
        yield (
            f"alpha-ReQ's power law fits ranks {fit.first} to {fit.last} poorly (R2 {fit.r_squared:.2f}): its exponent "
            "says little"
        )
    if (added := report["rankme"].value / report["effective_rank"].value - 1) > 0.01:
        yield f"eps {report.eps:g} adds {_percent(added)} to RankMe"
    if report.n_clip > 4 * rank and report["coherence"].value * rank > 0.5 * report.n_clip:
        yield "one clip has a direction almost to itself: is it an outlier, or damaged?"
