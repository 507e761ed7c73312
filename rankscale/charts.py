"""The book's look: one Altair theme, one colour per axis, figures, captions with a table, audio players.

Charts are drawn by Vega in the page. A book page loads Vega once, from beside the page; a live notebook gets it
from the kernel, so that neither asks the network for anything.
"""

from __future__ import annotations

import base64
import html
import json
import math
import os
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd
import soundfile
from IPython.display import HTML, display

from rankscale.config import BANDS, HOP, SAMPLE_RATE
from rankscale.storage import write_atomically

if TYPE_CHECKING:
    from rankscale.spectra import PowerLawDecay

# Every colour below has a contrast of at least 3 on the light and on the dark page. Colour is never the only
# sign: a quantity that shares a figure with another has its own point shape too.
AXIS_COLOURS = {
    "width": "#2F6FCB",
    "depth": "#D55E00",
    "clips": "#009E73",
    "steps": "#C56BA0",
    "mask_ratio": "#C47F00",
    "clip_s": "#2E9BD6",
    "patch_frames": "#8A63D2",
    "train_flop": "#9A6A3A",
    "lr": "#D6336C",
    "mask_group": "#0E8A9A",
    "architecture": "#7D8B1E",
    "seed": "#7A828C",
}
AXIS_SHAPES = {
    "width": "circle",
    "depth": "square",
    "clips": "triangle-up",
    "steps": "diamond",
    "mask_ratio": "cross",
    "clip_s": "triangle-down",
    "patch_frames": "triangle-right",
    "train_flop": "triangle-left",
    "lr": "triangle-right",
    "mask_group": "cross",
    "architecture": "stroke",
    "seed": "circle",
}
FAMILY_COLOURS = {"speech": "#D55E00", "music": "#2F6FCB", "environment": "#009E73", "mixture": "#8A63D2"}
CATEGORY_COLOURS = ["#2F6FCB", "#D55E00", "#009E73", "#C56BA0", "#C47F00", "#8A63D2", "#2E9BD6", "#7D8B1E"]
# Ink and grid are legible on both grounds as they are; the book's style sheet turns these exact values into the
# page's own text and border colours (book/_static/rankscale.css, kept equal by a test).
INK = "#6e7781"
GRID = "#8c959f"
HEAT = ["#0b0724", "#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#fcfdbf"]  # dark: low; light: high

WIDTH, HEIGHT = 420, 210  # pixels: on a phone a chart shrinks to about 360, and its text with it
MEL_TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000)
STATIC = "RANKSCALE_STATIC"  # set where nobody can move a slider: papermill runs
ASSETS = "RANKSCALE_ASSETS"  # folder for the files of one book page: its players' audio, its figures' tables
ASSETS_URL = "RANKSCALE_ASSETS_URL"  # the same folder, as seen from the page
_PAGE_STYLE = f"""
:root {{ color-scheme: light dark; }}
body {{ max-width: 56rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.2rem; font-weight: 600; overflow-wrap: anywhere; }}
#chart {{ width: 100%; }}
#chart [fill="{INK}"] {{ fill: CanvasText; }}
pre {{ overflow-x: auto; font-size: 0.8rem; }}
"""
_EMBED_OPTIONS = {"mode": "vega-lite", "renderer": "svg", "actions": False}


# --- theme and renderer -----------------------------------------------------------------------------------


@alt.theme.register("rankscale", enable=False)
def book_theme() -> alt.theme.ThemeConfig:
    """Transparent ground, thin grid, ink that follows the page from light to dark."""
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 13}
    return {
        "config": {
            "background": "transparent",
            "font": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
            "view": {"continuousWidth": WIDTH, "continuousHeight": HEIGHT, "stroke": None},
            "axis": text
            | {"titleFontWeight": "normal", "domainColor": GRID, "tickColor": GRID, "gridColor": GRID}
            | {"gridOpacity": 0.25, "labelOverlap": True},
            "legend": text | {"titleFontWeight": "normal", "symbolSize": 80, "orient": "top"},
            "header": text,
            "title": {"color": INK, "fontSize": 14, "fontWeight": 600, "anchor": "start"},
            "text": {"color": INK, "fontSize": 12},
            "rule": {"color": INK},
            "line": {"strokeWidth": 2},
            "point": {"size": 60, "filled": True, "color": CATEGORY_COLOURS[0]},
            "range": {"category": CATEGORY_COLOURS, "heatmap": HEAT, "ramp": HEAT},
        }
    }


def vega_bundle() -> str:
    """One script with Vega, Vega-Lite and Vega-Embed (about 0.9 MB), from the package vl-convert-python.

    Its last line tells Altair's own HTML that the libraries are there already: the three values are what Altair
    compares with, or it would fetch them from the network.
    """
    import vl_convert

    minor = ".".join(alt.VEGALITE_VERSION.split(".")[:2])
    loaded = {
        "vega_version": alt.VEGA_VERSION,
        "vegalite_version": alt.VEGALITE_VERSION,
        "vegaembed_version": alt.VEGAEMBED_VERSION,
    }
    # The function keeps the bundle's one-letter globals out of the page.
    return (
        f"(function(){{{vl_convert.javascript_bundle(vl_version=minor)}\n}})();\nvar VEGA_DEBUG={json.dumps(loaded)};\n"
    )


def setup() -> None:
    """Switch on the book's theme and the renderer that fits where the notebook runs; first cell of a chapter.

    In a book page a chart is a few kilobytes and uses the page's copy of Vega. Anywhere else Vega is shown
    once, by this call, and Altair's own HTML uses it; both draw offline.
    """
    alt.theme.enable("rankscale")
    if os.environ.get(ASSETS):
        alt.renderers.register("rankscale-page", _page_renderer)
        alt.renderers.enable("rankscale-page")
    else:
        alt.renderers.enable("html", embed_options=_EMBED_OPTIONS)
        display(HTML(f"<script>{vega_bundle()}</script>"))


def _page_renderer(spec: dict[str, Any], **_: Any) -> dict[str, str]:
    """A chart for a page that has loaded Vega (book/_ext/offline_assets.py does so where it finds .rs-chart)."""
    text = json.dumps(spec, separators=(",", ":")).replace("</", "<\\/")
    options = json.dumps(_EMBED_OPTIONS)
    return {
        "text/html": '<div class="rs-chart"></div><script>(function(node){vegaEmbed(node,'
        f"{text},{options}).catch(function(error){{node.textContent='This chart could not be drawn: '+error;"
        "console.error(error);});})(document.currentScript.previousElementSibling);</script>"
    }


def save_page(chart: alt.TopLevelMixin, path: str | Path, title: str, caption: str, text: str = "") -> Path:
    """Write a chart as one HTML file that needs nothing else: Vega lies in it, and it follows light and dark.

    title, caption: plain text. text: shown below in fixed width.
    """
    with alt.theme.enable("rankscale"):
        spec = chart.properties(width="container", height=HEIGHT * 2).to_json(indent=None).replace("</", "<\\/")
    below = f"<pre>{html.escape(text)}</pre>" if text else ""
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_PAGE_STYLE}</style>
<script>{vega_bundle()}</script>
</head>
<body>
<h1>{html.escape(title)}</h1>
<div id="chart"></div>
<p>{html.escape(caption)}</p>
{below}
<script>vegaEmbed("#chart", {spec}, {json.dumps(_EMBED_OPTIONS)});</script>
</body>
</html>
"""
    return write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


# --- captions, tables and sound ---------------------------------------------------------------------------


def show(chart: alt.TopLevelMixin, caption: str, table: pd.DataFrame | None = None, name: str = "") -> None:
    """Display a chart, a caption that says what to see, and a link to the table behind it.

    caption: plain text. table: what the link downloads as CSV (no link without it). name: the file's name
    without ending, unique in the chapter; needed with a table.
    """
    link = ""
    if table is not None:
        if not name:
            raise ValueError("show(..., table=...) needs name=: the table's file name, without ending")
        source = _asset(f"{_file_name(name)}.csv", table.to_csv(index=False).encode(), "text/csv")
        link = f' <a class="rs-table" href="{source}" download="{_file_name(name)}.csv">Table (CSV)</a>'
    display(chart)
    display(HTML(f'<p class="rs-caption">{html.escape(caption)}{link}</p>'))


def player(waveform: Any, name: str, caption: str = "") -> HTML:
    """An audio player that works offline, at the level the waveform has (nothing is normalised).

    waveform: (sample,) at 16 kHz in [-1, 1], array or tensor. name: file name without ending, unique in the
    chapter. caption: plain text; say what to listen for, and that synthetic audio is synthetic.
    Raises ValueError on another shape, NaN, infinity, or samples that would clip.
    """
    samples = _as_array(waveform)
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"player {name!r}: give one waveform of shape (sample,), not {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError(f"player {name!r}: the waveform holds NaN or infinity")
    peak = float(np.abs(samples).max())
    if peak > 1:
        raise ValueError(f"player {name!r}: the peak is {peak:.3g} and would clip; scale it and say so")
    file = BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.3)
    source = _asset(f"{_file_name(name)}.mp3", file.getvalue(), "audio/mpeg")
    label = html.escape(caption or name)
    return HTML(
        f'<figure class="rs-player"><audio controls preload="metadata" src="{source}" aria-label="{label}">'
        f"</audio><figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def players(waveforms: Mapping[str, Any], name: str) -> HTML:
    """A row of players, captioned by their keys; `name` starts every file's name."""
    parts = [player(wave, f"{name}-{key}", key).data for key, wave in waveforms.items()]
    return HTML(f'<div class="rs-players">{"".join(parts)}</div>')


