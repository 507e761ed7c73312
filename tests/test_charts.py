"""Figures, captions and players: colours that can be seen, files that are right, pages that stay offline."""

import base64
import io
import json
import re
import struct
import zlib
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import torchaudio
import vl_convert

from rankscale import charts, spectra
from rankscale.widgets import explore, live

ROOT = Path(__file__).resolve().parent.parent
GROUNDS = ("#ffffff", "#121212")  # the page in the light and in the dark
TONE = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A folder for the files of one page, as the book sets it."""
    monkeypatch.setenv(charts.ASSETS, str(tmp_path))
    monkeypatch.setenv(charts.ASSETS_URL, "../_static/chapters/x")
    return tmp_path


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2, from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_knows_black_on_white():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("ground", GROUNDS)
def test_every_colour_is_seen_on_light_and_dark(ground):
    colours = {**charts.AXIS_COLOURS, **charts.FAMILY_COLOURS, "ink": charts.INK}
    colours |= {f"category {i}": colour for i, colour in enumerate(charts.CATEGORY_COLOURS)}
    assert {name: round(contrast(c, ground), 2) for name, c in colours.items() if contrast(c, ground) < 3} == {}


def test_axes_have_colours_of_their_own_and_shapes():
    assert len(set(charts.AXIS_COLOURS.values())) == len(charts.AXIS_COLOURS)
    assert charts.AXIS_SHAPES.keys() == charts.AXIS_COLOURS.keys()


def test_the_style_sheet_knows_the_theme_greys():
    css = (ROOT / "book/_static/rankscale.css").read_text()
    greys = set(re.findall(r'\[(?:fill|stroke)="(#\w+)"\]', css))
    assert greys == {charts.INK, charts.GRID}


def test_vega_bundle_is_one_offline_script_with_the_guard_altair_compares():
    bundle = charts.vega_bundle()
    guard = json.loads(re.search(r"var VEGA_DEBUG=(\{.*?\});\s*$", bundle)[1])
    assert guard == {
        "vega_version": alt.VEGA_VERSION,
        "vegalite_version": alt.VEGALITE_VERSION,
        "vegaembed_version": alt.VEGAEMBED_VERSION,
    }
    assert "window.vegaEmbed=" in bundle
    assert "</script" not in bundle.lower()


def test_page_charts_name_no_server_and_cannot_break_out_of_their_script(page):
    alt.renderers.register("test-page", charts._page_renderer)
    table = pd.DataFrame({"x": [1], "y": ["</script><b>"]})
    with alt.renderers.enable("test-page"):
        found = alt.Chart(table).mark_point().encode(x="x", y="y")._repr_mimebundle_(None, None)
    html = found["text/html"] if isinstance(found, dict) else found[0]["text/html"]
    assert html.count("</script>") == 1
    assert set(re.findall(r"https?://[^\"/]+", html)) == {"https://vega.github.io"}  # the schema's name


def mel_like(frames: int = 40) -> np.ndarray:
    return np.random.default_rng(0).normal(-40, 15, (64, frames))


FIGURES = {
    "waveform": lambda: charts.waveform_chart(TONE),
    "mel": lambda: charts.mel_chart(mel_like(), "title"),
    "loss": lambda: charts.loss_chart(pd.DataFrame({"step": [1, 2, 3], "loss": [1.0, 0.5, 0.4]})),
    "losses": lambda: charts.loss_chart(
        pd.DataFrame({"step": [1, 2, 1, 2], "loss": [1.0, 0.5, 0.9, 0.4], "run": ["a", "a", "b", "b"]})
    ),
    "spectrum": lambda: charts.spectrum_chart({"a": [4, 2, 1], "b": torch.tensor([1.0, 1, 0])}, share=True),
    "sample size": lambda: charts.sample_size_chart(
        pd.DataFrame({"spectrum": ["a", "b"], "ratio": [1, 2], "share": [0.8, 0.9], "low": 0.7, "high": 0.95}),
        pd.DataFrame({"line": ["rule", "rule", "exact", "exact"], "ratio": [1, 2, 1, 2], "share": [0.9, 1, 0.8, 0.9]}),
    ),
    "decays": lambda: charts.decays_chart({"a": np.arange(1, 9.0) ** -1, "b": torch.tensor([1.0, 0.5, 0])}, (2, 9)),
    "scores": lambda: charts.score_chart(
        pd.DataFrame({"name": ["a", "b"], "score": [0.5, 0.7], "low": [0.4, 0.6], "high": [0.6, 0.8]}), chance=0.1
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_valid_and_draw(name):
    with alt.theme.enable("rankscale"):
        spec = FIGURES[name]().to_dict()
    assert spec["config"]["background"] == "transparent"
    svg = vl_convert.vegalite_to_svg(spec, vl_version=".".join(alt.VEGALITE_VERSION.split(".")[:2]))
    assert svg.count("<path") > 3
    assert "NaN" not in svg


def read_png(url: str) -> np.ndarray:
    """(row, column, rgba) of the indexed images that charts makes."""
    content = base64.b64decode(url.partition(",")[2])
    chunks, at = {}, 8
    while at < len(content):
        size, kind = struct.unpack(">I4s", content[at : at + 8])
        body = content[at + 8 : at + 8 + size]
        assert struct.unpack(">I", content[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + size
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    index = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)[:, 1:]
    colours = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)[index]
    return np.dstack([colours, np.where(index == 0, 0, 255)])


def test_mel_image_has_low_bands_below_and_masked_cells_empty():
    mel = np.full((64, 10), -80.0)
    mel[0, :] = 0  # the lowest band is loud
    mel[:, 4] = np.nan
    image = next(
        layer["encoding"]["url"]["value"]
        for layer in charts.mel_chart(mel).to_dict()["layer"]
        if "url" in layer["encoding"]
    )
    pixels = read_png(image)
    assert pixels.shape == (64, 10, 4)
    assert "#{:02x}{:02x}{:02x}".format(*pixels[-1, 0, :3]) == charts.HEAT[-1]
    assert "#{:02x}{:02x}{:02x}".format(*pixels[0, 0, :3]) == charts.HEAT[0]
    assert (pixels[:, 4, 3] == 0).all()
    assert (np.delete(pixels[..., 3], 4, axis=1) == 255).all()


def test_mel_ticks_stand_where_the_filters_peak():
    layers = charts.mel_chart(mel_like()).to_dict()["layer"]
    ticks = next(layer["encoding"]["y"]["axis"]["values"] for layer in layers if "color" in layer["encoding"])
    bank = torchaudio.functional.melscale_fbanks(4097, 0, 8000, 64, 16_000)  # (frequency, band), 1.95 Hz apart
    peaks = bank.argmax(dim=0).numpy() * 8000 / 4096
    at = np.interp(ticks[:-1], np.arange(64), peaks)  # the last, 8 kHz, lies at the edge of the last filter
    np.testing.assert_allclose(at, charts.MEL_TICKS_HZ[:-1], rtol=0.01)


def test_mel_chart_refuses_a_batch():
    with pytest.raises(ValueError, match=r"one clip of shape \(64, frame\)"):
        charts.mel_chart(np.zeros((2, 64, 10)))


def test_numbers_are_shortened_not_changed():
    values = np.array([0, -1234567.8, 1e-12 / 3, np.nan, 3])
    np.testing.assert_allclose(charts.rounded(values), values, rtol=1e-4)
    assert charts.rounded(values)[1] == -1234600


def test_player_in_a_page_writes_a_file_of_the_same_length_and_level(page):
    html = charts.player(torch.tensor(TONE, dtype=torch.float32), "A tone", "440 Hz & synthetic").data
    assert 'src="../_static/chapters/x/a-tone.mp3"' in html
    assert "440 Hz &amp; synthetic" in html
    sound, rate = soundfile.read(page / "a-tone.mp3")
    assert rate == 16_000
    assert len(sound) == pytest.approx(len(TONE), abs=1200)  # whole MP3 frames
    assert np.sqrt((sound[4000:12_000] ** 2).mean()) == pytest.approx(0.25 / np.sqrt(2), rel=0.02)


def test_player_elsewhere_carries_its_sound(monkeypatch):
    monkeypatch.delenv(charts.ASSETS, raising=False)
    url = re.search(r'src="data:audio/mpeg;base64,([^"]+)"', charts.player(TONE, "tone").data)[1]
    assert soundfile.info(io.BytesIO(base64.b64decode(url))).duration == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize(
    ("waveform", "words"),
    [
        (np.zeros((2, 100)), "one waveform"),
        (np.array([]), "one waveform"),
        (np.array([0, np.nan]), "NaN"),
        (np.array([0, 1.5]), "clip"),
    ],
)
def test_player_refuses_what_it_would_have_to_change(waveform, words):
    with pytest.raises(ValueError, match=words):
        charts.player(waveform, "bad")


def test_two_different_files_cannot_share_a_name(page):
    charts.player(TONE, "tone")
    charts.player(TONE, "tone")  # a cell may be run again
    with pytest.raises(ValueError, match="two different files"):
        charts.player(TONE / 2, "tone")


def test_show_links_the_table(page, capsys):
    table = pd.DataFrame({"x": [1, 2], "y": [3, 4]})
    charts.show(alt.Chart(table).mark_point().encode(x="x", y="y"), "caption", table, "my points")
    pd.testing.assert_frame_equal(pd.read_csv(page / "my-points.csv"), table)
    with pytest.raises(ValueError, match="needs name="):
        charts.show(alt.Chart(table).mark_point(), "caption", table)


def test_explore_without_a_kernel_shows_the_defaults(capsys):
    seen = []

    def measure(alpha=1.5, clips=10):
        seen.append((alpha, clips))

    assert not live()
    explore(measure, alpha=(0.0, 2.0))
    assert seen == [(1.5, 10)]


def test_explore_refuses_unknown_controls_and_missing_defaults():
    with pytest.raises(ValueError, match="no parameter beta"):
        explore(lambda alpha=1: None, beta=(0, 1))
    with pytest.raises(ValueError, match="give alpha a default"):
        explore(lambda alpha: None, alpha=(0, 1))


@pytest.mark.parametrize(
    "moved", [{}, {"decay": 4, "noise": 0.05}, {"offset": 20}, {"dim": 512, "decay": 3, "offset": 1.5, "noise": 0.3}]
)
def test_rank_explorer_shows_what_spectra_measures(moved):
    spec = charts.rank_explorer().to_dict()
    values = {param["name"]: param["value"] for param in spec["params"]} | moved
    for param in spec["params"]:
        param["value"] = values[param["name"]]
    energy = np.arange(1, values["dim"] + 1.0) ** -values["decay"] + values["noise"] ** 2
    shifted = energy + values["offset"] ** 2 * (np.arange(values["dim"]) == 0)
    expected = [
        spectra.rankme(np.sqrt(shifted)),
        spectra.rankme(np.sqrt(energy)),
        spectra.effective_rank_squared(np.sqrt(energy), center=False),
    ]
    svg = vl_convert.vegalite_to_svg(spec, vl_version="6.4")
    assert re.findall(r'font-size="14px"[^>]*>([\d.]+)<', svg) == [f"{value:.1f}" for value in expected]


def test_rank_explorer_never_overwrites_a_field():
    """A slider re-runs only the steps that depend on it: a field written twice would be stale after a move."""
    text = charts.rank_explorer().to_json()
    for layer in re.split(r'"transform": ', text)[1:]:
        written = re.findall(r'"as": "(\w+)"', layer.split('"encoding"')[0])
        assert written and len(written) == len(set(written))


def made_gallery() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Three embeddings, two metrics and two judges: what `gallery_explorer` draws."""
    liked = {"rank": {"a": 1, "b": 2, "c": 3}, "cosine": {"a": 3, "b": 1, "c": 2}}
    rows = [
        (metric, judge, name, f"about {name}", 1.25 * place, place, 0.3 * place, 0.25 * place, 0.33 * place)
        for metric, places in liked.items()
        for judge in ("linear", "near")
        for name, place in places.items()
    ]
    columns = ["metric", "judge", "embedding", "what", "value", "place", "score", "low", "high"]
    notes = [(metric, judge, f"first {metric} {judge}", "second") for metric in liked for judge in ("linear", "near")]
    return pd.DataFrame(rows, columns=columns), pd.DataFrame(notes, columns=["metric", "judge", "first", "second"])


