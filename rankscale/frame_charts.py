"""Figures of frames and long audio: ranks of frames and clips, where variance lies, onsets found, rank by length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import pandas as pd

from rankscale.charts import CATEGORY_COLOURS, INK, WIDTH, round_table
from rankscale.sound.tasks import Event

KINDS = {"trained": "circle", "untrained": "square", "short": "diamond", "log-Mel": "cross"}
PARTS = {"between": "between clips", "place": "within, by place alone", "rest": "within, other"}


def _menu(name: str, label: str, options: Mapping[str, str]) -> alt.Parameter:
    """Columns to choose from, by their names in words."""
    bind = alt.binding_select(options=list(options), labels=list(options.values()), name=f"{label}: ")
    return alt.param(name=name, value=next(iter(options)), bind=bind)


def encoders_chart(
    table: pd.DataFrame, across: Mapping[str, str], up: Mapping[str, str], name: str = "encoders", equal: bool = False
) -> alt.LayerChart:
    """One point an encoder; what stands on either axis is chosen below the figure.

    table: columns label, kind (of KINDS), width, seed, and those of across and up, which give their names in words. A
    mapping of one column needs no menu. equal: draw the line on which both are the same.
    """
    columns = dict.fromkeys(["label", "kind", "width", "seed", *across, *up])
    shown = round_table(table[list(columns)].assign(width=table["width"].astype(str)))
    menus = {side: _menu(f"{name}_{side}", label, columns) for side, label, columns in
             (("x", "across", across), ("y", "up", up)) if len(columns) > 1}  # fmt: skip
    chart = alt.Chart(shown)
    for side, columns in (("x", across), ("y", up)):
        chosen = f"datum[{menus[side].name}]" if side in menus else f"datum[{next(iter(columns))!r}]"
        chart = chart.transform_calculate(**{side: chosen})
    titles = {side: "chosen below" if len(columns) > 1 else next(iter(columns.values()))
              for side, columns in (("x", across), ("y", up))}  # fmt: skip
    x = alt.X("x:Q", title=titles["x"], scale=alt.Scale(zero=False, nice=False, padding=14))
    y = alt.Y("y:Q", title=titles["y"], scale=alt.Scale(zero=False, nice=False, padding=14))
    widths = alt.Scale(domain=sorted(shown["width"].unique(), key=int), range=CATEGORY_COLOURS)
    kinds = [kind for kind in KINDS if kind in set(shown["kind"])]
    shapes = alt.Scale(domain=kinds, range=[KINDS[kind] for kind in kinds])
    dots = chart.mark_point(size=70, opacity=0.85).encode(
        x=x, y=y, color=alt.Color("width:N", scale=widths), shape=alt.Shape("kind:N", scale=shapes, title=None),
        tooltip=["label:N", "seed:O", "x:Q", "y:Q"],
    )  # fmt: skip
    layers = [dots]
    if equal:
        both = shown[list(dict.fromkeys([*across, *up]))].to_numpy()
        ends = pd.DataFrame({"x": [both.min(), both.max()], "y": [both.min(), both.max()]})
        layers.insert(0, alt.Chart(ends).mark_line(color=INK, strokeDash=[4, 4], strokeWidth=1).encode(x=x, y=y))
    return alt.layer(*layers).add_params(*menus.values()).properties(width=WIDTH, height=280)


def shares_chart(table: pd.DataFrame) -> alt.Chart:
    """Where the variance of frames lies: a bar an encoder, in parts that add up to one.

    table: columns label, within_share, position_share; rows with one label are averaged, and keep their order.
    """
    means = table.groupby("label", sort=False)[["within_share", "position_share"]].mean().reset_index()
    means = means.assign(between=1 - means["within_share"], place=means["position_share"])
    means = means.assign(rest=means["within_share"] - means["place"])
    long = round_table(means.melt(["label"], list(PARTS), "part", "share"))
    long["order"] = long["part"].map(list(PARTS).index)
    long["part"] = long["part"].map(PARTS)
    colours = alt.Scale(domain=list(PARTS.values()), range=CATEGORY_COLOURS[: len(PARTS)])
    return (
        alt.Chart(long)
        .mark_bar(stroke="white", strokeWidth=0.5)
        .encode(
            x=alt.X("share:Q", title="share of the variance of frames", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("label:N", title=None, sort=list(means["label"])).axis(labelLimit=170),
            color=alt.Color("part:N", title=None, scale=colours),
            order="order:Q",
            tooltip=["label:N", "part:N", "share:Q"],
        )
        .properties(width=WIDTH - 110, height={"step": 17})
    )


def lengths_chart(table: pd.DataFrame, measures: Mapping[str, str], name: str = "lengths") -> alt.LayerChart:
    """A number that is chosen below, by seconds heard; one colour an encoder, dashed where scenes change.

    table: columns seconds, encoder, arrangement and those of measures, with their names in words.
    """
    shown = round_table(table[["seconds", "encoder", "arrangement", *measures]])
    menu = _menu(f"{name}_measure", "shown", measures)
    seconds = sorted(shown["seconds"].unique())
    look = alt.Axis(values=seconds, format="~g")
    x = alt.X("seconds:Q", title="seconds heard", scale=alt.Scale(type="log", nice=False, padding=12), axis=look)
    y = alt.Y("y:Q", title="chosen below", scale=alt.Scale(zero=False, padding=10))
    colours = alt.Scale(domain=list(shown["encoder"].unique()), range=CATEGORY_COLOURS)
    dashes = alt.Scale(domain=list(shown["arrangement"].unique()), range=[[1, 0], [6, 4], [2, 3]])
    base = alt.Chart(shown).transform_calculate(y=f"datum[{menu.name}]")
    colour = alt.Color("encoder:N", scale=colours, title=None)
    line = base.mark_line().encode(
        x=x, y=y, color=colour, strokeDash=alt.StrokeDash("arrangement:N", scale=dashes, title=None)
    )
    shapes = alt.Shape("encoder:N", scale=alt.Scale(domain=list(shown["encoder"].unique())), title=None)
    dots = base.mark_point(size=45, opacity=1).encode(
        x=x, y=y, color=colour, shape=shapes, tooltip=["encoder:N", "arrangement:N", "seconds:Q", "y:Q"]
    )
    return alt.layer(line, dots).add_params(menu).properties(width=WIDTH, height=260)


def heard_chart(
    at_ms: np.ndarray, probabilities: np.ndarray, events: Sequence[Event], labels: Sequence[str], name: str = "heard"
) -> alt.VConcatChart:
    """What a probe says of each frame of a clip, above what happened; a slider sets the threshold.

    at_ms: (frame,). probabilities: (frame, label), 0 to 1. events: the truth; labels: in the order of the columns.
    """
    frame = pd.DataFrame(probabilities, columns=list(labels)).assign(seconds=np.asarray(at_ms) / 1000)
    long = round_table(frame.melt(["seconds"], list(labels), "label", "probability"))
    truth = pd.DataFrame(
        [(e.label, e.start_ms / 1000, e.end_ms / 1000) for e in events], columns=["label", "on", "off"]
    )
    bind = alt.binding_range(min=0.05, max=0.95, step=0.05, name="threshold: ")
    threshold = alt.param(name=f"{name}_threshold", value=0.5, bind=bind)
    colours = alt.Scale(domain=list(labels), range=CATEGORY_COLOURS[: len(labels)])
    colour = alt.Color("label:N", scale=colours, title=None)
    x = alt.X("seconds:Q", title=None, scale=alt.Scale(domain=[0, float(frame["seconds"].max())], nice=False))
    dash = alt.StrokeDash("label:N", scale=alt.Scale(domain=list(labels)), title=None)
    lines = alt.Chart(long).mark_line(strokeWidth=1.5)
    lines = lines.encode(x=x, y=alt.Y("probability:Q", scale=alt.Scale(domain=[0, 1])), color=colour, strokeDash=dash)
    rule = alt.Chart(pd.DataFrame({"none": [0]})).transform_calculate(probability=threshold.name)
    rule = rule.mark_rule(color=INK, strokeDash=[4, 4]).encode(y="probability:Q")
    row = alt.Y("label:N", title=None, sort=list(labels))
    found = alt.Chart(long).transform_filter(alt.datum.probability > threshold)
    found = found.mark_tick(thickness=4, size=9, opacity=0.9).encode(x=x.title("time (s)"), y=row, color=colour)
    told = alt.Chart(truth).mark_bar(height=22, opacity=0.3, color=INK).encode(x="on:Q", x2="off:Q", y=row)
    above = alt.layer(lines, rule).properties(width=WIDTH, height=110)
    below = alt.layer(told, found).properties(width=WIDTH, height=26 * len(labels))
    return alt.vconcat(above, below, spacing=6).add_params(threshold)
