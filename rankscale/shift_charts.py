"""Figures of chapter 19: what was trained on against what is measured on, and shares of families in the measured clips.

Families keep their colours (`charts.FAMILY_COLOURS`) and have a shape each.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from rankscale.axis_charts import PROBE_NAMES, SUITE_NAMES
from rankscale.charts import FAMILY_COLOURS, HEAT, INK, WIDTH, round_table, rounded
from rankscale.config import FAMILIES
from rankscale.shift import MIXTURE, RECORDINGS

ORDER = [*FAMILIES, MIXTURE, RECORDINGS]
SHAPES = dict(zip((*FAMILIES, MIXTURE), ("circle", "square", "triangle-up", "diamond"), strict=True))


def _family_marks(names: Sequence[str]) -> tuple[alt.Color, alt.Shape]:
    """Colour and shape of what was trained on, with one legend."""
    scale = alt.Scale(domain=list(names), range=[FAMILY_COLOURS[name] for name in names])
    shapes = alt.Scale(domain=list(names), range=[SHAPES[name] for name in names])
    legend = alt.Legend(title="trained on", symbolOpacity=1)
    return alt.Color("trained:N", scale=scale, legend=legend), alt.Shape("trained:N", scale=shapes, legend=legend)


def _trained(table: pd.DataFrame) -> list[str]:
    return [name for name in ORDER if name in set(table["trained"])]


def matrix_chart(table: pd.DataFrame, column: str, title: str) -> alt.LayerChart:
    """A square for each pair of what was trained on and `across`: the mean of a column over seeds, written into it.

    table: columns trained, across, and the column. A frame marks the pairs that are the same.
    """
    means = table.groupby(["trained", "across"], as_index=False)[column].mean()
    middle = (means[column].min() + means[column].max()) / 2
    means = round_table(means).assign(bright=means[column] > middle, same=means["trained"] == means["across"])
    seen = [name for name in [*ORDER, "all"] if name in set(means["across"])]
    x = alt.X("across:N", title=None, sort=seen).axis(orient="top", labelAngle=-30, labelOverlap=False)
    y = alt.Y("trained:N", title="trained on", sort=_trained(means))
    scale = alt.Scale(range=HEAT, interpolate="rgb")
    base = alt.Chart(means).encode(x=x, y=y)
    squares = base.mark_rect().encode(
        color=alt.Color(f"{column}:Q", title=title, scale=scale), tooltip=["trained", "across", column]
    )
    ink = alt.when("datum.bright").then(alt.value("#000000")).otherwise(alt.value("#ffffff"))
    text = base.mark_text(fontSize=12).encode(text=alt.Text(f"{column}:Q", format=".3~r"), color=ink)
    frames = base.transform_filter("datum.same").mark_rect(fillOpacity=0, stroke=INK, strokeWidth=3)
    return alt.layer(squares, frames, text).properties(width=WIDTH - 170, height={"step": 42})


def spectra_chart(table: pd.DataFrame) -> alt.LayerChart:
    """Singular values as shares of their sum, one line for each audio; a menu chooses what was trained on.

    table: columns trained, measured, index (from 1), share (positive).
    """
    table = round_table(table, exact=["index"])
    names = [name for name in ORDER if name in set(table["measured"])]
    menu = alt.param(
        name="spectra_trained", value=_trained(table)[0],
        bind=alt.binding_select(options=_trained(table), name="trained on: "),
    )  # fmt: skip
    colours = alt.Scale(domain=names, range=[FAMILY_COLOURS.get(name, INK) for name in names])
    shapes = alt.Scale(domain=names, range=[SHAPES.get(name, "cross") for name in names])
    legend = alt.Legend(title="measured on", columns=3, symbolOpacity=1)
    base = alt.Chart(table).transform_filter(alt.datum.trained == menu)
    base = base.encode(
        x=alt.X("index:Q", title="index of the singular value", scale=alt.Scale(type="log", nice=False)),
        y=alt.Y("share:Q", title="share of the sum", scale=alt.Scale(type="log")),
        color=alt.Color("measured:N", scale=colours, legend=legend),
        tooltip=list(table.columns),
    )
    dots = base.mark_point(size=25, filled=True, opacity=1)
    dots = dots.encode(shape=alt.Shape("measured:N", scale=shapes, legend=legend))
    return alt.layer(base.mark_line(strokeWidth=1.5), dots).add_params(menu).properties(width=WIDTH, height=260)


def history_chart(table: pd.DataFrame) -> alt.VConcatChart:
    """Three numbers during training, one panel each, one line a run in the colour of what it was trained on.

    table: columns trained, seed, step, rankme, top (the largest singular value's share of their sum), heldout_loss.
    """
    table = round_table(table)
    colour, shape = _family_marks(_trained(table))
    last = int(table["step"].max())
    ticks = [0, *(step for step in (10, 100, 1000) if step < 0.4 * last), last]
    scale = alt.Scale(type="symlog", constant=10, domain=[0, last], nice=False)
    x = alt.X("step:Q", scale=scale).axis(values=ticks, format=",d")
    titles = {"rankme": "RankMe", "top": "largest share", "heldout_loss": "held-out loss"}
    base = alt.Chart(table).encode(detail="seed:N", color=colour, tooltip=list(table.columns))
    panels = []
    for column, title in titles.items():
        y = alt.Y(f"{column}:Q", title=title, scale=alt.Scale(zero=False, padding=6))
        across = x.title("training step" if column == "heldout_loss" else None)
        line = base.mark_line(strokeWidth=1.5).encode(x=across, y=y)
        panels.append(line + base.mark_point(size=30, filled=True, opacity=1).encode(x=across, y=y, shape=shape))
    return alt.vconcat(*(panel.properties(width=WIDTH - 20, height=110) for panel in panels))


def foreign_chart(table: pd.DataFrame, probe: str = "linear") -> alt.LayerChart:
    """Quality against RankMe, one point a run; menus choose the audio that rank is measured on, and the tasks.

    table: `shift.both`.
    """
    table = table[table["probe"] == probe]
    tasks = table["family"].replace("all", "all families") + ", " + table["suite"].map(SUITE_NAMES)
    table = round_table(table[["trained", "seed", "measured", "rankme", "q"]].assign(tasks=tasks))
    menus = []
    for name, column, label in (("rank", "measured", "RankMe measured on: "), ("tasks", "tasks", "Q of tasks: ")):
        options = sorted(
            table[column].unique(), key=lambda each: (each not in ORDER, ORDER.index(each) if each in ORDER else 0)
        )
        bind = alt.binding_select(options=options, name=label)
        menus.append(alt.param(name=f"foreign_{name}", value=options[0], bind=bind))
    colour, shape = _family_marks(_trained(table))
    x = alt.X("rankme:Q", title="RankMe on the chosen audio (directions)", scale=alt.Scale(zero=False, padding=16))
    y = alt.Y("q:Q", title=f"Q, {PROBE_NAMES[probe]} probe", scale=alt.Scale(zero=False, padding=16))
    chosen = (alt.datum.measured == menus[0]) & (alt.datum.tasks == menus[1])
    base = alt.Chart(table).transform_filter(chosen)
    dots = base.mark_point(size=90, filled=True, opacity=0.9)
    dots = dots.encode(x=x, y=y, color=colour, shape=shape, tooltip=list(table.columns))
    return alt.layer(dots).add_params(*menus).properties(width=WIDTH, height=260)


def regret_chart(table: pd.DataFrame) -> alt.LayerChart:
    """Quality lost by choosing the corpus with the highest RankMe: one row a family of tasks, one point an audio.

    table: `shift.choices`. Points on audio like that of the tasks are filled.
    """
    table = round_table(table).assign(
        tasks=table["family"].replace("all", "all families") + ", " + table["suite"],
        audio=np.where(table["match"], "like the tasks'", "foreign"),
    )
    names = [name for name in ORDER if name in set(table["measured"])]
    colours = alt.Scale(domain=names, range=[FAMILY_COLOURS.get(name, INK) for name in names])
    shapes = alt.Scale(domain=names, range=[SHAPES.get(name, "cross") for name in names])
    legend = alt.Legend(title="RankMe measured on", columns=3, symbolOpacity=1)
    base = alt.Chart(table).encode(
        y=alt.Y("tasks:N", title=None, sort=list(dict.fromkeys(table["tasks"]))),
        yOffset=alt.YOffset("measured:N", sort=names),
    )
    marks = {
        "x": alt.X("regret:Q", title="Q lost by the choice (grey: by a blind one)", scale=alt.Scale(padding=10)),
        "color": alt.Color("measured:N", scale=colours, legend=legend),
        "shape": alt.Shape("measured:N", scale=shapes, legend=legend),
        "tooltip": list(table.columns),
    }
    blind = base.mark_tick(color=INK, thickness=2).encode(x="blind:Q")
    like = base.transform_filter("datum.match").mark_point(size=60, opacity=1, filled=True).encode(**marks)
    foreign = base.transform_filter("!datum.match").mark_point(size=60, opacity=1, filled=False).encode(**marks)
    return alt.layer(blind, foreign, like).properties(width=WIDTH - 130, height={"step": 13})


def triangle_chart(table: pd.DataFrame, column: str = "rankme", title: str = "RankMe") -> alt.LayerChart:
    """RankMe over the shares of three families among the measured clips; a menu chooses what was trained on.

    table: `shift.mixed_ranks` of `shift.triangle`, with a column trained. A corner is one family alone; the point with
    the highest number is ringed.
    """
    left, right, top = FAMILIES
    side = np.sqrt(3) / 2
    table = round_table(table).assign(x=table[right] + table[top] / 2, y=side * table[top])
    table = table.assign(ring=table[column] == table.groupby("trained")[column].transform("max"))
    names = _trained(table)
    menu = alt.param(
        name="triangle_trained", value=names[-1], bind=alt.binding_select(options=names, name="trained on: ")
    )
    hidden = alt.Axis(grid=False, ticks=False, labels=False, domain=False, title=None)
    x = alt.X("x:Q", axis=hidden, scale=alt.Scale(domain=[-0.16, 1.16], nice=False))
    y = alt.Y("y:Q", axis=hidden, scale=alt.Scale(domain=[-0.12, side + 0.16], nice=False))
    shown = alt.Chart(table).transform_filter(alt.datum.trained == menu)
    tooltip = [*(alt.Tooltip(f"{name}:Q", format=".0%") for name in FAMILIES), alt.Tooltip(f"{column}:Q", title=title)]
    colour = alt.Color(f"{column}:Q", title=title, scale=alt.Scale(range=HEAT, zero=False, interpolate="rgb"))
    dots = shown.mark_circle(size=420, opacity=1).encode(x=x, y=y, color=colour, tooltip=tooltip)
    ring = shown.transform_filter("datum.ring").mark_point(size=560, color=INK, strokeWidth=3, filled=False)
    told = " + ', ' + ".join(f"format(datum.{name}, '.0%') + ' {name}'" for name in FAMILIES)
    text = shown.transform_filter("datum.ring").transform_calculate(
        told=f"'highest: ' + format(datum.{column}, '.3~r') + ' with ' + {told}"
    )
    text = text.mark_text(align="left", fontSize=12, color=INK)
    corners = pd.DataFrame({"x": [0, 1, 0.5], "y": [-0.09, -0.09, side + 0.07], "name": [left, right, top]})
    labels = alt.Chart(corners).mark_text(fontSize=13, fontWeight=600, color=INK).encode(x=x, y=y, text="name:N")
    layers = [dots, ring.encode(x=x, y=y), text.encode(x=alt.value(0), y=alt.value(4), text="told:N"), labels]
    return alt.layer(*layers).add_params(menu).properties(width=340, height=296)


def share_chart(table: pd.DataFrame, column: str = "rankme", title: str = "RankMe") -> alt.LayerChart:
    """RankMe over the share of one family among the measured clips; a slider reads it off for every encoder.

    table: columns trained, family, share (of that family, the others sharing the rest evenly), and the column.
    """
    table = round_table(table[["trained", "family", "share", column]])
    names, steps = _trained(table), np.sort(table["share"].unique())
    family = alt.param(
        name="share_family", value=FAMILIES[0], bind=alt.binding_select(options=list(FAMILIES), name="share of: ")
    )
    bind = alt.binding_range(min=0, max=1, step=float(rounded(np.diff(steps)[:1])[0]), name="share ")
    slider = alt.param(name="share_at", value=float(steps[len(steps) // 3]), bind=bind)
    colour, _ = _family_marks(names)
    dash = alt.StrokeDash("trained:N", scale=alt.Scale(domain=names), legend=alt.Legend(title="trained on"))
    x = alt.X("share:Q", title="share of the chosen family among the clips", axis=alt.Axis(format="%"))
    y = alt.Y(f"{column}:Q", title=title, scale=alt.Scale(zero=False, padding=8))
    base = alt.Chart(table).transform_filter(alt.datum.family == family)
    at = base.transform_filter("abs(datum.share - share_at) < 1e-6")
    lines = base.mark_line().encode(x=x, y=y, color=colour, strokeDash=dash, tooltip=list(table.columns))
    rule = at.mark_rule(color=INK, strokeDash=[4, 4]).encode(x=x)
    dots = at.mark_point(size=60, filled=True, opacity=1).encode(x=x, y=y, color=colour)
    text = at.mark_text(align="left", dx=7, dy=-9, fontSize=12).encode(
        x=x, y=y, color=colour, text=alt.Text(f"{column}:Q", format=".3~r")
    )
    return alt.layer(lines, rule, dots, text).add_params(family, slider).properties(width=WIDTH, height=260)