@pytest.mark.parametrize(
    ("metric", "judge", "order"), [("rank", "linear", ["a", "b", "c"]), ("cosine", "near", ["b", "c", "a"])]
)
def test_gallery_explorer_orders_the_embeddings_by_the_chosen_metric(metric, judge, order):
    spec = charts.gallery_explorer(*made_gallery(), chance=0.1).to_dict()
    chosen = {"gallery_metric": metric, "gallery_judge": judge}
    assert {param["name"] for param in spec["params"]} == set(chosen)
    for param in spec["params"]:
        param["value"] = chosen[param["name"]]
    svg = vl_convert.vegalite_to_svg(spec, vl_version="6.4")
    height = {name: float(y) for y, name in re.findall(r"translate\(-10,([\d.]+)\)[^>]*>([abc])<", svg)}
    assert sorted(height, key=height.get) == order
    assert re.findall(r">(first [^<]*)<", svg) == [f"first {metric} {judge}"]
    beside = {shown: float(y) for y, shown in re.findall(r",([\d.]+)\)[^>]*>(\d\.\d\d)<", svg)}
    assert [beside[value] for value in ("1.25", "2.50", "3.75")] == sorted(height.values())


def test_gallery_explorer_offers_what_the_table_holds_and_writes_no_field():
    spec = charts.gallery_explorer(*made_gallery(), chance=0.1).to_dict()
    assert [param["bind"]["options"] for param in spec["params"]] == [["rank", "cosine"], ["linear", "near"]]
    assert '"as":' not in json.dumps(spec)  # it only filters: nothing can be stale after a choice
