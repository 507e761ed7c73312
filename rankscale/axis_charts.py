"""Figures of the chapters that move one variable: what changes along the axis, and whether quality goes with rank.

Dots are runs, a line joins means over seeds, a band spans the seeds from lowest to highest. Untrained encoders are
grey and dashed, so that what an axis does by itself can be told from what training does along it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle, islice

import altair as alt
import numpy as np
import pandas as pd

from rankscale.arms import MIDDLE, SEVERAL, against_centre, less_base
from rankscale.axes import AXES, Axis, Study, pooled_sd
from rankscale.charts import AXIS_COLOURS, AXIS_SHAPES, CATEGORY_COLOURS, INK, WIDTH, round_table, rounded

PROBE_NAMES = {"linear": "linear", "mlp": "MLP", "knn": "kNN", "linear_rp32": "linear, 32 random directions"}
SUITE_NAMES = {"synthetic": "synthetic tasks", "real": "real tasks"}
UNTRAINED, TRAINED = "untrained", "trained"

_near = partial(round_table, exact=("value",))


def measure_name(probe: str, suite: str) -> str:
    """How a Q is called in menus: "linear, synthetic tasks"."""
    return f"{PROBE_NAMES[probe]}, {SUITE_NAMES[suite]}"


def quality_long(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """One row for each run, probe and suite: `columns`, measure (its name in menus), q."""
    names = {f"q_{p}_{s}": measure_name(p, s) for s in SUITE_NAMES for p in PROBE_NAMES}
    present = {column: name for column, name in names.items() if column in table}
    long = table.melt(list(columns), list(present), "measure", "q").dropna(subset=["q"])
    return long.assign(measure=long["measure"].map(present))


def _menu(measures: Sequence[str], name: str) -> alt.Parameter:
    bind = alt.binding_select(options=list(measures), name="Q by probe and tasks: ")
    return alt.param(name=name, value=measures[0], bind=bind)


def _across(axis: Axis, values: Sequence[float], title: bool = True) -> alt.X:
    """The axis itself: its values as ticks, logarithmic where it is scaled by factors."""
    low, high = min(values), max(values)
    pad = (high / low) ** 0.06 if axis.log else 0.06 * (high - low)
    domain = [low / pad, high * pad] if axis.log else [low - pad, high + pad]
    scale = alt.Scale(type="log" if axis.log else "linear", domain=domain, nice=False)
    look = alt.Axis(values=list(values), format=_ticks(high), labelOverlap="greedy", labels=title)
    return alt.X("value:Q", title=axis.label if title else None, scale=scale, axis=look)


def _ticks(high: float) -> str:
    """How the values of an axis are written: 65,536 in full; with a precision, or Vega rounds 0.875 to 0.9."""
    return ",d" if high >= 1000 else ".4~g"


def along_chart(study: Study, rank: str = "rankme") -> alt.VConcatChart:
    """Three panels over one axis: RankMe, alpha-ReQ, and Q by a probe and suite that the reader chooses."""
    both = pd.concat([study.runs.assign(kind=TRAINED), study.untrained.assign(kind=UNTRAINED)])
    menu = _menu(list(quality_long(study.runs, ["value"])["measure"].unique()), f"along_{study.axis.name}_measure")
    quality = quality_long(both, ["value", "seed", "kind"])
    panels = []
    for column, title in ((rank, "RankMe (directions)"), ("alpha", "alpha-ReQ (decay)")):
        table = _near(both[["value", "seed", "kind", column]].dropna())
        if not table.empty:
            panels.append(_panel(table, column, title, study, labels=False))
    panels.append(_panel(_near(quality), "q", "quality Q", study, labels=True, chosen=menu))
    return alt.vconcat(*panels, spacing=8).add_params(menu)


def _panel(
    table: pd.DataFrame, column: str, title: str, study: Study, labels: bool, chosen: alt.Parameter | None = None
) -> alt.LayerChart:
    name = study.axis.name
    colours = alt.Scale(domain=[TRAINED, UNTRAINED], range=[AXIS_COLOURS[name], INK])
    shapes = alt.Scale(domain=[TRAINED, UNTRAINED], range=[AXIS_SHAPES[name], "circle"])
    dashes = alt.Scale(domain=[TRAINED, UNTRAINED], range=[[1, 0], [4, 4]])
    legend = None if labels else alt.Legend(title=None, symbolOpacity=1)
    y = alt.Y(f"{column}:Q", title=title, scale=alt.Scale(zero=False, padding=8)).axis(tickCount=4)
    base = alt.Chart(table).encode(
        x=_across(study.axis, study.values, labels), color=alt.Color("kind:N", scale=colours, legend=legend)
    )
    if chosen is not None:
        base = base.transform_filter(alt.datum.measure == chosen)
    band = base.mark_area(opacity=0.18).encode(y=y.aggregate("min"), y2=alt.Y2(f"{column}:Q", aggregate="max"))
    line = base.mark_line().encode(
        y=y.aggregate("mean"), strokeDash=alt.StrokeDash("kind:N", scale=dashes, legend=legend)
    )
    shape = alt.Shape("kind:N", scale=shapes, legend=legend)
    dots = base.mark_point(size=40, opacity=0.9).encode(y=y, shape=shape, tooltip=list(table.columns))
    return alt.layer(band, line, dots).properties(width=WIDTH, height=120)


def follow_chart(study: Study, rank: str = "rankme") -> alt.LayerChart:
    """Q against RankMe: one dot a run, a path through the means in the order of the axis, which begins at its label.

    The probe and the tasks are chosen below the figure. Untrained encoders of the same shapes are grey.
    """
    columns = ["value", "seed", rank]
    trained = _near(quality_long(study.runs, columns))
    floors = _near(quality_long(study.untrained, columns))
    menu = _menu(list(trained["measure"].unique()), f"follow_{study.axis.name}_measure")
    x = alt.X(f"{rank}:Q", title="RankMe (directions)", scale=alt.Scale(zero=False, padding=14))
    y = alt.Y("q:Q", title="quality Q", scale=alt.Scale(zero=False, padding=14))
    colour, shape = AXIS_COLOURS[study.axis.name], AXIS_SHAPES[study.axis.name]
    chosen = alt.datum.measure == menu
    tooltip = [
        alt.Tooltip("value:Q", title=study.axis.label),
        "seed:O",
        alt.Tooltip(f"{rank}:Q", title="RankMe"),
        "q:Q",
    ]
    grey = alt.Chart(floors).transform_filter(chosen).mark_point(size=45, color=INK, opacity=0.8, filled=False)
    dots = alt.Chart(trained).transform_filter(chosen).mark_point(size=45, color=colour, shape=shape, opacity=0.6)
    means = trained.groupby(["measure", "value"], as_index=False)[[rank, "q"]].mean()
    means = _near(means.assign(label=[short_value(value) for value in means["value"]]))
    path = alt.Chart(means).transform_filter(chosen)
    line = path.mark_line(color=colour, strokeWidth=2.5, point={"size": 20, "color": colour})
    text = path.mark_text(dy=-12, fontSize=12, fontWeight=600, color=colour)
    layers = [
        grey.encode(x=x, y=y, tooltip=tooltip),
        dots.encode(x=x, y=y, tooltip=tooltip),
        line.encode(x=x, y=y, order="value:Q"),
        text.encode(x=x, y=y, text="label:N"),
    ]
    return alt.layer(*layers).add_params(menu).properties(width=WIDTH, height=280)


def placement_chart(records: pd.DataFrame, mine: pd.DataFrame) -> alt.LayerChart:
    """Q against RankMe: runs as dots, one encoder as a cross with its interval; probe and tasks are chosen below.

    records: columns encoder, steps, seed, rankme, probe, suite, q, or no rows; steps 0 is drawn hollow. mine: rankme,
    low, high, and, with one row for each probe and suite, q, logmel_mean, logmel_meanstd (dashed lines); without these
    it is an upright line in a band.
    """
    probed = "q" in mine
    records, mine = (_near(_measured(table)) for table in (records, mine))
    present = set(mine["measure"] if probed else records["measure"])
    measures = [name for name in (measure_name(p, s) for s in SUITE_NAMES for p in PROBE_NAMES) if name in present]
    menu = _menu(measures or ["none"], "placement_measure")
    across = {"title": "RankMe (directions)", "scale": alt.Scale(zero=False, padding=14)}
    x, low = (alt.X(f"{name}:Q", **across) for name in ("rankme", "low"))
    y = alt.Y("q:Q", title="quality Q", scale=alt.Scale(zero=False, padding=14))

    def chosen(table: pd.DataFrame) -> alt.Chart:
        return alt.Chart(table).transform_filter(alt.datum.measure == menu)

    tooltip = ["encoder:N", "steps:Q", "seed:O", alt.Tooltip("rankme:Q", title="RankMe"), "q:Q"]
    here = {"color": CATEGORY_COLOURS[1], "strokeWidth": 3}
    layers = []
    for kind, filled in ((records["steps"] > 0, True), (records["steps"] == 0, False)):
        look = {"size": 45, "opacity": 0.75, "filled": filled, "color": CATEGORY_COLOURS[0] if filled else INK}
        layers.append(chosen(records[kind]).mark_point(**look).encode(x=x, y=y, tooltip=tooltip))
    if not probed:
        base = alt.Chart(mine).encode(tooltip=["rankme:Q", "low:Q", "high:Q"])
        band = base.mark_rect(color=CATEGORY_COLOURS[1], opacity=0.2).encode(x=low, x2="high:Q")
        return (
            alt.layer(*layers, band, base.mark_rule(**here).encode(x=x))
            .add_params(menu)
            .properties(width=WIDTH, height=280)
        )
    floors = mine.drop(columns="q").melt(["measure"], ["logmel_mean", "logmel_meanstd"], "floor", "q").dropna()
    floors["floor"] = floors["floor"].map({"logmel_mean": "log-Mel, mean", "logmel_meanstd": "log-Mel, mean and SD"})
    rule = chosen(floors).mark_rule(strokeDash=[5, 4], color=INK)
    word = chosen(floors).mark_text(align="left", baseline="bottom", dx=4, dy=-2, fontSize=11)
    cross = chosen(mine).mark_point(shape="cross", size=220, filled=True, opacity=1, color=CATEGORY_COLOURS[1])
    reach = chosen(mine).mark_rule(**here)
    layers += [
        rule.encode(y=y),
        word.encode(x=alt.value(0), y=y, text="floor:N"),
        reach.encode(x=low, x2="high:Q", y=y),
        cross.encode(x=x, y=y, tooltip=["rankme:Q", "low:Q", "high:Q", "q:Q"]),
    ]
    return alt.layer(*layers).add_params(menu).properties(width=WIDTH, height=280)


def _measured(table: pd.DataFrame) -> pd.DataFrame:
    """With the names of probe and suite in menus; an empty table gets its columns."""
    if table.empty:
        return pd.DataFrame(columns=["encoder", "steps", "seed", "rankme", "q", "measure"])
    if "probe" not in table:
        return table
    names = [measure_name(probe, suite) for probe, suite in zip(table["probe"], table["suite"], strict=True)]
    return table.drop(columns=["probe", "suite"]).assign(measure=names)


def short_value(value: float) -> str:
    """A place on an axis in few characters: 64, 4k, 64k (of 1000 or of 1024, whichever divides it)."""
    for thousand in (1000, 1024):
        if value >= thousand and value % thousand == 0:
            return f"{value / thousand:g}k"
    return f"{value:g}"


def spectra_chart(study: Study) -> alt.LayerChart:
    """Eigenspectra along an axis, mean over seeds: share of the sum of singular values against their index.

    A slider walks along the axis: the chosen value is drawn boldly, with its untrained encoder dashed.
    """
    values = study.values
    trained = _shares([(r.rank, v) for r, v in zip(study.records, study.runs["value"], strict=True)])
    trained["place"] = trained["value"].map(values.index)
    notes = study.runs.groupby("value")[["rankme"]].mean().reset_index()
    notes["note"] = [f"{study.axis.label}: {short_value(v)}, RankMe {r:.1f}" for v, r in notes.to_numpy()]
    notes["place"] = notes["value"].map(values.index)
    bind = alt.binding_range(min=0, max=len(values) - 1, step=1, name="along the axis: ")
    at = alt.param(name=f"spectra_{study.axis.name}_place", value=len(values) - 1, bind=bind)
    floor = float(trained["share"].max()) * 1e-6
    x = alt.X("index:Q", title="index of the singular value", scale=alt.Scale(type="log", nice=False))
    y = alt.Y("share:Q", title="share of the sum", scale=alt.Scale(type="log", nice=False))
    y = y.axis(tickCount=4, format=".0e")
    colour = AXIS_COLOURS[study.axis.name]
    shown = trained[trained["share"] > floor]
    base = alt.Chart(shown).encode(x=x, y=y, detail="value:O")
    grey = base.mark_line(color=INK, strokeWidth=1, opacity=0.6)
    bold = base.transform_filter(alt.datum.place == at).mark_line(color=colour, strokeWidth=3.5)
    said = alt.Chart(notes).transform_filter(alt.datum.place == at).mark_text(align="right", fontSize=13)
    said = said.encode(x=alt.value(WIDTH), y=alt.value(10), text="note:N")
    return alt.layer(grey, bold, said).add_params(at).properties(width=WIDTH, height=240)


def _shares(ranks: Sequence[tuple]) -> pd.DataFrame:
    """Mean share of each singular value by value of the axis: columns value, index, share."""
    parts = []
    for rank, value in ranks:
        sigma = np.asarray(rank.singular_values)
        parts.append(
            pd.DataFrame({"value": value, "index": np.arange(1, len(sigma) + 1), "share": sigma / sigma.sum()})
        )
    table = pd.concat(parts).groupby(["value", "index"], as_index=False)["share"].mean()
    return table.assign(share=rounded(table["share"].to_numpy(), 4))


def tasks_chart(study: Study) -> alt.FacetChart:
    """One small panel a task: score along the axis, trained and untrained; the probe is chosen below."""
    axis, scores = study.axis, study.scores()
    means = scores.groupby(["suite", "task", "probe", "kind", "value"], as_index=False, sort=False)["score"].mean()
    means = _near(means.assign(probe=means["probe"].map(PROBE_NAMES)))
    tasks = list(means.sort_values("suite", ascending=False, kind="stable")["task"].unique())
    probes = list(means["probe"].unique())
    menu = alt.param(
        name=f"tasks_{axis.name}_probe", value=probes[0], bind=alt.binding_select(options=probes, name="probe: ")
    )
    colours = alt.Scale(domain=[TRAINED, UNTRAINED], range=[AXIS_COLOURS[axis.name], INK])
    dashes = alt.Scale(domain=[TRAINED, UNTRAINED], range=[[1, 0], [4, 4]])
    x = _across(axis, sorted(means["value"].unique()))
    x = x.title(None).axis(
        values=sorted({means["value"].min(), means["value"].max()}),
        format=_ticks(means["value"].max()),
        labelFontSize=10,
    )
    y = alt.Y("score:Q", title=None, scale=alt.Scale(zero=True)).axis(tickCount=3, labelFontSize=10)
    line = alt.Chart(means).transform_filter(alt.datum.probe == menu).mark_line(point={"size": 14})
    line = line.encode(
        x=x,
        y=y,
        color=alt.Color("kind:N", scale=colours, title=None),
        strokeDash=alt.StrokeDash("kind:N", scale=dashes, title=None),
        tooltip=list(means.columns),
    )
    panel = line.properties(width=104, height=70).facet(
        facet=alt.Facet("task:N", title=None, sort=tasks, header=alt.Header(labelFontSize=11)), columns=3, spacing=12
    )
    return panel.add_params(menu).resolve_scale(y="independent").resolve_axis(x="independent")


def columns_chart(study: Study, columns: Mapping[str, str], title: str) -> alt.LayerChart:
    """Columns of the table of runs over one axis, in one panel: dots are runs, a line joins means over seeds.

    columns: name -> what the legend calls it.
    """
    long = study.runs.melt(["value", "seed"], list(columns), "series", "y").dropna(subset=["y"])
    long = _near(long.assign(series=long["series"].map(columns)))
    order = alt.Scale(domain=list(columns.values()))
    look = alt.Legend(title=None, columns=2, labelLimit=220, symbolOpacity=1)
    colour, shape = (kind("series:N", scale=order, legend=look) for kind in (alt.Color, alt.Shape))
    y = alt.Y("y:Q", title=title, scale=alt.Scale(zero=False, padding=10)).axis(tickCount=5)
    base = alt.Chart(long).encode(x=_across(study.axis, study.values), color=colour)
    line = base.mark_line().encode(y=y.aggregate("mean"))
    dots = base.mark_point(size=40, opacity=0.9).encode(y=y, shape=shape, tooltip=list(long.columns))
    return alt.layer(line, dots).properties(width=WIDTH, height=200)


# --- all runs of a sweep ----------------------------------------------------------------------------------

# Grey are the centre and the runs that moved along several axes; their shapes differ.
STAR = "M0,.5L.6,.8L.5,.1L1,-.3L.3,-.4L0,-1L-.3,-.4L-1,-.3L-.5,.1L-.6,.8L0,.5Z"
COLOURS = {MIDDLE: AXIS_COLOURS["seed"]} | {name: AXIS_COLOURS[name] for name in AXES} | {SEVERAL: INK}
SHAPES = {MIDDLE: AXIS_SHAPES["seed"]} | {name: AXIS_SHAPES[name] for name in AXES} | {SEVERAL: STAR}
FLOP_TITLE, FLOP_LABEL = "training compute (10¹² FLOP)", "format(datum.value / 1e12, '~g')"
SPREADS = 2  # standard deviations to either side


def flop_axis(column: str = "train_flop", title: str = FLOP_TITLE) -> alt.X:
    """Compute on a logarithmic axis."""
    scale = alt.Scale(type="log", nice=False, padding=14)
    return alt.X(f"{column}:Q", title=title, scale=scale).axis(labelExpr=FLOP_LABEL)


def runs_chart(
    table: pd.DataFrame,
    x: alt.X,
    studies: Mapping[str, Study] | None = None,
    spread: bool = False,
    name: str = "runs",
    y_title: str = "quality Q",
) -> alt.LayerChart:
    """Q of every run against a number; the probe and the tasks are chosen below the figure.

    table: as `arms.sweep_table` gives it; x: its encoding names the column. studies: axes whose means are joined.
    spread: draw two seed standard deviations to either side, pooled over arms, to the scale of both axes.
    """
    column = x.shorthand.split(":")[0]
    points, measures = _wide(table, ["axis", "label", "seed", column])
    menu = _menu(measures, f"{name}_measure")
    y = alt.Y("q:Q", title=y_title, scale=alt.Scale(zero=False, padding=14))
    colour, _ = _kinds(points)
    layers = [_chosen(_dots(points, [column, "q"], x, y, f"{name}_axis"), measures, menu)]
    if studies:
        lines, _ = _wide(_joined(studies), ["axis", "value", column])
        layers.insert(0, _chosen(_paths(lines, x, y, colour), measures, menu))
    if spread:
        layers += [layer.transform_filter(alt.datum.measure == menu) for layer in _spread(table, column, x, y)]
    return alt.layer(*layers).add_params(menu).properties(width=WIDTH, height=300)


def _wide(table: pd.DataFrame, columns: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """`columns` and every Q under its name in menus, and these names: a page holds a run once, not once a measure."""
    names = {f"q_{p}_{s}": measure_name(p, s) for s in SUITE_NAMES for p in PROBE_NAMES if f"q_{p}_{s}" in table}
    return _near(table[[*columns, *names]].rename(columns=names)), list(names.values())


def _chosen(chart: alt.Chart, measures: Sequence[str], menu: alt.Parameter) -> alt.Chart:
    """A chart of a wide table, with the Q that the menu names as `q`."""
    folded = chart.transform_fold(list(measures), as_=["measure", "q"])
    return folded.transform_filter(alt.datum.measure == menu).transform_filter("isValid(datum.q)")


def _joined(studies: Mapping[str, Study]) -> pd.DataFrame:
    """Runs of several axes in one table; the centre is in each of them."""
    return pd.concat([study.runs.assign(axis=name) for name, study in studies.items()])


def _kinds(table: pd.DataFrame) -> tuple[alt.Color, alt.Shape]:
    """Colour and shape by axis, with one legend for both."""
    present = [name for name in COLOURS if name in set(table["axis"])]
    look = alt.Legend(title=None, columns=4, symbolOpacity=1)
    colours = alt.Scale(domain=present, range=[COLOURS[name] for name in present])
    shapes = alt.Scale(domain=present, range=[SHAPES[name] for name in present])
    return alt.Color("axis:N", scale=colours, legend=look), alt.Shape("axis:N", scale=shapes, legend=look)


def _dots(points: pd.DataFrame, columns: Sequence[str], x: alt.X, y: alt.Y, click: str) -> alt.Chart:
    """One dot a run; `columns` are told with its label and seed where one points at it."""
    colour, shape = _kinds(points)
    chosen = alt.selection_point(fields=["axis"], bind="legend", name=click)
    clear = alt.when(chosen).then(alt.value(0.85)).otherwise(alt.value(0.12))
    tooltip = ["label:N", "seed:O", *(f"{column}:Q" for column in columns)]
    dots = alt.Chart(points).mark_point(size=48)
    return dots.encode(x=x, y=y, color=colour, shape=shape, opacity=clear, tooltip=tooltip).add_params(chosen)


def _paths(runs: pd.DataFrame, x: alt.X, y: alt.Y, colour: alt.Color) -> alt.Chart:
    """Means over seeds along each axis, joined in the order of its values. runs: axis, value, and numbers."""
    means = _near(runs.groupby(["axis", "value"], as_index=False, sort=False).mean())
    line = alt.Chart(means).mark_line(strokeWidth=1.5, opacity=0.7)
    return line.encode(x=x, y=y, color=colour, order="value:Q", detail="axis:N")


def _spread(table: pd.DataFrame, column: str, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """A cross in the lower right corner, `SPREADS` seed standard deviations to every side; nothing without seeds."""
    sd_x, df = pooled_sd(table, column, by="arm")
    if not df:
        return []
    right, wide = table[column].max(), SPREADS * sd_x
    rows = []
    for name, part in ((n, table.dropna(subset=[n])) for n in table if n.startswith("q_")):
        low, high = part[name].min(), SPREADS * pooled_sd(part, name, by="arm")[0]
        measure = measure_name(*name.removeprefix("q_").rsplit("_", 1))
        rows.append((measure, right - 2 * wide, right - wide, right, low, low + high, low + 2 * high))
    cross = _near(pd.DataFrame(rows, columns=["measure", "left", column, "right", "bottom", "q", "top"]))
    base = alt.Chart(cross)
    from_left, from_bottom = x.copy(), y.copy()
    from_left.shorthand, from_bottom.shorthand = "left:Q", "bottom:Q"
    words = base.mark_text(align="right", baseline="bottom", dx=-6, dy=-6, fontSize=11)
    return [
        base.mark_rule(strokeWidth=3).encode(x=from_left, x2="right:Q", y=y),
        base.mark_rule(strokeWidth=3).encode(y=from_bottom, y2="top:Q", x=x),
        words.encode(x=x, y=y, text=alt.value(f"seeds, {SPREADS} SD to each side")),
    ]


def panels_chart(
    table: pd.DataFrame, x: alt.X, studies: Mapping[str, Study], columns: Mapping[str, str], name: str = "panels"
) -> alt.VConcatChart:
    """Panels over one x: a panel for each of `columns` (column: title), and Q, chosen below the figure, as the last."""
    column = x.shorthand.split(":")[0]
    keys = ["axis", "label", "seed", column]
    lines, (colour, _) = _joined(studies), _kinds(table)
    bare = x.copy().title(None).axis(labels=False)
    panels = []
    for each, title in columns.items():
        y = alt.Y(f"{each}:Q", title=title, scale=alt.Scale(zero=False, padding=8)).axis(tickCount=4)
        dots = _dots(_near(table[[*keys, each]].dropna()), [column, each], bare, y, f"{name}_{each}")
        path = _paths(lines[["axis", "value", column, each]].dropna(), bare, y, colour)
        panels.append(alt.layer(path, dots).properties(width=WIDTH, height=130))
    quality = runs_chart(table, x, studies, name=f"{name}_q").properties(height=130)
    return alt.vconcat(*panels, quality, spacing=8)


def flop_chart(table: pd.DataFrame) -> alt.Chart:
    """Training compute of a run as a stacked bar. table: columns run, part, flop; runs and parts in order."""
    runs, parts = list(dict.fromkeys(table["run"])), list(dict.fromkeys(table["part"]))
    near = _near(table).assign(order=table["part"].map(parts.index))
    colour = alt.Color("part:N", title=None, scale=alt.Scale(domain=parts, range=[CATEGORY_COLOURS[0], f"{INK}88"]))
    bars = (
        alt.Chart(near)
        .mark_bar(stroke=INK, strokeWidth=0.5)
        .encode(
            x=alt.X("flop:Q", title=FLOP_TITLE).axis(labelExpr=FLOP_LABEL, tickCount=5),
            y=alt.Y("run:N", title=None, sort=runs),
            color=colour,
            order="order:Q",
            tooltip=["run:N", "part:N", alt.Tooltip("flop:Q", format=".3s")],
        )
    )
    return bars.properties(width=WIDTH - 90, height={"step": 22})


def families_chart(table: pd.DataFrame, name: str = "families") -> alt.LayerChart:
    """Q against width, one line for each family of equal compute; the probe and the tasks are chosen below.

    table: as `arms.sweep_table` gives it, with a column `family`. Dots are runs, a line joins means over seeds.
    """
    points, measures = _wide(table, ["family", "width", "steps", "seed"])
    menu = _menu(measures, f"{name}_measure")
    x = alt.X("width:Q", title="width (dimensions)", scale=alt.Scale(type="log", base=2, padding=20))
    x = x.axis(values=sorted(table["width"].unique().tolist()), format="d")
    y = alt.Y("q:Q", title="quality Q", scale=alt.Scale(zero=False, padding=14))
    order, look = alt.Scale(domain=list(dict.fromkeys(table["family"]))), alt.Legend(title=None, columns=3)
    colour, shape = (kind("family:N", scale=order, legend=look) for kind in (alt.Color, alt.Shape))
    base = _chosen(alt.Chart(points), measures, menu)
    line = base.mark_line().encode(x=x, y=y.aggregate("mean"), color=colour)
    tooltip = ["family:N", "width:Q", "steps:Q", "seed:O", "q:Q"]
    dots = base.mark_point(size=60, opacity=0.85).encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip)
    return alt.layer(line, dots).add_params(menu).properties(width=WIDTH, height=240)


# --- kinds, which have no order ----------------------------------------------------------------------------

KIND_SHAPES = ("square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left", "triangle-right")


def kind_scales(table: pd.DataFrame) -> tuple[alt.Scale, alt.Scale]:
    """Colours and shapes of the kinds in a table, the centre a grey circle; after the last they begin again."""
    kinds = _kinds_in(table)
    colours, shapes = (list(islice(cycle(each), len(kinds))) for each in (CATEGORY_COLOURS, KIND_SHAPES))
    ranges = [INK, *colours], ["circle", *shapes]
    return tuple(alt.Scale(domain=[MIDDLE, *kinds], range=each) for each in ranges)


def _kinds_in(table: pd.DataFrame) -> list[str]:
    return [label for label in table["label"].unique() if label != MIDDLE]


def star_chart(table: pd.DataFrame, name: str = "star") -> alt.LayerChart:
    """Q against RankMe: a ray from the centre's mean to the mean of each kind; the probe and tasks are chosen below.

    table: as `arms.variants` gives it. Dots are runs. Where a ray runs up and to the right, or down and to the left,
    quality goes with rank.
    """
    points, measures = _wide(table, ["label", "seed", "rankme"])
    menu = _menu(measures, f"{name}_measure")
    x = alt.X("rankme:Q", title="RankMe (directions)", scale=alt.Scale(zero=False, padding=24))
    y = alt.Y("q:Q", title="quality Q", scale=alt.Scale(zero=False, padding=18))
    look, (colours, shapes) = alt.Legend(title=None, columns=4, symbolOpacity=1), kind_scales(table)
    colour, shape = alt.Color("label:N", scale=colours, legend=look), alt.Shape("label:N", scale=shapes, legend=look)
    means = points.groupby("label", as_index=False, sort=False).mean().assign(end=1)
    middle = means[means["label"] == MIDDLE].drop(columns=["label", "end"])
    ends = means[means["label"] != MIDDLE]
    rays = _near(pd.concat([ends, ends[["label"]].merge(middle, how="cross").assign(end=0)]))
    tooltip = ["label:N", "seed:O", alt.Tooltip("rankme:Q", title="RankMe"), "q:Q"]
    dots = _chosen(alt.Chart(points), measures, menu).mark_point(size=55, opacity=0.85)
    lines = _chosen(alt.Chart(rays), measures, menu).mark_line(strokeWidth=2)
    layers = [
        lines.encode(x=x, y=y, color=colour, order="end:Q"),
        dots.encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip),
    ]
    return alt.layer(*layers).add_params(menu).properties(width=WIDTH, height=300)


def differences_chart(table: pd.DataFrame, columns: Mapping[str, str], name: str = "differences") -> alt.VConcatChart:
    """What each kind changes against the centre: a panel for each of `columns` (column: title), and Q as the last.

    table: as `arms.variants` gives it. A dot is the difference of two runs of one seed, the bar the 95 % interval of
    their mean (`arms.against_centre`). The band spans the centre's seeds, seen from those of its runs that the kinds
    are compared with: a kind's mean outside it lies outside all of the centre's seeds.
    """
    present = {f"q_{p}_{s}": measure_name(p, s) for s in SUITE_NAMES for p in PROBE_NAMES if f"q_{p}_{s}" in table}
    menu = _menu(list(present.values()), f"{name}_measure")
    panels = [_difference_panel(table, {each: title}, title) for each, title in columns.items()]
    panels.append(_difference_panel(table, present, "quality Q", menu))
    return alt.vconcat(*panels, spacing=14).add_params(menu)


def _difference_panel(
    table: pd.DataFrame, columns: Mapping[str, str], title: str, menu: alt.Parameter | None = None
) -> alt.LayerChart:
    keys = ["label", "seed"]
    dots = less_base(table, list(columns)).rename(columns=columns).melt(keys, list(columns.values()), "measure", "low")
    own = table[table["label"] == MIDDLE]
    base = own[own["seed"].isin(dots["seed"])]
    spread = [(columns[c], own[c].min() - base[c].mean(), own[c].max() - base[c].mean()) for c in columns]
    band = _near(pd.DataFrame(spread, columns=["measure", "low", "high"]))
    means = against_centre(table, columns)
    x = alt.X("low:Q", title=f"change of {title}", scale=alt.Scale(padding=10)).axis(tickCount=5)
    y = alt.Y("label:N", title=None, sort=_kinds_in(table)).axis(labelLimit=160)
    colour = alt.Color("label:N", scale=kind_scales(table)[0], legend=None)

    def only(rows: pd.DataFrame) -> alt.Chart:
        base = alt.Chart(_near(rows))
        return base if menu is None else base.transform_filter(alt.datum.measure == menu)

    zero = alt.Chart(pd.DataFrame({"low": [0.0]})).mark_rule(strokeDash=[4, 4]).encode(x=x)
    layers = [
        only(band).mark_rect(color=INK, opacity=0.18).encode(x=x, x2="high:Q"),
        zero,
        only(means).mark_rule(strokeWidth=3, opacity=0.7).encode(x=x, x2="high:Q", y=y, color=colour),
        only(means).mark_tick(thickness=3, size=14).encode(x="difference:Q", y=y, color=colour),
        only(dots.dropna()).mark_point(size=40).encode(x=x, y=y, color=colour, tooltip=["label:N", "seed:O", "low:Q"]),
    ]
    return alt.layer(*layers).properties(width=WIDTH - 90, height={"step": 20})


def task_differences_chart(scores: pd.DataFrame, name: str = "task_differences") -> alt.LayerChart:
    """What a kind changes on each task, with 95 % intervals; the kind and the probe are chosen below.

    scores: columns suite, task, probe, label, stage, seed, score.
    """
    parts = [
        against_centre(each, {"score": "score"}).assign(suite=suite, task=task, probe=PROBE_NAMES[probe])
        for (suite, task, probe), each in scores.groupby(["suite", "task", "probe"], sort=False)
    ]
    means = _near(pd.concat(parts).sort_values("suite", ascending=False, kind="stable"))
    kinds, probes = list(means["label"].unique()), list(means["probe"].unique())
    kind = alt.param(name=f"{name}_kind", value=kinds[0], bind=alt.binding_select(options=kinds, name="kind: "))
    probe = alt.param(name=f"{name}_probe", value=probes[0], bind=alt.binding_select(options=probes, name="probe: "))
    x = alt.X("low:Q", title="change of score", scale=alt.Scale(padding=10)).axis(tickCount=5)
    y = alt.Y("task:N", title=None, sort=list(means["task"].unique())).axis(labelLimit=160)
    colours = alt.Scale(domain=list(SUITE_NAMES), range=CATEGORY_COLOURS[:2])
    colour = alt.Color("suite:N", title=None, scale=colours)
    shape = alt.Shape("suite:N", title=None, scale=alt.Scale(domain=list(SUITE_NAMES)))
    chosen = alt.Chart(means).transform_filter((alt.datum.label == kind) & (alt.datum.probe == probe))
    zero = alt.Chart(pd.DataFrame({"low": [0.0]})).mark_rule(strokeDash=[4, 4]).encode(x=x)
    tooltip = ["task:N", "difference:Q", "low:Q", "high:Q", "pairs:Q"]
    layers = [
        zero,
        chosen.mark_rule(strokeWidth=2).encode(x=x, x2="high:Q", y=y, color=colour),
        chosen.mark_point(size=50, opacity=1).encode(x="difference:Q", y=y, color=colour, shape=shape, tooltip=tooltip),
    ]
    return alt.layer(*layers).add_params(kind, probe).properties(width=WIDTH - 90, height={"step": 18})


# --- intervals ---------------------------------------------------------------------------------------------


def axes_chart(table: pd.DataFrame, title: str = "") -> alt.Chart:
    """Intervals side by side: one row an axis, one coloured bar a series; a rule marks zero.

    table: columns axis, series, estimate, low, high. A series with the name of an axis gets that axis' colour.
    """
    near, series = _near(table), list(dict.fromkeys(table["series"]))
    y = alt.Y("axis:N", title=None, sort=list(dict.fromkeys(table["axis"]))).axis(labelLimit=280)
    offset = alt.YOffset("series:N", sort=series)
    colours = [AXIS_COLOURS.get(name, CATEGORY_COLOURS[i % len(CATEGORY_COLOURS)]) for i, name in enumerate(series)]
    scale = alt.Scale(domain=series, range=colours)
    legend = alt.Legend(columns=2, labelLimit=200)
    colour = alt.Color("series:N", title=None, scale=scale, legend=legend)
    shape = alt.Shape("series:N", title=None, scale=alt.Scale(domain=series), legend=legend)
    x = alt.X("low:Q", title=title, scale=alt.Scale(padding=10)).axis(tickCount=5)
    bars = alt.Chart(near).mark_rule(strokeWidth=2).encode(y=y, yOffset=offset, x=x, x2="high:Q", color=colour)
    dots = alt.Chart(near).mark_point(size=55, opacity=1)
    dots = dots.encode(y=y, yOffset=offset, x="estimate:Q", color=colour, shape=shape, tooltip=list(near.columns))
    zero = alt.Chart(pd.DataFrame({"low": [0.0]})).mark_rule(color=INK, strokeDash=[4, 4]).encode(x="low:Q")
    return alt.layer(zero, bars, dots).properties(width=WIDTH - 90, height={"step": 16})