def _asset(name: str, content: bytes, mime: str) -> str:
    """URL of a small file: beside the page in the book; inside the page where no folder was given for it."""
    folder = os.environ.get(ASSETS)
    if not folder:
        return f"data:{mime};base64,{base64.b64encode(content).decode()}"
    path = Path(folder) / name
    if path.exists() and path.read_bytes() != content:
        raise ValueError(f"two different files of this chapter are named {name!r}: give each its own name")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return f"{os.environ.get(ASSETS_URL, folder)}/{name}"


def _file_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


def _as_array(values: Any) -> np.ndarray:
    """float64 on the CPU, from a tensor, an array or a list."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def sliders(knobs: Mapping[str, tuple[float, float, float, float, str]]) -> list[alt.Parameter]:
    """Sliders of a static page: parameter name -> (start, least, most, step, label)."""
    return [
        alt.param(name=name, value=start, bind=alt.binding_range(min=least, max=most, step=step, name=label))
        for name, (start, least, most, step, label) in knobs.items()
    ]


def rounded(values: np.ndarray, digits: int = 5) -> np.ndarray:
    """Significant digits that a chart can show: a page carries every one of them."""
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (digits - 1 - np.floor(np.log10(np.abs(values))))
        short = np.round(values * scale) / scale
    return np.where(np.isfinite(short), short, values)


def round_table(table: pd.DataFrame, digits: int = 4, exact: Sequence[str] = ()) -> pd.DataFrame:
    """A table with its fractions `rounded`, but for the columns in `exact`, such as places on an axis."""
    floats = table.select_dtypes("floating").columns.drop(list(exact), errors="ignore")
    return table.assign(**{name: rounded(table[name].to_numpy(), digits) for name in floats})


# --- figures ----------------------------------------------------------------------------------------------


def waveform_chart(waveform: Any, title: str = "", colour: str = CATEGORY_COLOURS[0]) -> alt.Chart:
    """Amplitude against time, drawn as the lowest and highest sample of each of at most 500 columns.

    waveform: (sample,) at 16 kHz.
    """
    samples = _as_array(waveform)
    columns = np.array_split(samples, min(500, len(samples)))
    starts = np.cumsum([0] + [len(column) for column in columns[:-1]]) / SAMPLE_RATE
    table = pd.DataFrame(
        {
            "time_s": np.round(starts, 4),
            "low": np.round([column.min() for column in columns], 4),
            "high": np.round([column.max() for column in columns], 4),
        }
    )
    return (
        alt.Chart(table, title=title, height=110)
        .mark_area(color=colour, line={"color": colour, "strokeWidth": 0.7})
        .encode(
            x=alt.X("time_s:Q", title="time (s)", scale=alt.Scale(nice=False)),
            y=alt.Y("low:Q", title="amplitude", scale=alt.Scale(domain=[-1, 1]), axis=alt.Axis(tickCount=3)),
            y2="high:Q",
        )
    )


def mel_chart(
    mel: Any, title: str = "", limits_db: tuple[float, float] | None = None, height: int = 200
) -> alt.LayerChart:
    """A log-Mel spectrogram as an image with time and frequency axes.

    mel: (64, frame) in dB; NaN cells stay empty, which shows a mask. limits_db: the darkest and the brightest
    level; give the same ones to figures that are compared (the data's own range if left out).
    """
    mel = _as_array(mel)
    if mel.ndim != 2 or mel.shape[0] != BANDS:
        raise ValueError(f"mel_chart needs one clip of shape ({BANDS}, frame), not {mel.shape}")
    low, high = limits_db or (float(np.nanmin(mel)), float(np.nanmax(mel)))
    picture = _png(mel[::-1], low, high)
    seconds = mel.shape[1] * HOP / SAMPLE_RATE
    top = _mel(SAMPLE_RATE / 2)
    # Band b peaks at (b + 1) / 65 of the Mel axis, so that the axis can be labelled in Hz.
    ticks = [(BANDS + 1) * _mel(hz) / top - 1 for hz in MEL_TICKS_HZ]
    hz = f"700 * (pow(10, (datum.value + 1) / {BANDS + 1} * {top} / 2595) - 1)"
    corners = pd.DataFrame({"time_s": [0, seconds], "band": [-0.5, BANDS + 0.5], "level": [low, high]})
    axes = (
        alt.Chart(corners)
        .mark_point(opacity=0)
        .encode(
            x=alt.X("time_s:Q", title="time (s)", scale=alt.Scale(domain=[0, seconds], nice=False)),
            y=alt.Y(
                "band:Q",
                title="frequency (Hz)",
                scale=alt.Scale(domain=[-0.5, BANDS - 0.5], nice=False, clamp=True),
                axis=alt.Axis(values=ticks, labelExpr=f"format(round({hz}), ',')", grid=False),
            ),
            color=alt.Color(
                "level:Q",
                title="dB",
                scale=alt.Scale(domain=[low, high], range=HEAT, interpolate="rgb"),
                legend=alt.Legend(orient="right", gradientLength=height - 20, format=".0f"),
            ),
        )
    )
    image = (
        alt.Chart(pd.DataFrame([{}]))
        .mark_image(width=WIDTH, height=height, aspect=False)
        .encode(x=alt.value(WIDTH / 2), y=alt.value(height / 2), url=alt.value(picture))
    )
    return alt.layer(image, axes).properties(title=title, width=WIDTH, height=height)


def _mel(hz: float) -> float:
    """The HTK Mel scale, as torchaudio's filter bank uses it."""
    return 2595 * math.log10(1 + hz / 700)


def _png(values: np.ndarray, low: float, high: float) -> str:
    """Data URL of an image with one pixel per value, coloured by HEAT; NaN is transparent."""
    span = high - low if high > low else 1.0
    levels = np.clip((values - low) / span, 0, 1) * 254
    index = np.where(np.isfinite(levels), 1 + np.nan_to_num(levels), 0).astype(np.uint8)
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in HEAT])
    at = np.linspace(0, len(HEAT) - 1, 255)
    ramp = np.stack([np.interp(at, range(len(HEAT)), stops[:, channel]) for channel in range(3)], axis=1)
    palette = np.vstack([[0, 0, 0], ramp.round()]).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in index)  # a filter byte before each row
    height, width = index.shape
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            (b"PLTE", palette.tobytes()),
            (b"tRNS", b"\0"),
            (b"IDAT", zlib.compress(rows, 9)),
            (b"IEND", b""),
        )
    )
    return "data:image/png;base64," + base64.b64encode(content).decode()


def loss_chart(history: pd.DataFrame, y: str = "loss", title: str = "", log: bool = True) -> alt.LayerChart:
    """A curve of training: `y` against `step`, one line per value of an optional column `run`.

    history: columns step, `y` and perhaps run. log: logarithmic y axis (needs positive values).
    """
    table = history.assign(**{y: rounded(history[y].to_numpy())})
    encodings = {
        "x": alt.X("step:Q", title="training step"),
        "y": alt.Y(f"{y}:Q", title=y, scale=alt.Scale(type="log" if log else "linear", zero=False)),
        "tooltip": list(table.columns),
    }
    if "run" in table:
        encodings["color"] = alt.Color("run:N", title=None, sort=None)
    base = alt.Chart(table, title=title).encode(**encodings)
    return base.mark_line(**({} if "run" in table else {"color": AXIS_COLOURS["steps"]})) + base.mark_point(
        size=30, **({} if "run" in table else {"color": AXIS_COLOURS["steps"]})
    )


