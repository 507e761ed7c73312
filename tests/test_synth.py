"""The synthesiser: the same clip whatever the batch, sounds that agree with their labels, no bad samples."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rankscale.config import SAMPLE_RATE
from rankscale.sound import _draw as draw
from rankscale.sound import _environment, _music, _speech
from rankscale.sound import _render as render
from rankscale.sound import synth as room
from rankscale.sound.synth import FAMILIES, KINDS_OF, MAX_SOURCES, synthesize


@pytest.fixture(scope="module")
def mixtures():
    return synthesize(range(96), seed=3)


# --- the same clip, whatever the batch ----------------------------------------------------------------------


def test_clip_does_not_depend_on_its_batch(mixtures):
    order = np.random.default_rng(0).permutation(96)
    shuffled = synthesize(order, seed=3)
    assert (shuffled.waveform - mixtures.waveform[order]).abs().max() <= 1e-5
    for i in (0, 17, 50, 95):
        assert (synthesize([i], seed=3).waveform[0] - mixtures.waveform[i]).abs().max() <= 1e-5


def test_clip_does_not_depend_on_the_block(mixtures, monkeypatch):
    monkeypatch.setitem(room.BLOCK_SAMPLES, "cpu", 7 * 20_480)
    again = synthesize(range(30), seed=3)
    assert (again.waveform - mixtures.waveform[:30]).abs().max() <= 1e-5
    values = again.factors.drop(columns="level_db"), mixtures.factors[:30].drop(columns="level_db")
    assert values[0].equals(values[1])
    np.testing.assert_allclose(again.factors.level_db, mixtures.factors.level_db[:30], atol=1e-4)


def test_same_call_gives_same_samples(mixtures):
    again = synthesize(range(96), seed=3)
    assert torch.equal(again.waveform, mixtures.waveform)
    assert again.factors.equals(mixtures.factors)


def test_clips_and_seeds_differ(mixtures):
    x = torch.nn.functional.normalize(mixtures.waveform, dim=1)
    likeness = (x @ x.T - torch.eye(len(x))).abs().max()
    assert likeness < 0.5
    pairs = [(0, 2**40), (2**40, 0), (5, 2**32 + 1), (2**32 + 5, 1), (1, 5), (5, 1), (2**62, 2**62)]
    clips = [synthesize([clip], seed=seed, clip_s=0.32).waveform[0] for seed, clip in pairs]
    for i, a in enumerate(clips):
        for b in clips[:i]:
            assert not torch.allclose(a, b, atol=1e-3)


def test_longer_clip_has_the_same_sources(mixtures):
    longer = synthesize(range(12), seed=3, clip_s=2.56).factors
    follows_length = [c for c in longer if c.endswith("_text") or c == "level_db"]
    assert longer.drop(columns=follows_length).equals(mixtures.factors[:12].drop(columns=follows_length))


def test_another_instruction_set_gives_the_same_clips(tmp_path):
    """Other vector code rounds differently, as another device does: frequencies must not drift apart."""
    make = (
        "import sys, torch; torch.set_num_threads(1); from rankscale.sound.synth import synthesize;"
        "torch.save([synthesize(range(12), 4).waveform, synthesize(range(2), 4, 8.0).waveform], sys.argv[1])"
    )
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    subprocess.run([sys.executable, "-c", make, str(tmp_path / "plain.pt")], env=environment, check=True)
    plain = torch.load(tmp_path / "plain.pt")
    here = [synthesize(range(12), 4).waveform, synthesize(range(2), 4, 8.0).waveform]
    for a, b in zip(plain, here, strict=True):
        assert (a - b).abs().max() <= 1e-4


def test_rendering_stays_on_its_device():
    """Tensors without data, which refuse to mix devices, stand in for a GPU that the test machine need not have."""
    block = room._draw(np.arange(60), 3, 0.32, None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        dry, _ = room._play_sources(block, 5120, torch.device("cuda"), None)
        for part in room._place_in_room(dry, block.scene):
            assert part.device.type == "cuda" and part.dtype == torch.float32 and part.shape == (60, 5120)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_makes_the_same_clips(mixtures):
    on_gpu = synthesize(range(96), seed=3, device="cuda")
    assert (on_gpu.waveform.cpu() - mixtures.waveform).abs().max() <= 1e-4
    longer = synthesize(range(4), clip_s=20.0, device="cuda").waveform.cpu()
    assert (longer - synthesize(range(4), clip_s=20.0).waveform).abs().max() <= 1e-4


# --- finite, bounded, audible -------------------------------------------------------------------------------


@pytest.mark.parametrize(("clip_s", "count"), [(0.16, 100), (0.3333, 40), (1.28, 96), (2.56, 24), (10.0, 6), (60.0, 1)])
def test_samples_are_finite_bounded_and_audible(clip_s, count):
    x = synthesize(range(2**40, 2**40 + count), seed=8, clip_s=clip_s).waveform
    assert x.shape == (count, round(clip_s * SAMPLE_RATE)) and x.dtype == torch.float32
    assert x.isfinite().all()
    assert x.abs().max() <= 1
    assert x.square().mean(1).sqrt().min() > 5e-4  # level_db is at least -60


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_is_heard(family):
    for kind in KINDS_OF[family]:
        batch = synthesize(range(4), seed=1, clip_s=0.8, family=family, kind=kind)
        assert (batch.factors.source0_kind == kind).all()
        assert batch.waveform.isfinite().all()
        dry, _ = room._play_sources(
            room._draw(np.arange(4), 1, 0.8, family), round(0.8 * SAMPLE_RATE), torch.device("cpu"), kind
        )
        assert dry.square().mean(1).min() > 1e-6, kind  # the source itself, not the background


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"index": []}, "index"),
        ({"index": [-1]}, "index -1"),
        ({"index": [2**63 - 1]}, "index"),
        ({"seed": -2}, "seed -2"),
        ({"clip_s": 0.1}, "clip_s 0.1"),
        ({"clip_s": math.nan}, "clip_s nan"),
        ({"family": "noise"}, "family 'noise'"),
        ({"kind": "rain"}, "kind 'rain'"),
        ({"family": "music", "kind": "rain"}, "guitar"),
    ],
)
def test_bad_argument_is_named(change, named):
    with pytest.raises(ValueError, match=named):
        synthesize(**({"index": [0]} | change))


# --- factors ------------------------------------------------------------------------------------------------


def test_factors_describe_every_source(mixtures):
    f = mixtures.factors
    assert len(f) == 96 and f["clip"].tolist() == list(range(96)) and (f.seed == 3).all()
    assert not f[[name for name in room.SCENE if not name.startswith("key")]].isna().any().any()
    present = np.stack([f[f"source{k}_family"].notna() for k in range(MAX_SOURCES)], 1)
    assert (present.sum(1) == f.n_sources).all()
    for k in range(MAX_SOURCES):
        for family in FAMILIES:
            rows = f[f[f"source{k}_family"] == family]
            assert rows[f"source{k}_kind"].isin(KINDS_OF[family]).all()
            needed = [f"source{k}_{name}" for name in (*room._FAMILIES[family].recipe, "gain_db", "start")]
            assert not rows[needed].isna().any().any()
        nobody = f[f"source{k}_family"].isna()
        assert f.loc[nobody, [c for c in f if c.startswith(f"source{k}_")]].isna().all().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_names_a_factor_as_a_property_of_the_source(family):
    assert not room._FAMILIES[family].recipe.keys() & {n for n in room.SOURCE if not n.startswith("key")}


def test_columns_do_not_depend_on_the_clips(mixtures):
    alone = synthesize([0], family="music", clip_s=0.16).factors
    assert list(alone) == list(mixtures.factors)


def test_recipes_fit_the_numbers_drawn_for_them():
    assert all(len(family.recipe) <= render.N_FACTORS for family in room._FAMILIES.values())


def test_factors_are_many_and_heavy_tailed():
    f = synthesize(range(1000), clip_s=0.16).factors
    assert 0.55 < (f.reverb_s > 0).mean() < 0.65
    assert f.snr_db.between(-5, 40).all() and f.snr_db.min() < 0 and f.snr_db.max() > 35
    assert set(f.n_sources) == {1, 2, 3, 4}
    kinds = f.source0_kind.value_counts()
    assert len(kinds) > 40 and kinds.iloc[0] > 10 * kinds.iloc[-1]
    scenes = f[[f"source{k}_kind" for k in range(MAX_SOURCES)]].astype("object").fillna("")
    assert len(scenes.drop_duplicates()) > 600
    jitter = f.source0_jitter.dropna()
    assert jitter.quantile(0.99) > 5 * jitter.median()


def test_level_label_is_the_level(mixtures):
    rms = mixtures.waveform.double().square().mean(1).sqrt()
    np.testing.assert_allclose(20 * torch.log10(rms), mixtures.factors.level_db, atol=1e-3)


def test_snr_label_is_the_ratio_of_signal_to_noise():
    block = room._draw(np.arange(40), 3, 1.28, None)
    dry, _ = room._play_sources(block, 20_480, torch.device("cpu"), None)
    signal, noise = room._place_in_room(dry, block.scene)
    snr = 10 * torch.log10(signal.square().mean(1) / noise.square().mean(1))
    np.testing.assert_allclose(snr, block.scene["snr_db"], atol=0.01)
    wave = synthesize(range(40), seed=3).waveform
    both = render.normalise(signal + noise)
    assert (render.normalise(wave) - both).abs().max() < 1e-4  # and these two are all there is


def test_reverb_label_is_the_decay_of_the_echo():
    click = torch.zeros(5, 40_000)
    click[:, 100] = 1
    label = np.array([0.2, 0.5, 0.8, 1.2, 2.0])
    col = {"reverb_s": label, "wet_db": np.zeros(5), "damping_db": np.zeros(5)}
    key = torch.arange(10, dtype=torch.int32).view(5, 2) * 7_654_321
    echo = room._echo(click, {k: torch.tensor(v, dtype=torch.float32)[:, None] for k, v in col.items()}, key)
    left = echo.double().square().flip(1).cumsum(1).flip(1)  # Schroeder: energy still to come
    db = 10 * torch.log10(left / left[:, :1])
    for curve, reverb_s in zip(db, label, strict=True):
        early, late = ((curve < level).nonzero()[0, 0] / SAMPLE_RATE for level in (-5, -25))
        assert 3 * (late - early) == pytest.approx(reverb_s, rel=0.15)


# --- sounds agree with their labels -------------------------------------------------------------------------


def measure_f0(x: torch.Tensor, expected: float) -> float:
    """The strongest period within a fifth either side of what is expected, by autocorrelation."""
    lag = torch.fft.irfft(torch.fft.rfft(x, n=2 * len(x)).abs() ** 2)[: len(x) // 2]
    low, high = int(SAMPLE_RATE / expected / 1.5), math.ceil(SAMPLE_RATE / expected * 1.5)
    best = low + int(lag[low:high].argmax())
    a, b, c = lag[best - 1], lag[best], lag[best + 1]
    return SAMPLE_RATE / (best + float((a - c) / (2 * (a - 2 * b + c))))


def find_clips(family: str, count: int, kind: str, **ranges: tuple[float, float] | str) -> list[int]:
    """The first clips of corpus 0 whose factors are as wanted; factors are drawn, nothing is rendered."""
    block, room_of = room._draw(np.arange(6000), 0, 0.16, family), room._FAMILIES[family]
    table = draw.draw_table(room_of.recipe, block.factor)
    table = room_of.complete(table | {"kind": np.full(6000, kind)})
    wanted = np.ones(6000, bool)
    for name, value in ranges.items():
        wanted &= (
            table[name] == value if isinstance(value, str) else (table[name] >= value[0]) & (table[name] <= value[1])
        )
    assert wanted.sum() >= count
    return np.flatnonzero(wanted)[:count].tolist()


@pytest.mark.parametrize("kind", ["organ", "bowed", "clarinet", "guitar", "FM brass", "electric piano"])
def test_music_has_the_labelled_pitch(kind):
    steady = {"arrangement": "repeated", "glide_s": (0, 0), "vibrato": (0, 0.1), "tonic_midi": (40, 65)}
    batch = synthesize(find_clips("music", 8, kind, **steady), clip_s=0.64, family="music", kind=kind)
    for x, f0 in zip(batch.waveform, batch.factors.source0_f0_hz, strict=True):
        assert measure_f0(x, f0) == pytest.approx(f0, rel=0.01)


def test_speech_has_the_labelled_pitch():
    steady = {"intonation": (0, 0.05), "vibrato": (0, 0), "jitter": (0, 0.008)}
    batch = synthesize(find_clips("speech", 12, "modal", **steady), clip_s=1.28, family="speech", kind="modal")
    octaves = [
        abs(math.log2(measure_f0(x, f0) / f0))
        for x, f0 in zip(batch.waveform, batch.factors.source0_f0_hz, strict=True)
    ]
    assert np.median(octaves) < 0.08  # what intonation there is moves it


def peaks_hz(response: torch.Tensor) -> list[float]:
    """Local maxima of a spectrum over rfft's bins."""
    x = response.abs()
    top = (x[1:-1] > x[:-2]) & (x[1:-1] > x[2:])
    return [(int(i) + 1) * SAMPLE_RATE / render.N_FFT for i in top.nonzero()[:, 0]]


