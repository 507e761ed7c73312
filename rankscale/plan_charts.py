"""Figures of planning: what each width would give, a planner that moves in the page, predictions beside runs."""

from __future__ import annotations

import altair as alt
import pandas as pd

from rankscale.charts import CATEGORY_COLOURS, INK, WIDTH, round_table

SHAPES = ["square", "triangle-up", "cross"]
KNOWN, BEYOND = "within three times the records", "further out"


def _layers(base: alt.Chart, quality: str) -> alt.LayerChart:
    """Predicted quality over width, with intervals, marked by how far the records are; a rule at the best width."""
    x = alt.X("width:Q", title="width (dimensions)", scale=alt.Scale(type="log", nice=False, padding=12))
    x = x.axis(values=[32, 64, 128, 256, 512, 1024], format="d")
    y = alt.Y("q:Q", title=f"predicted {quality}", scale=alt.Scale(zero=False, padding=6))
    names = {"steps": ",", "heard_h": ",.3~r", "epochs": ".3~r", "q": ".3f", "low": ".3f", "high": ".3f"}
    tips = [alt.Tooltip("width:Q"), *(alt.Tooltip(f"{name}:Q", format=form) for name, form in names.items())]
    colours = alt.Scale(domain=[KNOWN, BEYOND], range=CATEGORY_COLOURS[:2])
    shapes = alt.Scale(domain=[KNOWN, BEYOND], range=["circle", "triangle-up"])
    colour = alt.Color("place:N", title=None, scale=colours, legend=alt.Legend(columns=1, labelLimit=260))
    shape = alt.Shape("place:N", title=None, scale=shapes)
    low = alt.Y("low:Q", title=f"predicted {quality}", scale=alt.Scale(zero=False, padding=6))
    bars = base.mark_rule(strokeWidth=2).encode(x=x, y=low, y2="high:Q", color=colour)
    dots = base.mark_point(size=70, filled=True, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=tips)
    best = base.transform_joinaggregate(most="max(q)").transform_filter("datum.q >= datum.most")
    rule = best.mark_rule(color=INK, strokeDash=[4, 4]).encode(x=x)
    return alt.layer(rule, base.mark_line(color=INK, strokeWidth=1).encode(x=x, y=y), bars, dots)


def options_chart(options: pd.DataFrame, quality: str = "quality Q") -> alt.LayerChart:
    """What one budget gives at each width.

    options: columns width, steps, heard_h, epochs, q, low, high, place (`KNOWN` or `BEYOND`).
    """
    return _layers(alt.Chart(round_table(options)), quality).properties(width=WIDTH, height=240)


