"""Which law a table of runs supports: forms judged by what they foretell, intervals, words, a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from rankscale import laws
from rankscale.laws import Points, Trial

if TYPE_CHECKING:
    import altair as alt

LEVEL = 0.9
FEW_CLUSTERS = 8  # below, resampling them says little
DRAWN_BEYOND = 3.0  # times the largest x: as far as the figure goes
TEXT_WIDTH = 100  # characters


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Part):
    """A parameter with its 90 % interval; an end that the data do not give is None. source: of the interval.

    "bootstrap": percentiles over resampled clusters. "profile": for the limit that a form tends to.
    """

    name: str
    unit: str
    value: float
    low: float | None
    high: float | None
    source: str


class FormResult(_Part):
    """How one form did.

    heldout_error, heldout_r2: of the larger runs, predicted from the smaller; group_error, group_r2: of each group,
    predicted from the others. Errors are root mean squares in the space of the fit, in the geometric mean over splits,
    None where the form has no value there; R2 is against the mean of the points that were fitted. aicc: less the
    smallest; it decides nothing. insample_error: a root mean square as well, for comparison only.
    """

    name: str
    formula: str
    parameters: tuple[Estimate, ...]
    heldout_error: float | None
    heldout_r2: float | None
    group_error: float | None
    group_r2: float | None
    aicc: float | None
    insample_error: float
    objective: float
    condition: float | None
    optima: int
    remarks: tuple[str, ...]


class LawReport(_Part):
    """All forms on one table. `law_report` makes it.

    chosen: the simplest form that foretells about as well as the best. refused: form -> why it could not be fitted.
    sensitivity: the point whose absence moves the chosen curve most, and by how much. points, curves, band, heldout:
    what the figure shows, by columns.
    """

    source: str
    x: tuple[str, ...]
    y: str
    n_point: int
    n_cluster: int
    groups: tuple[str, ...]
    space: str
    loss: str
    delta: float
    level: float
    draws: int
    seed: int
    chosen: str
    forms: tuple[FormResult, ...]
    refused: dict[str, str]
    sensitivity: tuple[str, float]
    warnings: tuple[str, ...]
    points: dict[str, list[Any]]
    curves: dict[str, list[Any]]
    band: dict[str, list[float]]
    heldout: dict[str, list[float]]

    def __getitem__(self, name: str) -> FormResult:
        """A form's result by name. Raises KeyError with the names there are."""
        found = {form.name: form for form in self.forms}
        if name not in found:
            raise KeyError(f"no form {name!r}; the report has {', '.join(found)}")
        return found[name]

    def to_json(self) -> str:
        """Everything in the report, as JSON, unrounded; numbers that do not exist are null."""
        return self.model_dump_json(indent=2)

    def table(self) -> pd.DataFrame:
        """One row a form, without its parameters."""
        return pd.DataFrame([form.model_dump(exclude={"parameters", "remarks"}) for form in self.forms])

    def text(self) -> str:
        """Head, table, parameters and warnings for a terminal, at most 100 characters wide."""
        warnings = [_wrapped(f"! {warning}", "  ") for warning in self.warnings]
        parts = [self._head(), self._rows(), *map(self._parameters, self.forms), self._foot(), warnings]
        return "\n\n".join("\n".join(part) for part in parts if part)

    def chart(self) -> alt.LayerChart:
        """Points with the chosen law and its band; for two variables, predicted against measured."""
        from rankscale import law_charts  # not at the top: numbers alone should not wait for a charting library

        points = pd.DataFrame(self.points)
        if len(self.x) == 1:
            bands = pd.DataFrame(self.band)
            return law_charts.law_chart(
                points, pd.DataFrame(self.curves), bands, self.x[0], self.y, self.space == "log"
            )
        return law_charts.agreement_chart(points, pd.DataFrame(self.heldout), self.y)

    def save_plot(self, path: str | Path) -> Path:
        """Write the chart as one HTML page that draws offline, with the report below it.

        Raises ValueError if the packages for charts are not installed.
        """
        try:
            from rankscale import charts

            chart, page = self.chart(), charts.save_page
            return page(
                chart, path, f"{self.y} over {' and '.join(self.x)}: {self.source}", self._caption(), self.text()
            )
        except ModuleNotFoundError as error:
            raise ValueError(f"plots need {error.name}: pip install 'rankscale[book]'") from error

    def _caption(self) -> str:
        form = self[self.chosen]
        if len(self.x) == 2:
            return (
                f"Predicted over measured {self.y} by {form.formula}. Filled: fitted; hollow: predicted from the "
                "smaller 80 % of the runs. On the dashed line both are equal."
            )
        return (
            f"Points are runs. The thick line is {form.name}, {form.formula}; the inner band holds the law in 90 % of "
            "resamples, the outer one a new run like these. Thin lines are the other forms; right of the last point "
            "nothing was measured."
        )

    def _head(self) -> list[str]:
        of = f", {self.n_cluster} clusters" if self.n_cluster < self.n_point else ""
        groups = f", groups {', '.join(self.groups)}" if self.groups else ""
        residual = f"ln {self.y}" if self.space == "log" else f"{self.y} over its median size"
        loss = "least absolute deviations" if self.loss == "lad" else f"Huber, delta {self.delta:g}"
        return [
            _wrapped(f"{self.source}: {self.y} over {' and '.join(self.x)}, {self.n_point} points{of}{groups}"),
            _wrapped(f"residuals of {residual}; loss: sum of {loss}"),
        ]

    def _rows(self) -> list[str]:
        layout = "{:2}{:14} {:>4}  {:>9} {:>7}  {:>7}  {:>9}" + "  {:>9} {:>7}" * bool(self.groups)
        lines = [
            layout.format("", "", "", "larger", "runs", "", "in", "left-out", "group"),
            layout.format("", "form", "par.", "error", "R2", "AICc", "sample", "error", "R2"),
        ]
        for form in self.forms:
            cells = (
                "*" if form.name == self.chosen else "", form.name, len(form.parameters), _short(form.heldout_error),
                _r2(form.heldout_r2), _plus(form.aicc), _short(form.insample_error), _short(form.group_error),
                _r2(form.group_r2),
            )  # fmt: skip
            lines.append(layout.format(*cells).rstrip())
        return lines

    def _parameters(self, form: FormResult) -> list[str]:
        mark = "* " if form.name == self.chosen else "  "
        lines = [f"{mark}{form.name}: {form.formula}"]
        for each in form.parameters:
            interval = f"[{_short(each.low, 'no end')}, {_short(each.high, 'no end')}]"
            by = " by profile" if each.source == "profile" else ""
            lines.append(f"      {each.name:6} {_short(each.value):>10}  {interval}{by}".rstrip())
        return lines + [_wrapped(f"    ! {remark}", "      ") for remark in form.remarks]

    def _foot(self) -> list[str]:
        row, moved = self.sensitivity
        notes = [
            "* chosen: the simplest form that foretells the larger runs about as well as the best one. Brackets: 90 % "
            f"intervals, {self.draws} resamples of {'clusters' if self.n_cluster < self.n_point else 'points'}. "
            "AICc and the error in the sample decide nothing.",
            f"Without {row} the curve of {self.chosen} moves by up to {_short(moved)}: no other point moves it as far.",
        ]
        notes += [f"{name} is left out: {reason}" for name, reason in self.refused.items()]
        return [_wrapped(note, "  ") for note in notes]