def spectrum_chart(
    spectra: Mapping[str, Sequence[float]], title: str = "", y_title: str = "singular value", share: bool = False
) -> alt.Chart:
    """Singular values (or eigenvalues) against their index, largest first, both axes logarithmic.

    spectra: name -> values; click a name in the legend to bring out its line. share: divide each spectrum by
    its sum, which is what RankMe sees. Zeros cannot be drawn on a log axis and are left out.
    """
    parts = []
    for name, values in spectra.items():
        values = np.sort(_as_array(values))[::-1]
        values = values / values.sum() if share else values
        frame = pd.DataFrame({"name": name, "index": np.arange(1, len(values) + 1), "value": rounded(values)})
        parts.append(frame[frame["value"] > 0])
    chosen = alt.selection_point(fields=["name"], bind="legend")
    return (
        alt.Chart(pd.concat(parts), title=title)
        .mark_line(point={"size": 18})
        .encode(
            x=alt.X("index:Q", title="index of the singular value", scale=alt.Scale(type="log", nice=False)),
            y=alt.Y("value:Q", title="share of the sum" if share else y_title, scale=alt.Scale(type="log")),
            color=alt.Color("name:N", title=None, sort=list(spectra)),
            opacity=alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.15)),
            tooltip=["name:N", "index:Q", alt.Tooltip("value:Q", format=".4g")],
        )
        .add_params(chosen)
    )


def eigenspectrum_chart(eigenvalues: Any, fit: PowerLawDecay | None = None, title: str = "") -> alt.LayerChart:
    """Eigenvalues as shares of their sum against their rank, both axes logarithmic, with a fitted power law.

    eigenvalues: (k,), in any order; those below 1e-12 of the largest are rounding and left out. fit: alpha, and the
    first and last rank it was fitted to (`spectra.alpha_req`); points outside these are hollow.
    """
    values = np.sort(_as_array(eigenvalues))[::-1]
    values = values[values > 1e-12 * values[0]] / values.sum()
    table = pd.DataFrame({"rank": np.arange(1, len(values) + 1), "share": rounded(values)})
    table["used"] = table["rank"].between(fit.first, fit.last) if fit else True
    decades = [10.0**power for power in range(math.floor(math.log10(values[-1])), 1)]
    across = alt.Scale(type="log", domain=[0.9, 1.1 * len(values)], nice=False)
    base = alt.Chart(table, title=title).encode(
        x=alt.X("rank:Q", title="rank of the eigenvalue", scale=across),
        y=alt.Y(
            "share:Q",
            title="share of the variance",
            scale=alt.Scale(type="log", domain=[decades[0], 1], nice=False),
            axis=alt.Axis(values=decades, format=".0e"),
        ),
    )
    colour = CATEGORY_COLOURS[0]
    points = base.mark_point(size=28, color=colour, strokeWidth=1.2, opacity=1).encode(
        fill=alt.condition("datum.used", alt.value(colour), alt.value("transparent")),
        stroke=alt.value(colour),
        tooltip=["rank:Q", alt.Tooltip("share:Q", format=".3g")],
    )
    if fit is None:
        return alt.layer(points)
    used = table[table["used"]]
    x, y, weight = np.log(used["rank"]), np.log(used["share"]), 1 / used["rank"]  # alpha-ReQ weights by 1 / rank
    level = np.average(y + fit.alpha * x, weights=weight)
    ends = pd.DataFrame({"rank": [fit.first, fit.last]})
    ends["share"] = rounded(np.exp(level - fit.alpha * np.log(ends["rank"])))
    line = alt.Chart(ends).mark_line(color=CATEGORY_COLOURS[1], strokeWidth=2.5).encode(x="rank:Q", y="share:Q")
    return alt.layer(points, line)


def score_chart(
    scores: pd.DataFrame, title: str = "", x_title: str = "score", chance: float | None = None
) -> alt.LayerChart:
    """Scores as dots with intervals, one row per name.

    scores: columns name, score, low, high (the interval) and perhaps group (colour). chance: a dashed line.
    """
    digits = {column: rounded(scores[column].to_numpy(), 4) for column in ("score", "low", "high")}
    table = scores.assign(**digits)
    row = {"y": alt.Y("name:N", title=None, sort=None)}
    if "group" in table:
        row |= {"color": alt.Color("group:N", title=None, sort=None), "yOffset": alt.YOffset("group:N", sort=None)}
    base = alt.Chart(table, title=title, height={"step": 24}).encode(**row)
    spread = base.mark_rule(strokeWidth=2, **({} if "group" in table else {"color": CATEGORY_COLOURS[0]}))
    layers = [
        spread.encode(x=alt.X("low:Q", title=x_title, scale=alt.Scale(zero=False)), x2="high:Q"),
        base.mark_point(size=70, opacity=1).encode(x="score:Q", tooltip=list(table.columns)),
    ]
    if chance is not None:
        line = alt.Chart(pd.DataFrame({"chance": [chance]})).mark_rule(strokeDash=[4, 4])
        layers.append(line.encode(x="chance:Q", tooltip="chance:Q"))
    return alt.layer(*layers)


# --- effective rank (chapter 04) --------------------------------------------------------------------------


def clouds_chart(clouds: pd.DataFrame, size: int = 120) -> alt.FacetChart:
    """Point clouds side by side on equal axes. clouds: one row per point, columns `cloud` (its title), x, y."""
    table = clouds.assign(x=rounded(clouds["x"].to_numpy(), 3), y=rounded(clouds["y"].to_numpy(), 3))
    limit = float(table[["x", "y"]].abs().max().max())
    equal = {"scale": alt.Scale(domain=[-limit, limit]), "axis": alt.Axis(tickCount=3)}
    points = (
        alt.Chart(table)
        .mark_circle(size=16, opacity=0.6, color=CATEGORY_COLOURS[0])
        .encode(x=alt.X("x:Q", title="first number", **equal), y=alt.Y("y:Q", title="second number", **equal))
        .properties(width=size, height=size)
    )
    return points.facet(alt.Facet("cloud:N", title=None, sort=list(table["cloud"].unique())), columns=3)


def shares_chart(shares: Sequence[float], rank: float, title: str = "") -> alt.LayerChart:
    """Shares of the directions as bars of width one; the dashed box has the same area, and is `rank` wide."""
    table = pd.DataFrame({"k": range(1, len(shares) + 1), "share": rounded(np.asarray(shares))})
    bars = table.assign(left=table["k"] - 1, zero=0.0)
    box = pd.DataFrame({"left": [0.0], "k": [rank], "share": [1 / rank], "zero": [0.0]})
    encodings = {
        "x": alt.X("left:Q", title="direction", scale=alt.Scale(domain=[0, len(bars)], nice=False)),
        "x2": "k:Q",
        "y": alt.Y("share:Q", title="share p", scale=alt.Scale(domain=[0, 1])),
        "y2": "zero:Q",
    }
    encodings["x"] = encodings["x"].axis(values=list(table["k"] - 0.5), labelExpr="ceil(datum.value)", grid=False)
    tooltip = [alt.Tooltip("k:Q", title="direction"), alt.Tooltip("share:Q", format=".3f")]
    drawn = alt.Chart(bars).mark_rect(color=CATEGORY_COLOURS[0], stroke=GRID).encode(**encodings, tooltip=tooltip)
    equal = alt.Chart(box).mark_rect(fillOpacity=0, stroke=CATEGORY_COLOURS[1], strokeWidth=2.5, strokeDash=[6, 4])
    return alt.layer(drawn, equal.encode(**encodings)).properties(title=title, width=320, height=180)


