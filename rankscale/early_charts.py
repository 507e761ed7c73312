"""Figures of early prediction: the phases of RankMe, a number's worth along training, what an early look may cost."""

from __future__ import annotations

import altair as alt
import pandas as pd

from rankscale.arms import MIDDLE, SEVERAL
from rankscale.axis_charts import COLOURS
from rankscale.charts import CATEGORY_COLOURS, INK, WIDTH, round_table, sliders


def paths_chart(table: pd.DataFrame, name: str = "paths") -> alt.Chart:
    """RankMe over training, one line an arm in the colour of its axis; below one chooses whether to divide by step 0.

    The centre is drawn thick, arms that moved along several axes are dashed.
    table: columns label, axis, step, rankme, relative; one row an arm and step.
    """
    present = [axis for axis in COLOURS if axis in set(table["axis"])]
    scale = alt.Scale(domain=present, range=[COLOURS[axis] for axis in present])
    options = ["share of RankMe before training", "RankMe (directions)"]
    bind = alt.binding_radio(options=options, name="shown: ")
    shown = alt.param(name=f"{name}_shown", value=options[0], bind=bind)
    chosen = alt.selection_point(fields=["axis"], bind="legend", name=f"{name}_axis")
    last = int(table["step"].max())
    ticks = [0] + [tick for tick in (16, 64, 256, 1024) if tick < 0.8 * last] + [last]
    x = alt.X(
        "step:Q", title="training step", scale=alt.Scale(type="symlog", constant=10, domain=[0, last], nice=False)
    )
    line = alt.Chart(round_table(table)).transform_calculate(
        y=f"{shown.name} == '{options[0]}' ? datum.relative : datum.rankme"
    )
    thick = alt.when(alt.datum.axis == MIDDLE).then(alt.value(4)).otherwise(alt.value(1.8))
    dash = alt.when(alt.datum.axis == SEVERAL).then(alt.value([4, 3])).otherwise(alt.value([1, 0]))
    line = line.mark_line().encode(
        strokeWidth=thick,
        strokeDash=dash,
        x=x.axis(values=ticks, format=",d"),
        y=alt.Y("y:Q", title=None, scale=alt.Scale(zero=False, padding=8)),
        detail="label:N",
        color=alt.Color("axis:N", scale=scale, legend=alt.Legend(title=None, columns=4, symbolOpacity=1)),
        opacity=alt.when(chosen).then(alt.value(0.9)).otherwise(alt.value(0.08)),
        tooltip=["label:N", "step:Q", "rankme:Q", "relative:Q"],
    )
    return line.add_params(shown, chosen).properties(width=WIDTH, height=260)


def training_chart(table: pd.DataFrame, title: str, name: str = "training") -> alt.LayerChart:
    """A statistic along training with its band, one colour and shape a series; a rule marks zero.

    table: columns share (of the steps), series, estimate, low, high, and perhaps measure, chosen below the figure. A
    click on a series in the legend brings out its band.
    """
    near, series = round_table(table), list(dict.fromkeys(table["series"]))
    params, base = [], alt.Chart(near)
    if "measure" in near:
        options = list(dict.fromkeys(near["measure"]))
        bind = alt.binding_select(options=options, name="foretold: ")
        menu = alt.param(name=f"{name}_measure", value=options[0], bind=bind)
        params, base = [menu], base.transform_filter(alt.datum.measure == menu)
    chosen = alt.selection_point(fields=["series"], bind="legend", name=f"{name}_series")
    colours = alt.Scale(domain=series, range=[*CATEGORY_COLOURS[:5], INK][: len(series)])
    legend = alt.Legend(title=None, columns=2, labelLimit=200, symbolOpacity=1)
    colour = alt.Color("series:N", scale=colours, legend=legend)
    shape = alt.Shape("series:N", scale=alt.Scale(domain=series), legend=legend)
    ticks = [share for share in (0, 0.008, 0.032, 0.128, 0.512, 1) if share <= near["share"].max()]
    # Step 0 has a place of its own: below a half per cent the axis is linear.
    scale = alt.Scale(type="symlog", constant=0.005, domain=[0, 1], nice=False)
    x = alt.X("share:Q", title="share of the training steps", scale=scale)
    x = x.axis(values=ticks, format=".1~%", labelOverlap="greedy")
    y = alt.Y("low:Q", title=title, scale=alt.Scale(zero=False, padding=4))
    band = base.mark_area().encode(
        x=x, y=y, y2="high:Q", color=colour, opacity=alt.when(chosen).then(alt.value(0.14)).otherwise(alt.value(0.02))
    )
    clear = alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.2))
    line = base.mark_line().encode(x=x, y="estimate:Q", color=colour, opacity=clear)
    dots = base.mark_point(size=45).encode(
        x=x, y="estimate:Q", color=colour, shape=shape, opacity=clear,
        tooltip=["series:N", alt.Tooltip("share:Q", format=".1~%"), "estimate:Q", "low:Q", "high:Q"],
    )  # fmt: skip
    zero = alt.Chart(pd.DataFrame({"low": [0.0]})).mark_rule(color=INK, strokeDash=[4, 4]).encode(y=y)
    layers = alt.layer(zero, band.add_params(chosen), line, dots)
    return layers.add_params(*params).properties(width=WIDTH, height=250)


def look_explorer() -> alt.LayerChart:
    """What a budget buys when it is spent on many short runs and one long one, computed in the reader's browser.

    Sliders: the budget in whole runs, and the correlation of the number with final quality, early and at the end. The
    expected largest of n normal numbers is Blom's (1958) approximation.
    """
    knobs = {
        "look_budget": (3, 2, 16, 1, "budget (whole runs) "),
        "look_early": (0.4, 0, 1, 0.05, "correlation, early "),
        "look_late": (0.7, 0, 1, 0.05, "correlation, at the end "),
    }
    kinds = ["look early, finish one", "finish all, then choose"]

    def best_of(n: str) -> str:
        return f"quantileNormal(({n} - 0.375) / ({n} + 0.25), 0, 1)"

    base = alt.Chart(alt.sequence(2, 101, as_="percent")).transform_calculate(
        share="datum.percent / 100",
        runs="1 + (look_budget - 1) * 100 / datum.percent",
        late=f"look_late * {best_of('look_budget')}",
    )
    base = base.transform_calculate(early=f"look_early * {best_of('datum.runs')}").transform_fold(["early", "late"])
    base = base.transform_calculate(kind=f"datum.key == 'early' ? '{kinds[0]}' : '{kinds[1]}'")
    order = alt.Scale(domain=kinds)
    x = alt.X("share:Q", title="share of training at which one looks", scale=alt.Scale(type="log", nice=False))
    lines = base.mark_line(strokeWidth=2.5).encode(
        x=x.axis(values=[0.02, 0.05, 0.1, 0.2, 0.5, 1], format=".0~%"),
        y=alt.Y("value:Q", title="expected gain (SD of quality)", scale=alt.Scale(domainMin=0)),
        color=alt.Color("kind:N", title=None, scale=order, legend=alt.Legend(columns=1)),
        strokeDash=alt.StrokeDash("kind:N", title=None, scale=order),
        tooltip=["kind:N", alt.Tooltip("share:Q", format=".0%"), alt.Tooltip("runs:Q", format=".1f"), "value:Q"],
    )
    return alt.layer(lines).add_params(*sliders(knobs)).properties(width=WIDTH, height=220)