def _short(value: float | None, none: str = "no value") -> str:
    return none if value is None else f"{value:.4g}"


def _r2(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value > -9 else "< -9"


def _plus(value: float | None) -> str:
    return "" if value is None else f"+{value:.1f}"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, TEXT_WIDTH, subsequent_indent=indent, break_on_hyphens=False)


# --- measuring --------------------------------------------------------------------------------------------


def law_report(
    data: Points,
    forms: Sequence[laws.Form] = laws.ONE_VARIABLE,
    source: str = "table",
    draws: int = 1000,
    seed: int = 0,
    loss: laws.Loss = "huber",
    delta: float = 1e-3,
    space: laws.Space = "log",
) -> LawReport:
    """Fit forms to points, judge them by what they foretell, and say how sure their parameters are.

    data: of `laws.read_points`; its groups are left out in turn, its clusters resampled. forms: those with as many
    parameters as points are refused with a reason. loss, delta, space: of `laws.fit`. draws, seed: of the bootstrap.
    Raises ValueError as `laws.fit` and `laws.extrapolate` do.
    """
    trials, refused = laws.try_forms(data, forms, loss=loss, delta=delta, space=space)
    chosen = laws.choose({name: trial.heldout for name, trial in trials.items()})
    resampled = {name: laws.bootstrap(trial.fit, draws, seed) for name, trial in trials.items()}
    best = min(laws.aicc(trial.fit) for trial in trials.values())
    moved = laws.sensitivity(trials[chosen].fit).iloc[0]
    n_cluster = len(np.unique(data.clusters[0])) if data.clusters else len(data)
    return LawReport(
        source=source,
        x=data.names[:-1],
        y=data.names[-1],
        n_point=len(data),
        n_cluster=n_cluster,
        groups=() if data.group is None else tuple(map(str, dict.fromkeys(data.group))),
        space=space,
        loss=loss,
        delta=delta,
        level=LEVEL,
        draws=draws,
        seed=seed,
        chosen=chosen,
        forms=tuple(_result(trial, resampled[name], best) for name, trial in trials.items()),
        refused=refused,
        sensitivity=(str(moved["row"]), float(moved["moved"])),
        warnings=tuple(_warnings(data, trials, chosen, n_cluster)),
        **_drawings(data, trials, resampled[chosen], chosen),
    )