def curves_chart(table: pd.DataFrame, x: alt.X, y: alt.Y, series: str, title: str = "") -> alt.Chart:
    """Lines of y over x, one colour and one dash for each value of the column `series`, in the table's order."""
    order = alt.Scale(domain=list(table[series].unique()))  # as a scale: with `sort` Vega draws two legends
    colour, dash = (kind(f"{series}:N", title=series, scale=order) for kind in (alt.Color, alt.StrokeDash))
    lines = alt.Chart(table, title=title).mark_line()
    lines = lines.encode(x=x, y=y, color=colour, strokeDash=dash, tooltip=list(table.columns))
    return lines.properties(width=WIDTH, height=WIDTH // 2)


def sample_size_chart(measured: pd.DataFrame, theory: pd.DataFrame, title: str = "") -> alt.LayerChart:
    """RankMe from few clips as a share of its value from endless clips: points with intervals, theories as lines.

    measured: columns spectrum, ratio (clips per dimension), share, low, high. theory: columns line, ratio, share.
    """
    order, lines = (alt.Scale(domain=list(names.unique())) for names in (measured["spectrum"], theory["line"]))
    near = measured.assign(**{c: rounded(measured[c].to_numpy()) for c in ("share", "low", "high")})
    x = alt.X("ratio:Q", title="clips per dimension N/K", scale=alt.Scale(type="log", base=2))
    y = alt.Y("share:Q", title="measured / true RankMe", scale=alt.Scale(zero=False), axis=alt.Axis(format="%"))
    dash = alt.StrokeDash("line:N", scale=lines, title=None, legend=alt.Legend(symbolStrokeColor=INK))
    drawn = alt.Chart(theory.round(5)).mark_line(color=INK).encode(x=x, y=y, strokeDash=dash)
    base = alt.Chart(near).encode(x=x, color=alt.Color("spectrum:N", scale=order, title=None))
    spread = base.mark_rule(strokeWidth=2).encode(y="low:Q", y2="high:Q")
    shape = alt.Shape("spectrum:N", scale=order, title=None)
    dots = base.mark_point(size=70, opacity=1).encode(y=y, shape=shape, tooltip=list(near.columns))
    return alt.layer(drawn, spread, dots).properties(title=title, width=WIDTH, height=WIDTH // 2)


def decays_chart(spectra: Mapping[str, Sequence[float]], fit_range: tuple[int, int], title: str = "") -> alt.LayerChart:
    """Eigenvalues as shares of the largest against their index, on logarithmic axes; a band marks the fitted ranks.

    spectra: name -> eigenvalues, at least one above zero.
    """
    parts = []
    for name, values in spectra.items():
        values = np.sort(_as_array(values))[::-1]
        share = rounded(values / values[0])
        parts.append(pd.DataFrame({"embedding": name, "index": np.arange(1, len(share) + 1), "share": share}))
    table = pd.concat(parts)
    table = table[table["share"] > 0]
    order = alt.Scale(domain=list(spectra))
    legend = alt.Legend(columns=2, title=None)
    x = alt.X("index:Q", title="index i of the eigenvalue", scale=alt.Scale(type="log", nice=False))
    y = alt.Y("share:Q", title="eigenvalue / largest", scale=alt.Scale(type="log", nice=False))
    tooltip = ["embedding:N", "index:Q", alt.Tooltip("share:Q", format=".3g")]
    lines = (
        alt.Chart(table)
        .mark_line()
        .encode(
            x=x.axis(tickCount=6, format="d"),
            y=y.axis(tickCount=4, format="~g"),
            color=alt.Color("embedding:N", scale=order, legend=legend),
            strokeDash=alt.StrokeDash("embedding:N", scale=order, legend=legend),
            tooltip=tooltip,
        )
    )
    ends = pd.DataFrame({"index": [fit_range[0]], "end": [min(fit_range[1], int(table["index"].max()))]})
    band = alt.Chart(ends).mark_rect(color=INK, opacity=0.15).encode(x=x, x2="end:Q")
    return alt.layer(band, lines).properties(title=title, width=WIDTH, height=WIDTH // 2)


def gallery_explorer(table: pd.DataFrame, notes: pd.DataFrame, chance: float) -> alt.VConcatChart:
    """Embeddings in the order of a metric that the reader chooses, the one it likes best on top, against accuracy.

    table: one row for each metric, judge and embedding: columns metric, judge, embedding, what (one line about it),
    value, place (1: best by the metric), score, low, high (accuracy and its interval). notes: columns metric, judge,
    first, second (two lines of text). chance: a dashed line.
    """
    near = table.assign(**{c: rounded(table[c].to_numpy(), 4) for c in ("value", "score", "low", "high")})
    near["shown"] = [f"{value:,.{0 if abs(value) >= 100 else 2}f}" for value in near["value"]]
    menu = alt.binding_select(options=list(near["metric"].unique()), name="metric ")
    buttons = alt.binding_radio(options=list(near["judge"].unique()), name="accuracy of ")
    metric = alt.param("gallery_metric", value=near["metric"].iloc[0], bind=menu)
    judge = alt.param("gallery_judge", value=near["judge"].iloc[0], bind=buttons)
    chosen = "datum.metric == gallery_metric && datum.judge == gallery_judge"
    names, values = 108, 52  # pixels for the column of names and that of values

    y = alt.Y("place:O", axis=None)
    x = alt.X("score:Q", title="accuracy", scale=alt.Scale(domain=[0, 1], nice=False))
    x = x.axis(format="%", values=[0, 0.25, 0.5, 0.75, 1])
    rows = alt.Chart(near).transform_filter(chosen).encode(y=y)
    tooltip = [
        alt.Tooltip("embedding:N"),
        alt.Tooltip("what:N", title="what it is"),
        alt.Tooltip("shown:N", title="value"),
    ]
    tooltip += [
        alt.Tooltip(f"{c}:Q", title=t, format=".1%")
        for c, t in (("score", "accuracy"), ("low", "from"), ("high", "to"))
    ]
    path = rows.mark_line(color=GRID, strokeWidth=1, strokeDash=[2, 3]).encode(x=x, order="place:O")
    spread = rows.mark_rule(strokeWidth=3, color=CATEGORY_COLOURS[0]).encode(x="low:Q", x2="high:Q")
    dots = rows.mark_point(size=110, opacity=1, color=CATEGORY_COLOURS[0]).encode(x=x, tooltip=tooltip)
    left = rows.mark_text(align="right", fontSize=13).encode(x=alt.value(-10), text="embedding:N", tooltip=tooltip)
    right = rows.mark_text(align="right", fontSize=13).encode(
        x=alt.value(WIDTH - names), text="shown:N", tooltip=tooltip
    )
    guess = alt.Chart(pd.DataFrame({"score": [chance]})).mark_rule(strokeDash=[4, 4]).encode(x=x)
    said = alt.Chart(notes).transform_filter(chosen)
    lines = [
        said.mark_text(align="left", fontSize=13).encode(x=alt.value(-names), y=alt.value(at), text=f"{field}:N")
        for field, at in (("first", 8), ("second", 28))
    ]
    width = WIDTH - names - values
    return alt.vconcat(
        alt.layer(*lines).properties(width=width, height=36),
        alt.layer(guess, path, spread, dots, left, right).properties(width=width, height=25 * near["place"].max()),
    ).add_params(metric, judge)


def rank_explorer(max_dim: int = 512, eps: float = 1e-7) -> alt.VConcatChart:
    """Sliders that shape a spectrum, and its effective ranks, all computed in the reader's browser.

    Direction i has the second moment i^-decay + noise^2; a constant offset adds offset^2 to the first direction.
    """
    knobs = {
        "decay": (1, 0, 4, 0.05, "decay exponent α "),
        "dim": (64, 2, max_dim, 1, "dimensions K "),
        "offset": (0, 0, 20, 0.1, "constant offset "),
        "noise": (0, 0, 1, 0.01, "noise in every direction "),
    }
    added = {"raw": eps, "centred": eps, "squared": 0}  # the constant is RankMe's only
    kinds = tuple(added)
    # Every step writes fields of its own: a slider re-runs only the steps that depend on it.
    base = (
        alt.Chart(alt.sequence(1, max_dim + 1, as_="i"))
        .transform_filter("datum.i <= dim")
        .transform_calculate(squared="pow(datum.i, -decay) + noise * noise")
        .transform_calculate(centred="sqrt(datum.squared)")
        .transform_calculate(raw="sqrt(datum.squared + (datum.i == 1 ? offset * offset : 0))")
        .transform_joinaggregate(**{f"sum_{kind}": f"sum({kind})" for kind in kinds})
        .transform_calculate(**{f"p_{kind}": f"datum.{kind} / datum.sum_{kind} + {added[kind]}" for kind in kinds})
        .transform_calculate(**{f"h_{kind}": f"-datum.p_{kind} * log(datum.p_{kind})" for kind in kinds})
        .transform_joinaggregate(**{f"entropy_{kind}": f"sum(h_{kind})" for kind in kinds})
        .transform_calculate(**{f"rank_{kind}": f"exp(datum.entropy_{kind})" for kind in kinds})
    )
    first = base.transform_filter("datum.i == 1")
    folded = first.transform_fold([f"rank_{kind}" for kind in kinds], as_=["field", "rank"])
    ranks = folded.transform_calculate(kind="slice(datum.field, 5)").encode(
        x=alt.X("rank:Q", title="effective rank (directions), axis up to K")
        .scale(domainMin=0, domainMax=alt.ExprRef("1.15 * dim"), nice=False)
        .axis(tickCount=6),
        y=alt.Y("kind:N", sort=list(kinds), title=None),
    )
    bars = ranks.mark_bar(color=CATEGORY_COLOURS[0], height=16)
    numbers = ranks.mark_text(align="left", dx=5, fontSize=14).encode(text=alt.Text("rank:Q", format=".1f"))
    x = alt.X("i:Q", title="direction i", scale=alt.Scale(type="log", domain=[1, max_dim], nice=False))
    y = alt.Y("p_raw:Q", title="share p (raw)", scale=alt.Scale(type="log", domain=[1e-6, 1], clamp=True))
    dots = base.mark_circle(size=20, color=CATEGORY_COLOURS[0], opacity=1).encode(
        x=x.axis(values=[1, 2, 5, 10, 20, 50, 100, 200, 500], format="d"), y=y.axis(tickCount=6, format="~%")
    )
    line = first.mark_rule(color=CATEGORY_COLOURS[1], strokeWidth=2, strokeDash=[6, 4]).encode(x="rank_raw:Q")
    return alt.vconcat(
        alt.layer(bars, numbers).properties(width=WIDTH, height=84),
        alt.layer(dots, line).properties(width=WIDTH, height=200),
    ).add_params(*sliders(knobs))


# --- sound and log-Mel (chapter 01) -----------------------------------------------------------------------


def frame_chart(samples: Any, bin_db: Any, band_db: Any) -> alt.VConcatChart:
    """One frame on its way: windowed samples, power of its Fourier bins, Mel bands. All of one 32 ms window.

    samples: (512,). bin_db: (257,) in dB. band_db: (64,) in dB.
    """
    samples, bin_db, band_db = _as_array(samples), _as_array(bin_db), _as_array(band_db)
    parts = [
        (1000 * np.arange(len(samples)) / SAMPLE_RATE, samples, "time in the window (ms)", "amplitude"),
        (np.linspace(0, SAMPLE_RATE / 2, len(bin_db)), bin_db, "frequency (Hz)", "power (dB)"),
        (np.arange(1, len(band_db) + 1), band_db, "Mel band", "power (dB)"),
    ]
    panels = []
    for i, (x, y, x_title, y_title) in enumerate(parts):
        base = alt.Chart(pd.DataFrame({"x": rounded(x), "y": np.round(y, 3 if i == 0 else 1)}))
        mark = {"interpolate": "step"} if i else {}
        line = base.mark_line(color=CATEGORY_COLOURS[i], strokeWidth=1.5, **mark).encode(
            x=alt.X("x:Q", title=x_title, scale=alt.Scale(domain=[float(x[0]), float(x[-1])], nice=False)).axis(
                tickCount=5
            ),
            y=alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4)),
        )
        panels.append(line.properties(width=WIDTH, height=95))
    return alt.vconcat(*panels)


def spectrogram_switch(
    pictures: Mapping[str, Any], seconds: float, top_hz: float, label: str = "", range_db: float = 70
) -> alt.LayerChart:
    """Spectrograms in one place, with buttons that choose which is shown; the first one at the start.

    pictures: name -> (bin, frame) in dB, bins evenly from 0 Hz to top_hz, frames from 0 to `seconds`. Each is
    drawn from its maximum down to range_db below it. label: before the buttons.
    """
    rows = []
    for name, values in pictures.items():
        values = _as_array(values)
        rows.append({"name": name, "url": _png(values[::-1], values.max() - range_db, values.max())})
    names, height = list(pictures), 220
    buttons = alt.binding_radio(options=names, name=f"{label} ")
    shown = alt.param(name="shown_picture", value=names[0], bind=buttons)
    corners = pd.DataFrame({"time_s": [0, seconds], "hz": [0, top_hz]})
    axes = (
        alt.Chart(corners)
        .mark_point(opacity=0)
        .encode(
            x=alt.X("time_s:Q", title="time (s)", scale=alt.Scale(domain=[0, seconds], nice=False)),
            y=alt.Y("hz:Q", title="frequency (Hz)", scale=alt.Scale(domain=[0, top_hz], nice=False)).axis(grid=False),
        )
    )
    image = (
        alt.Chart(pd.DataFrame(rows))
        .transform_filter("datum.name == shown_picture")
        .mark_image(width=WIDTH, height=height, aspect=False)
        .encode(x=alt.value(WIDTH / 2), y=alt.value(height / 2), url="url:N")
    )
    return alt.layer(image, axes).add_params(shown).properties(width=WIDTH, height=height)


def mel_scale_explorer(max_bands: int = 128) -> alt.VConcatChart:
    """A tone and a filter bank with sliders: where the tone falls on the Mel scale, and which bands hear it.

    Filters are torchaudio's: triangles with equal steps on the HTK Mel scale from 0 to 8 kHz, peak 1.
    """
    top = _mel(SAMPLE_RATE / 2)
    tone, bands = sliders(
        {"tone_hz": (1000, 100, 7900, 10, "tone (Hz) "), "n_bands": (BANDS, 16, max_bands, 1, "number of bands ")}
    )
    hz = "700 * (pow(10, ({}) / 2595) - 1)".format
    x = alt.X("hz:Q", title="frequency (Hz)", scale=alt.Scale(domain=[0, SAMPLE_RATE / 2], nice=False))
    x = x.axis(values=list(range(0, SAMPLE_RATE // 2 + 1, 2000)))

    curve = (
        alt.Chart(alt.sequence(0, top, 20, as_="mel"))
        .transform_calculate(hz=hz("datum.mel"))
        .mark_line(color=CATEGORY_COLOURS[0])
        .encode(x=x.title(None), y=alt.Y("mel:Q", title="Mel").axis(tickCount=5))
    )
    here = alt.Chart(alt.sequence(0, 1, as_="i")).transform_calculate(
        hz="tone_hz", mel="2595 * log(1 + tone_hz / 700) / LN10"
    )
    drop = here.mark_rule(color=CATEGORY_COLOURS[1], strokeDash=[5, 3], strokeWidth=2).encode(x="hz:Q")
    dot = here.mark_point(color=CATEGORY_COLOURS[1], size=90, opacity=1).encode(x="hz:Q", y="mel:Q")

    # Three corners a triangle: band b starts at corner b of the bank, peaks at b + 1 and ends at b + 2.
    step = f"{top} / (n_bands + 1)"
    corners = (
        alt.Chart(alt.sequence(0, 3 * max_bands, as_="n"))
        .transform_calculate(band="floor(datum.n / 3)", corner="datum.n % 3")
        .transform_filter("datum.band < n_bands")
        .transform_calculate(hz=hz(f"(datum.band + datum.corner) * {step}"), weight="datum.corner == 1 ? 1 : 0")
        .transform_calculate(low=hz(f"datum.band * {step}"), high=hz(f"(datum.band + 2) * {step}"))
        .transform_calculate(hears="datum.low < tone_hz && tone_hz < datum.high")
    )
    triangles = corners.encode(
        x=x, y=alt.Y("weight:Q", title="weight").axis(values=[0, 0.5, 1]), detail="band:N", order="corner:Q"
    )
    deaf = triangles.transform_filter("!datum.hears").mark_line(color=GRID, strokeWidth=0.8)
    hears = triangles.transform_filter("datum.hears").mark_line(color=CATEGORY_COLOURS[1], strokeWidth=2.5)

    words = here.transform_calculate(
        below=f"floor(datum.mel / ({step}))",
        place="format(tone_hz, ',') + ' Hz = ' + format(datum.mel, ',.0f') + ' Mel'",
        spacing=hz(f"datum.mel + {step} / 2") + " - " + hz(f"datum.mel - {step} / 2"),
    ).transform_calculate(
        first="datum.place + '; bands are ' + format(datum.spacing, '.0f') + ' Hz apart there'",
        second="'= ' + format(12 * log((tone_hz + datum.spacing / 2) / (tone_hz - datum.spacing / 2)) / LN2, '.1f') "
        f"+ ' semitones; the lowest two are ' + format({hz(f'2 * {step}')} - {hz(step)}, '.0f') + ' Hz apart'",
    )
    lines = [
        words.mark_text(align="left", fontSize=15).encode(x=alt.value(0), y=alt.value(y), text=f"{field}:N")
        for field, y in (("first", 10), ("second", 32))
    ]
    return alt.vconcat(
        alt.layer(*lines).properties(width=WIDTH, height=40),
        alt.layer(curve, drop, dot).properties(width=WIDTH, height=130),
        alt.layer(deaf, hears).properties(width=WIDTH, height=90),
    ).add_params(tone, bands)


def band_stats_chart(table: pd.DataFrame) -> alt.FacetChart:
    """Mean level of each Mel band (line) with one standard deviation to both sides (area), a panel a family.

    table: columns family, band (1 to 64), hz, mean_db, std_db.
    """
    near = table.assign(low=table["mean_db"] - table["std_db"], high=table["mean_db"] + table["std_db"]).round(1)
    families = list(near["family"].unique())
    base = alt.Chart(near).encode(
        x=alt.X("band:Q", title="Mel band", scale=alt.Scale(domain=[1, BANDS], nice=False)),
        color=alt.Color(
            "family:N", legend=None, scale=alt.Scale(range=[FAMILY_COLOURS[name] for name in families])
        ).sort(families),
    )
    spread = base.mark_area(opacity=0.25).encode(y=alt.Y("low:Q", title="level (dB)"), y2="high:Q")
    tooltip = ["family:N", "band:Q", "hz:Q", "mean_db:Q", "std_db:Q"]
    mean = base.mark_line().encode(y="mean_db:Q", tooltip=tooltip)
    panel = alt.layer(spread, mean).properties(width=WIDTH // 2 - 30, height=120)
    return panel.facet(alt.Facet("family:N", title=None, sort=families), columns=2)


def patches_chart(mel: Any, patch_frames: int, title: str = "") -> alt.LayerChart:
    """A log-Mel spectrogram cut into patches: every line is the edge of a token. mel: (64, frame) in dB."""
    mel = _as_array(mel)
    edges = np.arange(0, mel.shape[1] + 1, patch_frames) * HOP / SAMPLE_RATE
    lines = alt.Chart(pd.DataFrame({"time_s": np.round(edges, 3)})).mark_rule(color="white", opacity=0.75)
    return alt.layer(mel_chart(mel, title), lines.encode(x="time_s:Q"))


def token_calculator() -> alt.VConcatChart:
    """Sliders for clip length, patch, mask and width; the token counts that follow, and a mask, in the browser.

    Counts are RunConfig's and mae.count_kept's: whole patches only, whole groups of two hidden tokens.
    """
    knobs = {
        "calc_clip_s": (1.28, 0.64, 10.24, 0.02, "clip (s) "),
        "calc_patch": (4, 1, 16, 1, "frames in a patch "),
        "calc_mask": (0.75, 0.05, 0.95, 0.05, "mask ratio "),
        "calc_width": (64, 16, 768, 16, "width "),
    }
    tokens = f"floor(floor(round(calc_clip_s * {SAMPLE_RATE}) / {HOP}) / calc_patch)"
    groups = f"ceil({tokens} / 2)"
    share = f"(1 - calc_mask) * {groups}"
    even = f"({share} % 2 == 0.5 ? floor({share}) : round({share}))"  # halves go to the even number, as in Python
    kept = f"clamp({even}, 1, {groups} - 1) * 2"
    lines = {
        "frames of 10 ms that are used": f"{tokens} * calc_patch",
        "tokens": tokens,
        "tokens that the encoder sees": kept,
        "tokens that it has to imagine": f"{tokens} - {kept}",
        "milliseconds in a token": f"calc_patch * {1000 * HOP // SAMPLE_RATE}",
        "values that go into a token": f"calc_patch * {BANDS}",
        "numbers out of the encoder, all tokens": f"{tokens} * calc_width",
        "pairs of tokens that attention compares": f"{tokens} * {tokens}",
    }
    value = " : ".join(f"datum.row == {i} ? {line}" for i, line in enumerate(lines.values())) + " : 0"
    table = pd.DataFrame({"row": range(len(lines)), "label": list(lines)})
    y = alt.Y("row:O", axis=None)
    base = alt.Chart(table).transform_calculate(value=value).encode(y=y)
    labels = base.mark_text(align="left", fontSize=14).encode(x=alt.value(0), text="label:N")
    numbers = base.mark_text(align="right", fontSize=15, fontWeight=600).encode(
        x=alt.value(WIDTH), text=alt.Text("value:Q", format=",.0f")
    )
    return alt.vconcat(
        alt.layer(labels, numbers).properties(width=WIDTH, height=24 * len(lines)),
        _mask_squares(tokens, kept).properties(width=WIDTH, height=106),
    ).add_params(*sliders(knobs))


def _mask_squares(tokens: str, kept: str, columns: int = 32, drawn: int = 256) -> alt.Chart:
    """A square for each of the first tokens, in rows; hidden ones are hollow. tokens, kept: Vega expressions."""
    at_most = 1024  # the longest clip in the smallest patches
    # A fixed scatter of the groups: the fraction of a large sine looks random enough for a picture.
    noise = "abs(43758.5453 * sin(12.9898 * (floor(datum.i / 2) + 1))) % 1"
    return (
        alt.Chart(alt.sequence(0, at_most, as_="i"))
        .transform_filter(f"datum.i < {tokens}")
        .transform_calculate(column=f"datum.i % {columns}", line=f"floor(datum.i / {columns})", noise=noise)
        .transform_window(order="dense_rank()", sort=[alt.SortField("noise")])
        .transform_calculate(seen=f"datum.order * 2 <= {kept}")
        .transform_filter(f"datum.i < {drawn}")
        .mark_square(color=CATEGORY_COLOURS[0], stroke=CATEGORY_COLOURS[0], size=90, strokeWidth=1, opacity=1)
        .encode(
            x=alt.X("column:Q", axis=None, scale=alt.Scale(domain=[-0.5, columns - 0.5], nice=False)),
            y=alt.Y("line:Q", axis=None, scale=alt.Scale(domain=[-0.5, drawn / columns - 0.5], reverse=True)),
            fillOpacity=alt.FillOpacity("seen:N", legend=None, scale=alt.Scale(domain=[True, False], range=[1, 0])),
        )
    )


# --- measuring quality (chapter 05) -----------------------------------------------------------------------


def strip_chart(table: pd.DataFrame, x_title: str, title: str = "") -> alt.LayerChart:
    """One row per embedding: a dot for every run, a tick at their mean. table: columns embedding, seed, q."""
    near = table.assign(q=rounded(table["q"].to_numpy(), 4))
    order = alt.Scale(domain=list(dict.fromkeys(table["embedding"])))
    colour, shape = (kind("embedding:N", scale=order, legend=None) for kind in (alt.Color, alt.Shape))
    x = alt.X("q:Q", title=x_title, scale=alt.Scale(zero=False, nice=True)).axis(tickCount=5)
    base = alt.Chart(near, title=title).encode(y=alt.Y("embedding:N", title=None, scale=order, sort=None))
    dots = base.mark_point(size=70, opacity=0.75).encode(x=x, color=colour, shape=shape, tooltip=list(table.columns))
    mean = base.mark_tick(thickness=3, height=22, color=INK).encode(x="mean(q):Q")
    return alt.layer(dots, mean).properties(width=WIDTH, height={"step": 34})


def task_scores_chart(scores: pd.DataFrame) -> alt.Chart:
    """Score of every task by embedding, for a probe chosen below the chart.

    scores: columns task, embedding, probe, score, one row each.
    """
    table = scores.assign(score=rounded(scores["score"].to_numpy(), 4))
    order = alt.Scale(domain=list(dict.fromkeys(table["embedding"])))
    colour, shape = (
        kind("embedding:N", title=None, scale=order, legend=alt.Legend(columns=2)) for kind in (alt.Color, alt.Shape)
    )
    probes = list(dict.fromkeys(table["probe"]))
    chosen = alt.param(value=probes[0], bind=alt.binding_select(options=probes, name="probe: "), name="probe_shown")
    dots = alt.Chart(table).mark_point(size=80, opacity=0.85).transform_filter(alt.datum.probe == chosen)
    x = alt.X("score:Q", title="score (0: guessing, 1: perfect)", scale=alt.Scale(domain=[-0.1, 1]))
    y = alt.Y("task:N", title=None, sort=None)
    dots = dots.encode(x=x, y=y, color=colour, shape=shape, tooltip=list(table.columns))
    return dots.add_params(chosen).properties(width=WIDTH, height={"step": 26})


# --- a general-audio corpus (chapter 02) ------------------------------------------------------------------


def sound_cards(
    waveforms: Mapping[str, Any],
    mels: Any,
    name: str,
    caption: str = "",
    limits_db: tuple[float, float] = (-60, 30),
) -> HTML:
    """Players side by side, each under the log-Mel picture of its sound and named by its key; a caption below all.

    waveforms: label -> (sample,) at 16 kHz. mels: (clip, 64, frame) in dB, in the same order. Pictures have no
    axes: time runs to the right, 0 to 8 kHz upwards on the Mel scale, limits_db from dark to bright.
    """
    cards = []
    for (label, wave), mel in zip(waveforms.items(), mels, strict=True):
        picture = (
            # Class and last line spare the picture the theme's filter and light card in the dark.
            f'<img class="dark-light" src="{_png(_as_array(mel)[::-1], *limits_db)}" '
            f'alt="log-Mel picture of {html.escape(label)}" '
            'style="width: min(100%, 22rem); height: 7rem; image-rendering: pixelated; display: block; '
            'padding: 0; background: none">'
        )
        cards.append(f"<div>{picture}{player(wave, f'{name}-{label}', label).data}</div>")
    below = f'<p class="rs-caption">{html.escape(caption)}</p>' if caption else ""
    grid = "grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr))"  # two in a row
    return HTML(f'<div class="rs-players" style="{grid}">{"".join(cards)}</div>{below}')


def factor_explorer(values: Mapping[str, Sequence[float]], bins: int = 40) -> alt.LayerChart:
    """Histogram of one factor, chosen from a menu, with the bell curve that has the same middle half (dashed).

    values: label with unit -> what was drawn, at least two different finite numbers. Counts are on a logarithmic
    axis (linear below one), where a bell is an arch and whatever lies outside it is a tail.
    """
    menu = alt.binding_select(options=list(values), name="factor ")
    shown = alt.param(name="factor_shown", value=next(iter(values)), bind=menu)
    parts = [_against_bell(name, _as_array(drawn), bins) for name, drawn in values.items()]
    bars, bells, notes = (pd.concat(tables) for tables in zip(*parts, strict=True))
    x = alt.X("low:Q", title="value of the factor", scale=alt.Scale(zero=False, nice=False))
    y = alt.Y("count:Q", title="draws").scale(type="symlog", constant=1)
    ticks = y.axis(values=[0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000], format=",d", minExtent=42)
    tooltip = [alt.Tooltip("low:Q", title="from"), alt.Tooltip("high:Q", title="to"), "count:Q"]
    chosen = "datum.factor == factor_shown"
    columns = alt.Chart(bars).transform_filter(chosen).mark_rect(color=CATEGORY_COLOURS[0], stroke=GRID)
    bell = alt.Chart(bells).transform_filter(chosen).mark_line(color=CATEGORY_COLOURS[1], strokeDash=[6, 4])
    note = alt.Chart(notes).transform_filter(chosen).mark_text(align="right", fontSize=13, lineBreak="\n")
    return (
        alt.layer(
            columns.encode(x=x, x2="high:Q", y=ticks, y2="zero:Q", tooltip=tooltip),
            bell.encode(x="low:Q", y="count:Q"),
            note.encode(x=alt.value(WIDTH), y=alt.value(-32), text="note:N"),
        )
        .add_params(shown)
        .properties(width=WIDTH, height=WIDTH // 2)
    )


def _against_bell(name: str, drawn: np.ndarray, bins: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Bars, a bell and a note for one factor: tables with the columns that `factor_explorer` draws."""
    count, edges = np.histogram(drawn, bins)
    low, middle, high = np.quantile(drawn, [0.25, 0.5, 0.75])
    bell = NormalDist(middle, (high - low) / 1.349)  # a bell's middle half is 1.349 standard deviations wide
    bars = pd.DataFrame({"low": rounded(edges[:-1]), "high": rounded(edges[1:]), "count": count, "zero": 0})
    at = np.linspace(edges[0], edges[-1], 120)
    expected = np.array([bell.pdf(value) for value in at]) * len(drawn) * (edges[1] - edges[0])
    curve = pd.DataFrame({"low": rounded(at), "count": expected.round(2)})
    most, bell_most = drawn.max(), bell.inv_cdf(1 - 1 / len(drawn))
    note = f"middle half {low:.3g} to {high:.3g}, largest {most:.3g}\na bell's largest: about {bell_most:.3g}"
    tables = bars[bars["count"] > 0], curve[curve["count"] > 0.05], pd.DataFrame({"note": [note]})
    return tuple(table.assign(factor=name) for table in tables)


def word_explorer(counts: Mapping[str, pd.Series]) -> alt.Chart:
    """Shares of the values of one factor in words, most frequent first, for a factor chosen from a menu.

    counts: label -> how often each word was drawn, indexed by word.
    """
    menu = alt.binding_select(options=list(counts), name="factor ")
    shown = alt.param(name="words_shown", value=next(iter(counts)), bind=menu)
    parts = [
        pd.DataFrame({"factor": name, "word": found.index.astype(str), "draws": found, "share": found / found.sum()})
        for name, found in counts.items()
    ]
    table = pd.concat(parts).assign(share=lambda part: rounded(part["share"].to_numpy(), 3))
    return (
        alt.Chart(table)
        .transform_filter("datum.factor == words_shown")
        .mark_bar(color=CATEGORY_COLOURS[0])
        .encode(
            x=alt.X("share:Q", title="share of the draws", axis=alt.Axis(format="%", tickCount=5)),
            y=alt.Y("word:N", title=None, sort="-x").axis(labelOverlap=False),
            tooltip=["word:N", "draws:Q", alt.Tooltip("share:Q", format=".1%")],
        )
        .add_params(shown)
        .properties(width=WIDTH - 60, height={"step": 16})
    )


def task_floors_chart(table: pd.DataFrame, margin: float) -> alt.LayerChart:
    """Every task's floors and its supervised score, and the score it had to reach (a tick): kept or dropped.

    table: columns task, kept, logmel_mean, logmel_meanstd, supervised, normalised so that guessing is 0.
    """
    measures = {"logmel_mean": "floor: mean", "logmel_meanstd": "floor: mean and spread", "supervised": "supervised"}
    names = list(measures.values())
    rows = table.sort_values("supervised", ascending=False)
    rows = rows.assign(label=rows["task"] + np.where(rows["kept"], "", " (dropped)"))
    rows = rows.assign(needed=(rows["logmel_meanstd"] + margin).round(4))
    long = rows.melt(["label", "needed"], list(measures), "measure", "score").replace({"measure": measures})
    y = alt.Y("label:N", title=None, sort=list(rows["label"]))
    x = alt.X("score:Q", title="score (0: guessing, 1: perfect)", scale=alt.Scale(domain=[-0.1, 1]))
    order = alt.Scale(domain=names, range=[CATEGORY_COLOURS[4], CATEGORY_COLOURS[1], CATEGORY_COLOURS[0]])
    shape = alt.Scale(domain=names, range=["triangle-up", "square", "circle"])
    dots = alt.Chart(long).mark_point(size=80, opacity=1)
    dots = dots.encode(
        x=x,
        y=y,
        color=alt.Color("measure:N", title=None, scale=order),
        shape=alt.Shape("measure:N", title=None, scale=shape),
        tooltip=["label:N", "measure:N", "score:Q"],
    )
    needed = alt.Chart(rows).mark_tick(color=INK, thickness=2, height=16).encode(x="needed:Q", y=y)
    return alt.layer(needed, dots).properties(width=WIDTH - 60, height={"step": 24})


# --- masked autoencoders (chapter 03) ---------------------------------------------------------------------


def fill_in_chart(
    choices: Mapping[str, Mapping[str, Any]], limits_db: tuple[float, float], label: str = "", height: int = 100
) -> alt.VConcatChart:
    """Log-Mel panels, one above the other; NaN cells are hidden patches and show a grey ground.

    choices: name -> panel title -> (64, frame) in dB, the same titles for every name; with more than one name,
    buttons choose what is shown, the first one at the start. limits_db: the darkest and the brightest level.
    """
    names = list(choices)
    shown = alt.param(name="shown_fill_in", value=names[0], bind=alt.binding_radio(options=names, name=f"{label} "))
    panels = []
    for title in choices[names[0]]:
        mels = {name: _as_array(panel[title]) for name, panel in choices.items()}
        axes = mel_chart(mels[names[0]], limits_db=limits_db, height=height).layer[1]
        if title != list(choices[names[0]])[-1]:
            axes.encoding.x.title = None  # time is written once, below the last panel
        rows = [{"name": name, "url": _png(mel[::-1], *limits_db)} for name, mel in mels.items()]
        image = alt.Chart(pd.DataFrame(rows)).mark_image(width=WIDTH, height=height, aspect=False)
        image = image.encode(x=alt.value(WIDTH / 2), y=alt.value(height / 2), url="url:N")
        if len(names) > 1:
            image = image.transform_filter("datum.name == shown_fill_in")
        ground = alt.Chart(pd.DataFrame([{}])).mark_rect(color=GRID, opacity=0.35)
        ground = ground.encode(x=alt.value(0), x2=alt.value(WIDTH), y=alt.value(0), y2=alt.value(height))
        panels.append(alt.layer(ground, image, axes).properties(title=title, width=WIDTH, height=height))
    chart = alt.vconcat(*panels, spacing=8)
    return chart.add_params(shown) if len(names) > 1 else chart


def rules_chart(history: pd.DataFrame, rules: Mapping[str, float], title: str = "") -> alt.LayerChart:
    """Loss against training step, and the loss of rules that need no training as labelled dashed lines.

    history: columns step, run (a curve's name), loss. rules: name -> loss. The step axis is linear up to about
    ten and logarithmic beyond.
    """
    kinds, near = list(history["run"].unique()), history.assign(loss=rounded(history["loss"].to_numpy(), 4))
    x = _step_axis(int(history["step"].max()))
    y = alt.Y("loss:Q", title="loss (1: each patch's own mean)", scale=alt.Scale(zero=False, padding=8))
    colour, shape = alt.Color("run:N", sort=kinds, title=None), alt.Shape("run:N", sort=kinds, legend=None)
    curves = alt.Chart(near).mark_line(point={"size": 45, "opacity": 1})
    curves = curves.encode(x=x, y=y, color=colour, shape=shape, tooltip=list(near.columns))
    table = pd.DataFrame({"rule": list(rules), "loss": rounded(np.array(list(rules.values())), 4)}).sort_values("loss")
    crowded = table["loss"].diff(-1).abs() < 0.05 * history["loss"].max()  # the next one up: write below the line
    lines = alt.Chart(table).mark_rule(strokeDash=[5, 4], color=INK, opacity=0.7).encode(y=y)
    words = [
        alt.Chart(part).mark_text(align="left", dx=4, dy=dy, fontSize=11).encode(x=alt.value(0), y=y, text="rule:N")
        for part, dy in ((table[~crowded], -7), (table[crowded], 8))
    ]
    return alt.layer(lines, *words, curves).properties(title=title, width=WIDTH, height=300)


def rank_history_chart(history: pd.DataFrame, untrained: Sequence[float] = (), title: str = "") -> alt.LayerChart:
    """RankMe against training step, one line a run; the band holds the untrained encoders of several seeds.

    history: columns step, rankme and perhaps run. untrained: RankMe of each untrained encoder, or none.
    """
    near = history.assign(rankme=rounded(history["rankme"].to_numpy(), 4))
    near = near[[name for name in ("run", "step", "rankme") if name in near]]
    y = alt.Y("rankme:Q", title="RankMe (directions)", scale=alt.Scale(zero=False, padding=12))
    base = alt.Chart(near).encode(x=_step_axis(int(near["step"].max())), y=y)
    if "run" in near:
        base = base.encode(detail="run:N")
    dots = base.mark_point(size=45, opacity=1, color=AXIS_COLOURS["steps"], shape=AXIS_SHAPES["steps"])
    layers = [base.mark_line(color=AXIS_COLOURS["steps"], strokeWidth=1.5), dots.encode(tooltip=list(near.columns))]
    if len(untrained):
        low, high = rounded(np.array([min(untrained), max(untrained)]), 4)
        band = alt.Chart(pd.DataFrame({"rankme": [low], "high": [high]})).encode(y=y, y2="high:Q")
        word = band.mark_text(align="right", baseline="bottom", dx=-4, dy=-3, fontSize=11)
        word = word.encode(x=alt.value(WIDTH), y="high:Q", text=alt.value(f"untrained, {len(untrained)} seeds"))
        layers = [band.mark_rect(color=AXIS_COLOURS["seed"], opacity=0.35), word, *layers]
    return alt.layer(*layers).properties(title=title, width=WIDTH, height=WIDTH // 2)


def _step_axis(last: int) -> alt.X:
    ticks = [0] + [step for step in (3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000) if step < 0.8 * last] + [last]
    scale = alt.Scale(type="symlog", constant=10, domain=[0, last], nice=False)
    return alt.X("step:Q", title="training step", scale=scale).axis(values=ticks, format=",d")


def cost_chart(table: pd.DataFrame, title: str = "") -> alt.Chart:
    """Shares of one training step's arithmetic as stacked bars, one bar a run; the last part is drawn pale.

    table: columns run, part, share (adding up to 1 in each run), flop (per clip), in the order to be drawn.
    """
    runs, parts = list(table["run"].unique()), list(table["part"].unique())
    near = table.assign(share=table["share"].round(4), order=table["part"].map(parts.index))
    colours = alt.Scale(domain=parts, range=[*CATEGORY_COLOURS[: len(parts) - 1], f"{GRID}55"])
    x = alt.X("share:Q", title="share of the arithmetic without skipping", scale=alt.Scale(domain=[0, 1]))
    encodings = {
        "x": x.axis(format="%"),
        "y": alt.Y("run:N", sort=runs, title=None).axis(labelLimit=230),
        "color": alt.Color("part:N", title=None, scale=colours).legend(labelLimit=260, columns=1),
        "tooltip": ["run:N", "part:N", alt.Tooltip("share:Q", format=".1%"), alt.Tooltip("flop:Q", format=".3s")],
    }
    bars = alt.Chart(near, title=title).mark_bar(stroke=GRID, strokeWidth=0.5).encode(order="order:Q", **encodings)
    return bars.properties(width=WIDTH - 120, height={"step": 30})


def similarity_chart(
    matrices: Mapping[str, Any], axis_title: str, limits: tuple[float, float] = (-1, 1)
) -> alt.HConcatChart:
    """Square matrices as pictures side by side, in one colour scale. matrices: title -> (n, n) values."""
    size, panels = 150, []
    for title, values in matrices.items():
        values = _as_array(values)
        ends = pd.DataFrame({"row": [0, len(values)], "column": [0, len(values)], "value": list(limits)})
        side = alt.Axis(values=list(range(0, len(values) + 1, max(1, len(values) // 4))), grid=False)
        colours = alt.Scale(domain=list(limits), range=HEAT, interpolate="rgb")
        bar = alt.Legend(orient="right", gradientLength=size - 20)
        axes = (
            alt.Chart(ends)
            .mark_point(opacity=0)
            .encode(
                x=alt.X("column:Q", title=axis_title, axis=side, scale=alt.Scale(nice=False)),
                y=alt.Y("row:Q", title=axis_title, axis=side, scale=alt.Scale(nice=False, reverse=True)),
                color=alt.Color("value:Q", title=None, scale=colours, legend=bar),
            )
        )
        picture = alt.Chart(pd.DataFrame([{}])).mark_image(width=size, height=size, aspect=False)
        picture = picture.encode(x=alt.value(size / 2), y=alt.value(size / 2), url=alt.value(_png(values, *limits)))
        panels.append(alt.layer(picture, axes).properties(title=title, width=size, height=size))
    return alt.hconcat(*panels, spacing=24)