@pytest.mark.parametrize("scale", [0.85, 1.0, 1.3])
@pytest.mark.parametrize("vowel", ["i", "a", "e"])
def test_vowel_has_its_formants(vowel, scale):
    block = room._draw(np.arange(1), 0, 0.32, "speech")
    table = _speech.complete_speech(draw.draw_table(_speech.SPEECH, block.factor))
    table |= {"tract_scale": np.array([scale]), "nasal": np.zeros(1), "sharpness": np.ones(1)}
    rows = render.Rows(table, block.event, torch.zeros(1, 2, dtype=torch.int32), 5120)
    phone = _speech.PHONES[vowel]
    target = torch.tensor(phone[:3], dtype=torch.float32).expand(1, rows.frames, 3)
    flat = torch.ones(1, math.ceil(5120 / render.BLOCK) + 1, render.N_FFT // 2 + 1, dtype=torch.complex64)
    found = peaks_hz(_speech.shape_formants(rows, flat, target)[0, 5])
    for formant in phone[:3]:
        assert min(abs(peak - formant * scale) for peak in found) < 60


def count_onsets(x: torch.Tensor) -> int:
    """Rises of the energy through a tenth of its maximum, in windows of 10 ms."""
    energy = x.unfold(0, 160, 160).square().mean(1)
    loud = energy > 0.1 * energy.max()
    return int((loud[1:] & ~loud[:-1]).sum() + loud[0])


@pytest.mark.parametrize("kind", ["ticking", "beeps"])
def test_clocks_tick_at_the_labelled_rate(kind):
    even = {"contrast": (0, 0.3), "rate_hz": (1, 4), "decay_s": (0, 0.1)}
    batch = synthesize(find_clips("environment", 8, kind, **even), clip_s=5.0, family="environment", kind=kind)
    for x, rate_hz in zip(batch.waveform, batch.factors.source0_rate_hz, strict=True):
        assert count_onsets(x) == pytest.approx(5 * rate_hz, rel=0.12, abs=1.5)


def test_drums_keep_the_labelled_tempo():
    clips = find_clips("music", 8, "drums", swing=(0, 0), tempo_bpm=(60, 200))
    batch = synthesize(clips, clip_s=5.0, family="music", kind="drums")
    off_grid = []
    for x, tempo_bpm in zip(batch.waveform, batch.factors.source0_tempo_bpm, strict=True):
        onset = x.unfold(0, 80, 80).square().mean(1).sqrt().diff().clamp(min=0)
        loud = (onset * (onset > 0.1 * onset.max())).numpy()
        on, off = (  # 1: every onset is on a grid of half beats
            abs(np.sum(loud * np.exp(2j * np.pi * hertz * np.arange(len(loud)) / 200))) / loud.sum()
            for hertz in (tempo_bpm / 30, 1.17 * tempo_bpm / 30)
        )
        assert on > 0.75
        off_grid.append(off)
    assert np.mean(off_grid) < 0.5


def test_rain_has_more_drops_where_the_label_says_so():
    few, many = (
        render.shower(
            render.Rows({}, np.zeros((1, 1, 1)), torch.tensor([[5, 9]], dtype=torch.int32), 160_000),
            torch.tensor([[rate]]), 0.0, torch.ones(1, 2, 1),
        ).round()
        for rate in (20.0, 400.0)
    )  # fmt: skip
    assert few.sum() == pytest.approx(200, rel=0.25)
    assert many.sum() == pytest.approx(4000, rel=0.06)


@pytest.mark.parametrize("clip_s", [0.16, 1.28, 10.0])
def test_events_last_for_the_whole_clip(clip_s):
    onsets = {"speech": lambda rows: _speech.compose_utterance(rows).phone_s}
    onsets |= {"music": lambda rows: _music.time_notes(rows)[0], "environment": _environment.time_events}
    for name, family in room._FAMILIES.items():
        block = room._draw(np.arange(1000), 5, clip_s, name)
        table = family.complete(draw.draw_table(family.recipe, block.factor))
        key = torch.zeros(1000, 2, dtype=torch.int32)
        onset = onsets[name](render.Rows(table, block.event, key, round(clip_s * SAMPLE_RATE)))
        assert (np.diff(onset, axis=1) >= 0).all(), name
        assert onset[:, -1].min() >= clip_s, name


# --- oscillators, filters, randomness -----------------------------------------------------------------------


def test_phase_stays_exact_for_a_minute():
    sample, hz = 960_000, 3999.7
    curve = torch.full((1, sample // render.CONTROL + 1), hz, dtype=torch.float64)
    made = render.tone(curve, torch.ones_like(curve), sample)[0, -500:]
    exact = np.sin(2 * np.pi * hz * np.arange(sample)[-500:] / SAMPLE_RATE)
    np.testing.assert_allclose(made, exact, atol=2e-4)


def test_sweep_has_the_integral_of_its_frequency_as_phase():
    curve = torch.linspace(200, 2000, 201, dtype=torch.float64)[None]
    t = np.arange(200 * render.CONTROL) / SAMPLE_RATE
    exact = np.sin(2 * np.pi * (200 * t + 900 * t**2))  # 1800 Hz more after one second
    np.testing.assert_allclose(render.tone(curve, torch.ones_like(curve), len(t))[0], exact, atol=1e-4)


def test_pulses_are_the_sum_of_their_harmonics():
    curve = torch.full((1, 21), 130.0, dtype=torch.float64)
    x = 2 * np.pi * 130 * np.arange(1600) / SAMPLE_RATE
    r = math.exp(-130 / 900)
    exact = sum(r**h * np.sin(h * x) for h in range(1, 200))
    np.testing.assert_allclose(render.pulses(curve, torch.full((1, 1), 900.0), 1600)[0], exact, atol=1e-4)


def test_frames_add_up_to_the_sound():
    x = draw.hash_noise(torch.tensor([[3, 4]], dtype=torch.int32), 5000)
    np.testing.assert_allclose(render.from_frames(render.to_frames(x), 5000), x, atol=1e-5)


def test_resonance_is_the_product_of_its_resonators():
    centre, width = torch.tensor([[[300.0, 1200, 2500]]]), torch.tensor([[[60.0, 90, 150]]])
    x = render.bin_hz(render.N_FFT, torch.device("cpu")).double()[:, None] / centre[0].double()
    exact = (1 / (1 - x**2 + 1j * x * width[0] / centre[0])).prod(1)
    np.testing.assert_allclose(render.resonance(centre, width)[0, 0], exact, rtol=1e-3, atol=1e-5)


def test_noise_is_white_and_differs_between_keys():
    key = torch.tensor([[0, 0], [0, 1], [1 << 20, 0], [-5, 77]], dtype=torch.int32)
    x = draw.hash_noise(key, 1 << 17).double()
    assert x.mean(1).abs().max() < 0.015 and (x.var(1) - 1).abs().max() < 0.02
    alike = x @ x.T / x.shape[1] - torch.eye(4)
    assert alike.fill_diagonal_(0).abs().max() < 0.02
    for lag in (1, 2, 160, 512):
        assert (x[:, lag:] * x[:, :-lag]).mean(1).abs().max() < 0.015
    u = draw.hash_uniform(key, 1 << 17)
    assert u.min() >= 0 and u.max() < 1 and (u.mean(1) - 0.5).abs().max() < 0.005


def test_longer_draw_begins_with_the_shorter():
    assert np.array_equal(draw.draw_uniform(1, 2, 3, 50)[:20], draw.draw_uniform(1, 2, 3, 20))
    slots = [draw.draw_uniform(1, 2, slot, 20) for slot in range(5)]
    assert len({tuple(u) for u in slots}) == 5


def test_quantile_functions():
    u = (np.arange(10_000) + 0.5) / 10_000
    assert np.median(draw.lognormal(4.0, 0.5)(u)) == pytest.approx(4.0, rel=1e-3)
    assert np.log(draw.lognormal(4.0, 0.5)(u)).std() == pytest.approx(0.5, rel=0.01)
    assert (draw.pareto(2.0, 1.5)(u) > 8.0).mean() == pytest.approx((2 / 8) ** 1.5, abs=1e-3)
    share = (draw.zipf(("a", "b", "c"), 1.0)(u) == "b").mean()
    assert share == pytest.approx((1 / 2) / (1 + 1 / 2 + 1 / 3), abs=1e-3)
    assert (draw.sometimes(0.3, draw.uniform(5, 6), 0.0)(u) > 0).mean() == pytest.approx(0.3, abs=1e-3)
    assert draw.normal(0, 1, -0.5, 0.5)(u).max() == 0.5


def test_lexicon_is_large_and_pronounceable():
    assert _speech.LEXICON.shape == (1024, 7) and len(_speech.SPELLING) == 1024
    assert len(set(_speech.SPELLING)) > 600
    vowels = {_speech.NAMES.index(v) for v in _speech.VOWELS}
    assert set(_speech.LEXICON[:, 3:5].ravel()) <= vowels
    said = synthesize(range(20), seed=2, clip_s=2.56, family="speech").factors.source0_text
    assert all(set(text.split("-")) <= set(_speech.SPELLING) for text in said if text)
    assert (said.str.len() > 3).mean() > 0.8
