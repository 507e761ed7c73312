"""Figures of what a fit can know: extrapolations, searches, profiles, bootstraps, and a law to be drawn by hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import altair as alt
import numpy as np
import pandas as pd

from rankscale.charts import CATEGORY_COLOURS, INK, WIDTH, round_table, rounded, sliders

FITTED, LARGER = "fitted", "held out"
GRID = 61  # places at which the explorer's curve is drawn
DELTA = 1e-3  # of the explorer's Huber loss, as in `laws.fit`
ENDS = {"exponent": (0.02, 0.92), "ceiling": (0.5, 1.2)}  # of the explorer's sliders
STEPS = {"exponent": 0.01, "ceiling": 0.005}
CELLS = (40, 36)  # of the explorer's map

_near = partial(round_table, digits=5)


def _log(column: str, title: str, domain: Sequence[float] = ()) -> dict:
    scale = alt.Scale(type="log", nice=False, **({"domain": list(domain)} if len(domain) else {"padding": 12}))
    return {"shorthand": f"{column}:Q", "title": title, "scale": scale}


def extrapolation_chart(
    points: pd.DataFrame, curves: pd.DataFrame, x: str = "x", y: str = "y", top: float | None = None
) -> alt.LayerChart:
    """Points and laws on logarithmic axes: filled points were fitted, hollow ones held out.

    points: columns x, y, held_out. curves: x, y, law (colour and dash, in the table's order). top: where y is cut off.
    """
    values = np.concatenate([points["y"], curves["y"] if top is None else []])
    room = values.min() / 1.1, top or values.max() * 1.1
    across, up = alt.X(**_log("x", x)), alt.Y(**_log("y", y, room))
    order, legend = (
        alt.Scale(domain=list(dict.fromkeys(curves["law"]))),
        alt.Legend(title=None, columns=2, labelLimit=230),
    )
    colour, dash = (kind("law:N", scale=order, legend=legend) for kind in (alt.Color, alt.StrokeDash))
    lines = alt.Chart(_near(curves)).mark_line(clip=True).encode(x=across, y=up, color=colour, strokeDash=dash)
    base = alt.Chart(_near(points)).encode(x=across, y=up, tooltip=["x:Q", "y:Q"])
    filled = base.transform_filter("!datum.held_out").mark_point(size=32, filled=True, color=INK, opacity=1)
    hollow = base.transform_filter("datum.held_out").mark_point(size=44, filled=False, color=INK, opacity=1)
    return alt.layer(lines, filled, hollow).properties(width=WIDTH, height=260)


def searches_chart(ends: pd.DataFrame, least: float = 1e-9) -> alt.Chart:
    """Where searches stopped: one point a start, by how far above the lowest loss, a row an objective.

    ends: columns objective, excess (a share of the lowest loss), start. Smaller excesses than `least` stand at it.
    """
    kept = _near(ends.assign(excess=ends["excess"].clip(lower=least)))
    order = list(dict.fromkeys(ends["objective"]))
    colour = alt.Color("objective:N", sort=order, legend=None)
    shape = alt.Shape("objective:N", sort=order, legend=None)
    x = alt.X(**_log("excess", "loss above the lowest, as a share of it", [least / 2, kept["excess"].max() * 2]))
    y = alt.Y("objective:N", title=None, sort=order)
    rows = alt.Chart(kept).mark_point(size=40, opacity=0.7)
    rows = rows.encode(x=x.axis(format="~e", tickCount=6), y=y, yOffset="start:Q", color=colour, shape=shape)
    rows = rows.encode(tooltip=["objective:N", "start:Q", "excess:Q"])
    return rows.properties(width=WIDTH - 70, height={"step": 60})


def profile_chart(
    table: pd.DataFrame, most: float, ends: tuple[float, float], truth: float | None = None, title: str = "ceiling"
) -> alt.LayerChart:
    """Profiles of a limit: how much worse the fit becomes as the limit is held elsewhere.

    table: columns range (a line each, in the table's order), value, statistic. most: what a 90 % interval allows.
    ends: of the axis of values; lines go on beyond.
    """
    order, legend = alt.Scale(domain=list(dict.fromkeys(table["range"]))), alt.Legend(title=None, columns=4)
    x = alt.X("value:Q", title=title, scale=alt.Scale(domain=list(ends), nice=False))
    y = alt.Y("statistic:Q", title="how much worse (F)", scale=alt.Scale(domain=[0, 3 * most], nice=False))
    colour, dash = (kind("range:N", scale=order, legend=legend) for kind in (alt.Color, alt.StrokeDash))
    lines = alt.Chart(_near(table)).mark_line(clip=True).encode(x=x, y=y, color=colour, strokeDash=dash)
    level = alt.Chart(pd.DataFrame({"statistic": [most]})).mark_rule(color=INK, strokeWidth=1.5).encode(y=y)
    layers = [lines, level]
    if truth is not None:
        rule = alt.Chart(pd.DataFrame({"value": [truth]})).mark_rule(color=INK, strokeDash=[2, 3], strokeWidth=1.5)
        layers.append(rule.encode(x=x))
    return alt.layer(*layers).properties(width=WIDTH, height=220)


def coverage_chart(table: pd.DataFrame, truth: float, title: str) -> alt.FacetChart:
    """Intervals of many simulated tables, one panel a kind; those that miss the truth are thick and coloured.

    table: columns kind, table (number), low, high.
    """
    kept = _near(table.assign(hit=table["low"].le(truth) & table["high"].ge(truth)))
    y = alt.Y("low:Q", title=title, scale=alt.Scale(zero=False))
    x = alt.X("table:Q", title="simulated table").axis(tickCount=5, format="d")
    bars = alt.Chart(kept).encode(x=x, y=y, y2="high:Q", tooltip=["table:Q", "low:Q", "high:Q"])
    hits = bars.transform_filter("datum.hit").mark_rule(color=CATEGORY_COLOURS[0], strokeWidth=1.5)
    misses = bars.transform_filter("!datum.hit").mark_rule(color=CATEGORY_COLOURS[1], strokeWidth=4)
    level = alt.Chart(kept).mark_rule(color=INK, strokeDash=[4, 4]).encode(y=alt.datum(truth))
    order = list(dict.fromkeys(table["kind"]))
    panel = alt.layer(hits, misses, level).properties(width=WIDTH, height=110)
    return panel.facet(
        row=alt.Row("kind:N", title=None, sort=order, header=alt.Header(labelOrient="top", labelAnchor="start"))
    )


def relations_chart(points: pd.DataFrame, curves: pd.DataFrame, name: str = "relations") -> alt.LayerChart:
    """Runs and laws for one pair of columns at a time, chosen below the figure; both axes logarithmic.

    points: columns relation, x, y, label. curves: relation, law, x, y.
    """
    every = list(dict.fromkeys(points["relation"]))
    menu = alt.param(name=name, value=every[0], bind=alt.binding_select(options=every, name="law of: "))
    x, y = alt.X(**_log("x", "x of the law chosen below")).axis(tickCount=5, format="~s"), alt.Y(**_log("y", "y"))
    order, legend = alt.Scale(domain=list(dict.fromkeys(curves["law"]))), alt.Legend(title=None)
    colour, dash = (kind("law:N", scale=order, legend=legend) for kind in (alt.Color, alt.StrokeDash))
    lines = alt.Chart(_near(curves)).transform_filter(alt.datum.relation == menu).mark_line()
    dots = (
        alt.Chart(_near(points)).transform_filter(alt.datum.relation == menu).mark_point(size=45, color=INK, opacity=1)
    )
    return (
        alt.layer(
            lines.encode(x=x, y=y, color=colour, strokeDash=dash),
            dots.encode(x=x, y=y, tooltip=["label:N", "x:Q", "y:Q"]),
        )
        .add_params(menu)
        .properties(width=WIDTH, height=240)
    )


# --- a law drawn by hand ----------------------------------------------------------------------------------


def hand_fit(x: np.ndarray, y: np.ndarray, exponent: float, ceiling: float) -> tuple[float, float]:
    """Amplitude and loss of ceiling - a x^-exponent: a by least squares, the loss a sum of Huber's of ln y.

    x, y: (n,), positive. What `explorer_chart` computes in the page.
    """
    t = x**-exponent
    a = (t * (ceiling - y)).sum() / (t * t).sum()
    size = np.abs(np.log(np.maximum(ceiling - a * t, 1e-3)) - np.log(y))
    return float(a), float(np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum())


def explorer_chart(
    points: pd.DataFrame, x: str = "x", y: str = "y", exponent: float = 0.6, ceiling: float = 0.6, name: str = "hand"
) -> alt.VConcatChart:
    """Fit a saturating law by hand: sliders for exponent and ceiling, residuals, and a map of the loss.

    points: columns x, y, held_out. The amplitude follows by least squares on the points that are not held out; a box
    shows the others. exponent, ceiling: where the sliders start. All is computed in the page.
    """
    own = points[~points["held_out"]]
    grid = np.geomspace(points["x"].min(), points["x"].max(), GRID)
    rows = pd.concat([
        pd.DataFrame({"x": points["x"], "y": points["y"], "part": np.where(points["held_out"], LARGER, FITTED)}),
        pd.DataFrame({"x": grid, "y": 1.0, "part": "curve"}),
    ])  # fmt: skip
    knobs = {
        f"{name}_{key}": (value, *ENDS[key], STEPS[key], f"{key} ")
        for key, value in (("exponent", exponent), ("ceiling", ceiling))
    }
    shown = alt.param(f"{name}_shown", value=False, bind=alt.binding_checkbox(name="show the larger runs "))
    b, q = f"{name}_exponent", f"{name}_ceiling"
    base = (
        alt.Chart(_near(rows))
        .transform_calculate(t=f"pow(datum.x, -{b})", own=f"datum.part == '{FITTED}' ? 1 : 0")
        .transform_calculate(over=f"datum.own * datum.t * ({q} - datum.y)", under="datum.own * datum.t * datum.t")
        .transform_joinaggregate(over_sum="sum(over)", under_sum="sum(under)")
        .transform_calculate(a="datum.over_sum / datum.under_sum")
        .transform_calculate(law=f"max({q} - datum.a * datum.t, 1e-3)")
        .transform_calculate(residual="log(datum.law) - log(datum.y)")
        .transform_calculate(size="abs(datum.residual)")
        .transform_calculate(
            loss=f"datum.size <= {DELTA} ? datum.size * datum.size / 2 : {DELTA} * (datum.size - {DELTA / 2})"
        )
    )
    seen = base.transform_filter(f"datum.part == '{FITTED}' || (datum.part == '{LARGER}' && {name}_shown)")
    low, high = points["x"].min() / 1.2, points["x"].max() * 1.2
    across = alt.X(**_log("x", x, [low, high]))
    up = _log("y", y, [points["y"].min() / 1.15, points["y"].max() * 1.3])
    line = base.transform_filter("datum.part == 'curve'").mark_line(color=CATEGORY_COLOURS[1], clip=True)
    law = alt.layer(
        line.encode(x=across.title(None), y=alt.Y(**(up | {"shorthand": "law:Q"}))),
        _by_part(seen, across.title(None), alt.Y(**up)),
        *_readout(base, own, b, q),
    ).properties(width=WIDTH, height=210)
    scale = alt.Scale(domain=[-20, 20], clamp=True)
    zero = alt.Chart(pd.DataFrame({"percent": [0]})).mark_rule(color=INK).encode(y="percent:Q")
    off = seen.transform_calculate(percent="clamp(100 * (datum.law / datum.y - 1), -20, 20)")
    residuals = alt.layer(zero, _by_part(off, across, alt.Y("percent:Q", title="law - data (%)", scale=scale)))
    valley = _map(own, b, q).properties(width=WIDTH, height=170)
    return (
        alt.vconcat(law, residuals.properties(width=WIDTH, height=90), valley)
        .add_params(*sliders(knobs), shown)
        .resolve_scale(color="independent")
    )


def _by_part(base: alt.Chart, x: alt.X, y: alt.Y) -> alt.LayerChart:
    """Filled points for what is fitted, hollow ones for what is held out."""
    filled = base.transform_filter(f"datum.part == '{FITTED}'").mark_point(
        size=30, color=CATEGORY_COLOURS[0], opacity=1
    )
    hollow = base.transform_filter(f"datum.part == '{LARGER}'")
    hollow = hollow.mark_point(size=40, filled=False, color=CATEGORY_COLOURS[0], opacity=1)
    return alt.layer(*(part.encode(x=x, y=y) for part in (filled, hollow)))


def _readout(base: alt.Chart, own: pd.DataFrame, b: str, q: str) -> list[alt.Chart]:
    """Two lines of words: the law, and its loss beside the lowest on the map."""
    lowest = _losses(own).min()
    sums = base.transform_filter(f"datum.part == '{FITTED}'").transform_aggregate(total="sum(loss)", a="max(a)")
    lines = (
        f"'y = ' + format({q}, '.3f') + ' - ' + format(datum.a, '.3f') + ' x^-' + format({b}, '.2f')",
        f"'sum of losses ' + format(datum.total, '.5f') + ' (lowest on the map {lowest:.5f})'",
    )
    return [
        sums.transform_calculate(words=words)
        .mark_text(align="left", fontSize=13)
        .encode(x=alt.value(8), y=alt.value(10 + 18 * i), text="words:N")
        for i, words in enumerate(lines)
    ]


def _losses(own: pd.DataFrame) -> np.ndarray:
    """The loss in the middle of each cell of the map, (cell,): ceilings of the first exponent first."""
    middles = [
        np.linspace(*ENDS[key], 2 * cells + 1)[1::2] for key, cells in zip(("exponent", "ceiling"), CELLS, strict=True)
    ]
    x, y = own["x"].to_numpy(), own["y"].to_numpy()
    return np.array([hand_fit(x, y, b, q)[1] for b in middles[0] for q in middles[1]])


def _map(own: pd.DataFrame, b: str, q: str) -> alt.LayerChart:
    """The loss over its lowest value, as a map, and a mark where the sliders stand."""
    loss = _losses(own)
    table = pd.DataFrame({"i": range(len(loss)), "times": rounded(loss / loss.min(), 3)})
    place = f"floor(datum.i / {CELLS[1]})", f"datum.i % {CELLS[1]}"  # worked out there: a page carries no corners
    encodings, corners = {}, {}
    for axis, key, cells, at in zip("xy", ("exponent", "ceiling"), CELLS, place, strict=True):
        low, high = ENDS[key]
        corners |= {f"{axis}{end}": f"{low} + {(high - low) / cells} * ({at} + {end})" for end in (0, 1)}
        kind, scale = (alt.X, alt.Y)[axis == "y"], alt.Scale(domain=[low, high], nice=False, zero=False)
        encodings |= {axis: kind(f"{axis}0:Q", title=key, scale=scale).axis(grid=False), f"{axis}2": f"{axis}1:Q"}
    colour = alt.Color("times:Q", title="loss, times the lowest", legend=alt.Legend(gradientLength=160, tickCount=4))
    colour = colour.scale(type="log", domain=[1, 4], clamp=True, reverse=True)
    cells = alt.Chart(table).transform_calculate(**corners).mark_rect().encode(**encodings, color=colour)
    x, y = encodings["x"], encodings["y"]
    here = alt.Chart(pd.DataFrame({"i": [0]})).transform_calculate(x0=b, y0=q)
    ring = here.mark_point(size=140, filled=False, color="#000000", strokeWidth=5, opacity=1).encode(x=x, y=y)
    core = here.mark_point(size=140, filled=False, color="#ffffff", strokeWidth=2, opacity=1).encode(x=x, y=y)
    return alt.layer(cells, ring, core)