def _result(trial: Trial, resampled: laws.Bootstrap, best_aicc: float) -> FormResult:
    found, groups = trial.fit, trial.groups
    return FormResult(
        name=found.form.name,
        formula=found.form.formula,
        parameters=tuple(_estimates(found, resampled)),
        heldout_error=_finite(trial.heldout.size),
        heldout_r2=_finite(trial.heldout.r2),
        group_error=_finite(groups.size) if groups else None,
        group_r2=_finite(groups.r2) if groups else None,
        aicc=_finite(laws.aicc(found) - best_aicc),
        insample_error=float(np.sqrt(np.mean(found.residuals() ** 2))),
        objective=found.objective,
        condition=_finite(found.condition),
        optima=len(found.optima),
        remarks=found.remarks,
    )


def _estimates(found: laws.Fit, resampled: laws.Bootstrap) -> Iterator[Estimate]:
    for parameter in found.form.parameters:
        low, high, source = *resampled.interval(parameter.name, LEVEL), "bootstrap"
        if parameter.name == found.form.limit and not found.points.clusters:
            profiled = laws.profile(found, LEVEL)
            low, high, source = profiled.low, profiled.high, "profile"
        yield Estimate(
            name=parameter.name, unit=parameter.unit, value=found.parameters[parameter.name], low=_finite(low),
            high=_finite(high), source=source,
        )  # fmt: skip


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _warnings(data: Points, trials: dict[str, Trial], chosen: str, n_cluster: int) -> Iterator[str]:
    if n_cluster < FEW_CLUSTERS:
        yield f"{n_cluster} clusters are too few to resample: do not trust the intervals"
    for name, column in zip(data.names, data.x.T, strict=False):
        if (span := column.max() / column.min()) < 3:
            yield f"{name} spans a factor of {span:.2g} only: forms are hard to tell apart over less than 3"
    best = min(trials, key=lambda name: trials[name].heldout.size)
    if best != chosen:
        yield f"{best} has the smallest error on larger runs, but by less than a quarter, and has more parameters"
    if trials[chosen].heldout.r2 < 0:
        yield f"{chosen} foretells the larger runs worse than the mean of the smaller ones does: trust no form here"


def _drawings(data: Points, trials: dict[str, Trial], resampled: laws.Bootstrap, chosen: str) -> dict[str, Any]:
    """The columns behind the figure."""
    found = trials[chosen].fit
    group = data.group if data.group is not None else np.full(len(data), "")
    points = {"row": data.rows, "group": group.astype(str), "y": data.y, "fitted": found.predict(data.x)}
    curves, band, heldout = {}, {}, {}
    if data.x.shape[1] == 1:
        grid = np.geomspace(data.x.min(), DRAWN_BEYOND * data.x.max(), 120)
        points["x"] = data.x[:, 0]
        names = np.repeat(list(trials), len(grid))
        values = np.concatenate([trial.fit.predict(grid) for trial in trials.values()])
        curves = {"form": names, "x": np.tile(grid, len(trials)), "y": values, "chosen": names == chosen}
        (low, high), (new_low, new_high) = (resampled.band(grid, LEVEL, new=new) for new in (False, True))
        band = {"x": grid, "low": low, "high": high, "new_low": new_low, "new_high": new_high}
    else:
        own = trials[chosen].heldout
        last = own.split == own.split[-1]
        measured, error = data.y[own.row[last]], own.error[last]
        heldout = {"y": measured, "predicted": measured * np.exp(error) if found.space == "log" else measured + error}
    parts = {"points": points, "curves": curves, "band": band, "heldout": heldout}
    return {name: {key: np.asarray(v).tolist() for key, v in part.items()} for name, part in parts.items()}
