"""Figures of laws: runs with the form that was chosen and its bands, and predictions beside measurements."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from rankscale.charts import AXIS_COLOURS, AXIS_SHAPES, CATEGORY_COLOURS, INK, WIDTH, rounded


def law_chart(
    points: pd.DataFrame, curves: pd.DataFrame, band: pd.DataFrame, x: str, y: str, log: bool, title: str = ""
) -> alt.LayerChart:
    """Runs with the law that was chosen, its bands, and the other forms as thin lines; x, and y if `log`, logarithmic.

    points: columns x, y, group (colour and shape; all "" for none), row. curves: form, x, y, chosen. band: x, low, high
    of the law, new_low, new_high of a new run. x, y: names of the axes.
    """
    numbers = {name: table.select_dtypes("number").columns for name, table in (("c", curves), ("b", band))}
    curves = curves.assign(**{c: rounded(curves[c].to_numpy()) for c in numbers["c"]})
    band = band.assign(**{c: rounded(band[c].to_numpy()) for c in numbers["b"]})
    low, high = points["y"].min(), points["y"].max()
    room = (low / 1.15, high * 1.3) if log else (low - 0.1 * (high - low), high + 0.3 * (high - low))
    across = alt.X("x:Q", title=x, scale=alt.Scale(type="log", nice=False))
    up = alt.Scale(type="log" if log else "linear", domain=list(room), nice=False)
    areas = [
        alt.Chart(band).mark_area(color=INK, opacity=opacity, clip=True).encode(
            x=across, y=alt.Y(f"{ends[0]}:Q", title=y, scale=up), y2=f"{ends[1]}:Q"
        )
        for ends, opacity in ((("new_low", "new_high"), 0.12), (("low", "high"), 0.25))
    ]  # fmt: skip
    lines = alt.Chart(curves).encode(x=across, y=alt.Y("y:Q", title=y, scale=up), detail="form:N", tooltip=["form:N"])
    thin = lines.transform_filter("!datum.chosen").mark_line(color=INK, strokeWidth=0.8, opacity=0.7, clip=True)
    thick = lines.transform_filter("datum.chosen").mark_line(color=INK, strokeWidth=2.5, clip=True)
    base = alt.Chart(points).mark_point(size=55, opacity=1, filled=True)
    dots = base.encode(x=across, y=alt.Y("y:Q", title=y, scale=up), tooltip=["row:N", "x:Q", "y:Q", "group:N"])
    if points["group"].nunique() > 1:
        names = list(points["group"].unique())
        known = set(names) <= set(AXIS_COLOURS)
        scales = [
            alt.Scale(domain=names, **({"range": [table[name] for name in names]} if known else {}))
            for table in (AXIS_COLOURS, AXIS_SHAPES)
        ]
        colour, shape = (
            kind("group:N", title=None, scale=scale) for kind, scale in zip((alt.Color, alt.Shape), scales, strict=True)
        )
        dots = dots.encode(color=colour, shape=shape)
    return alt.layer(*areas, thin, thick, dots).properties(title=title)


def agreement_chart(points: pd.DataFrame, heldout: pd.DataFrame, y: str, title: str = "") -> alt.LayerChart:
    """Predicted over measured, both logarithmic where all are positive; hollow points were held out.

    points: columns y, fitted, row. heldout: y, predicted. y: name of what is predicted.
    """
    every = pd.concat([points["y"], points["fitted"], heldout["y"], heldout["predicted"]])
    log, wide = every.min() > 0, 0.05 * np.ptp(every)
    room = [every.min() / 1.03, every.max() * 1.03] if log else [every.min() - wide, every.max() + wide]
    kind = alt.Scale(type="log" if log else "linear", domain=room, nice=False)
    x = alt.X("y:Q", title=f"measured {y}", scale=kind)
    ends = pd.DataFrame({"y": [every.min(), every.max()]})
    level = alt.Chart(ends).mark_line(strokeDash=[4, 4], color=INK, strokeWidth=1.5).encode(
        x=x, y=alt.Y("y:Q", title=f"predicted {y}", scale=kind)
    )  # fmt: skip
    colour = CATEGORY_COLOURS[0]
    filled = alt.Chart(points).mark_point(size=45, color=colour, filled=True, opacity=0.8)
    hollow = alt.Chart(heldout).mark_point(size=60, color=CATEGORY_COLOURS[1], filled=False, opacity=1)
    return alt.layer(
        level,
        filled.encode(x=x, y="fitted:Q", tooltip=["row:N", "y:Q", "fitted:Q"]),
        hollow.encode(x=x, y="predicted:Q", tooltip=["y:Q", "predicted:Q"]),
    ).properties(title=title)


def slopes_chart(
    cells: pd.DataFrame, lines: pd.DataFrame, y: str = "quality Q", name: str = "slopes"
) -> alt.LayerChart:
    """Cells along each axis, and the slope of each: do all lines lie on one? Both scales are logarithmic.

    cells: columns axis, label, rank, quality. lines: axis, rank, quality, the ends of each; that of the axis "all axes"
    is the common slope, dashed. A click in the legend brings out an axis.
    """
    present = [axis for axis in AXIS_COLOURS if axis in set(cells["axis"])]
    looks = [alt.Scale(domain=present, range=[kind[axis] for axis in present]) for kind in (AXIS_COLOURS, AXIS_SHAPES)]
    legend = alt.Legend(title=None, columns=4, symbolOpacity=1)
    colour, shape = (
        kind("axis:N", scale=look, legend=legend) for kind, look in zip((alt.Color, alt.Shape), looks, strict=True)
    )
    scale = alt.Scale(type="log", nice=False, padding=14)
    at = {"x": alt.X("rank:Q", title="RankMe (directions)", scale=scale), "y": alt.Y("quality:Q", title=y, scale=scale)}
    chosen = alt.selection_point(fields=["axis"], bind="legend", name=f"{name}_axis")
    clear = alt.when(chosen).then(alt.value(0.9)).otherwise(alt.value(0.12))
    numbers = {column: rounded(cells[column].to_numpy(), 4) for column in ("rank", "quality")}
    dots = alt.Chart(cells.assign(**numbers)).mark_point(size=60, filled=True)
    dots = dots.encode(**at, color=colour, shape=shape, opacity=clear, tooltip=["axis", "label", "rank", "quality"])
    common = lines["axis"] == "all axes"
    own = alt.Chart(lines[~common]).mark_line(strokeWidth=2).encode(**at, color=colour, opacity=clear)
    dashed = alt.Chart(lines[common]).mark_line(color=INK, strokeDash=[6, 4], strokeWidth=2.5).encode(**at)
    return alt.layer(dashed, own, dots.add_params(chosen)).properties(width=WIDTH, height=320)