def planner_explorer(rows: pd.DataFrame, quality: str = "quality Q", name: str = "planner") -> alt.VConcatChart:
    """`options_chart` for any of many budgets, worked out beforehand: sliders choose compute and hours of audio.

    rows: those of `options_chart` for every budget, with flop (of the budget), audio_h, and watch, the RankMe to expect
    early. Budgets are numbered in rising order, and sliders take their numbers.
    """
    budgets, hours = sorted(rows["flop"].unique()), sorted(rows["audio_h"].unique())
    rows = rows.assign(
        i=rows["flop"].map({value: i for i, value in enumerate(budgets)}),
        j=rows["audio_h"].map({value: j for j, value in enumerate(hours)}),
    )
    knobs = [
        alt.param(name=f"{name}_{key}", value=start, bind=alt.binding_range(min=0, max=most, step=1, name=label))
        for key, start, most, label in (
            ("compute", len(budgets) // 3, len(budgets) - 1, "compute "),
            ("audio", len(hours) // 2, len(hours) - 1, "hours of audio "),
        )
    ]
    base = alt.Chart(round_table(rows)).transform_filter(f"datum.i == {name}_compute && datum.j == {name}_audio")
    best = base.transform_joinaggregate(most="max(q)").transform_filter("datum.q >= datum.most")
    head = "format(datum.flop, '.2~e') + ' FLOP, ' + format(datum.audio_h, ',') + ' h of audio'"
    plan = "'width ' + datum.width + ', ' + format(datum.steps, ',') + ' steps, ' + format(datum.epochs, '.2~r')"
    plan += " + ' epochs'"
    told = "'Q ' + format(datum.q, '.3f') + ' [' + format(datum.low, '.3f') + ', ' + format(datum.high, '.3f') + ']"
    told += "; RankMe ' + format(datum.watch, '.0f') + ' after a tenth'"
    lines = [
        best.transform_calculate(line=text).mark_text(align="left", fontSize=14 - (i > 0)).encode(
            x=alt.value(0), y=alt.value(9 + 20 * i), text="line:N"
        )
        for i, text in enumerate((head, plan, told))
    ]  # fmt: skip
    words = alt.layer(*lines).properties(width=WIDTH, height=58)
    return alt.vconcat(words, _layers(base, quality).properties(width=WIDTH, height=240)).add_params(*knobs)


def forecast_chart(table: pd.DataFrame, x: str) -> alt.LayerChart:
    """Predictions with their intervals, and what the runs then scored: one line a run, and colours for the predictors.

    table: columns run, by (who predicted), predicted, low, high, measured. x: name of what is predicted.
    """
    table = round_table(table)
    runs, who = list(dict.fromkeys(table["run"])), list(dict.fromkeys(table["by"]))
    scale = alt.Scale(zero=False, padding=6)
    y = alt.Y("run:N", title=None, sort=runs, axis=alt.Axis(labelLimit=170))
    offset = alt.YOffset("by:N", sort=who)
    looks = [alt.Scale(domain=who, range=kind[: len(who)]) for kind in (CATEGORY_COLOURS, SHAPES)]
    legend = alt.Legend(columns=1, labelLimit=260)
    colour = alt.Color("by:N", title=None, scale=looks[0], legend=legend)
    shape = alt.Shape("by:N", title=None, scale=looks[1], legend=legend)
    base = alt.Chart(table)
    told = ["run:N", "by:N", "predicted:Q", "low:Q", "high:Q", "measured:Q"]
    bars = base.mark_rule(strokeWidth=3, opacity=0.6).encode(
        x=alt.X("low:Q", title=x, scale=scale), x2="high:Q", y=y, yOffset=offset, color=colour
    )
    dots = base.mark_point(size=60, filled=True, opacity=1).encode(
        x=alt.X("predicted:Q", title=x, scale=scale), y=y, yOffset=offset, color=colour, shape=shape, tooltip=told
    )
    seen = base.mark_tick(color=INK, thickness=3, size=26).encode(x="measured:Q", y=y, tooltip=told)
    return alt.layer(bars, dots, seen).properties(width=WIDTH - 60, height=alt.Step(20))


def frontier_chart(table: pd.DataFrame, quality: str = "quality Q") -> alt.LayerChart:
    """The best predicted quality over compute, one line for each amount of audio, pale where records are far.

    table: columns flop, audio_h, q, width, epochs, place; audio_h is in hours.
    """
    table = round_table(table).assign(audio=[f"{hours:,.4g} h" for hours in table["audio_h"]])
    order = list(dict.fromkeys(table.sort_values("audio_h")["audio"]))
    x = alt.X("flop:Q", title="training compute (FLOP)", scale=alt.Scale(type="log", nice=False)).axis(format=".0e")
    y = alt.Y("q:Q", title=f"best predicted {quality}", scale=alt.Scale(zero=False, padding=6))
    colour = alt.Color("audio:N", title="different audio", sort=order, scale=alt.Scale(domain=order))
    shape = alt.Shape("audio:N", title="different audio", sort=order, scale=alt.Scale(domain=order))
    tips = ["audio:N", alt.Tooltip("flop:Q", format=".2~e"), "q:Q", "width:Q", alt.Tooltip("epochs:Q", format=".3~r")]
    lines = alt.Chart(table).mark_line(strokeWidth=1.5).encode(x=x, y=y, color=colour)
    opacity = alt.when(alt.datum.place == KNOWN).then(alt.value(1)).otherwise(alt.value(0.45))
    dots = alt.Chart(table).mark_point(size=50, filled=True).encode(
        x=x, y=y, color=colour, shape=shape, opacity=opacity, tooltip=tips
    )  # fmt: skip
    return alt.layer(lines, dots).properties(width=WIDTH, height=260)
