"""Synthetic listening tasks in HEAR's shape: what a frozen embedding must tell apart, with known answers.

Every task is built so that the long-term mean and spread of the log-Mel bands say little: classes share their
phones, notes or spectra and differ in order, binding or timing, and each clip passes through its own room,
equaliser, level and background noise. Voices, timbres, taps, textures, rooms and noises are numbered, and no
number is shared between train, valid and test. Nothing here is used by the pre-training corpus.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import torch
from numpy.random import Generator, Philox, SeedSequence
from scipy import fft, signal

from rankscale.config import SAMPLE_RATE
from rankscale.sound.tasks import Fold, Split, Task

TASK_VERSION = "v1"
CLIP = 20_480  # samples: 1.28 s
SIZES = {"train": 1500, "valid": 500, "test": 1500}  # clips in each split
# Numbered voices, timbres, taps, textures, rooms and noises that a split may use: held out from the others.
_POOLS = {"train": range(0, 150), "valid": range(150, 190), "test": range(190, 270)}
_SEED = 20_240_917  # of TASK_VERSION v1; any change to a sound is a new version
# Factors that never take the same value in two splits; a task has the ones it uses.
HELD_OUT = ("voice", "utterance", "phones", "pitch", "timbre", "tap", "texture", "number", "room", "noise")

Factors = dict[str, object]


def _rng(*key: str | int) -> Generator:
    """A generator of its own for every key; strings count by their CRC."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return Generator(Philox(SeedSequence([_SEED, *words])))


def _held(rng: Generator, part: str) -> int:
    """The number of a voice, timbre, tap, texture, room or noise that only this split uses."""
    return int(rng.choice(_POOLS[part]))


# Parts of sounds ------------------------------------------------------------------------------------------


def _ramp(length: int, attack: int, release: int) -> np.ndarray:
    """One, with raised-cosine edges of the given lengths (samples)."""
    shape = np.ones(length, np.float32)
    attack, release = min(attack, length // 2), min(release, length // 2)
    shape[:attack] = np.sin(np.linspace(0, np.pi / 2, attack, endpoint=False)) ** 2
    shape[length - release :] = np.cos(np.linspace(0, np.pi / 2, release)) ** 2
    return shape


def _add(out: np.ndarray, sound: np.ndarray, start: int) -> None:
    """Mix a sound in at a sample; what hangs over the end is cut."""
    room = max(0, len(out) - start)
    out[start : start + len(sound)] += sound[:room]


def _unit(sound: np.ndarray) -> np.ndarray:
    """Scaled to a root mean square of one."""
    return sound / (np.sqrt(np.mean(np.square(sound))) + 1e-9)


def _fraction(turns: np.ndarray) -> np.ndarray:
    """What is left above the whole turns, from 0 to 1, as float32."""
    return (turns - np.floor(turns)).astype(np.float32)


def _play(table: np.ndarray, f0: np.ndarray, phase: float = 0.0) -> np.ndarray:
    """Read a one-cycle wavetable at a frequency (Hz) for each sample, by linear interpolation."""
    position = _fraction(np.cumsum(f0 / SAMPLE_RATE, dtype=np.float64) + phase) * np.float32(len(table))
    whole = position.astype(np.int32)
    closed = np.append(table, table[:2])  # position may round up to the whole length
    low = closed[whole]
    return low + (closed[whole + 1] - low) * (position - whole)


def _wander(rng: Generator, length: int, semitones: float, glide: float = 0.0) -> np.ndarray:
    """A slow random factor of pitch, within about the given semitones, around a glide from -half to +half."""
    knots = rng.normal(0, semitones / 2, 5) + np.linspace(-glide / 2, glide / 2, 5)
    return 2 ** (np.interp(np.arange(length), np.linspace(0, length, 5), knots) / 12)


# Voice: a glottal pulse table through all-pole vowels -------------------------------------------------------

_FORMANTS = {"i": (290, 2250, 3000), "e": (440, 1900, 2550), "a": (760, 1250, 2550), "o": (480, 850, 2450),
             "u": (320, 720, 2300)}  # fmt: skip
_BANDWIDTHS = (70, 95, 140, 220, 280)
_HISSES = {"s": (5600, 1800), "x": (2700, 700)}  # centre and bandwidth of two fricatives (Hz)


@dataclass(frozen=True)
class _Voice:
    """A speaker: glottal cycle, mean pitch (Hz), length of the vocal tract and own vowel colours."""

    pulse: np.ndarray
    f0: float
    tract: float  # factor on all formants
    tremor_hz: float
    breath: float
    colours: dict[str, np.ndarray]  # all-pole denominators


@cache
def _voice(number: int) -> _Voice:
    """A numbered talker, between 85 and 240 Hz, from large to small."""
    rng = _rng("voice", number)
    return _make_voice(85 * 2 ** rng.uniform(0, 1.5), rng.uniform(0.82, 1.2), rng)


@cache
def _speaker_voice(tract: int) -> _Voice:
    """One of the five vocal tracts of the speaker task: a smaller tract, a higher voice."""
    return _make_voice(120 * 1.12**tract, 0.8 * 1.11**tract, _rng("tract", tract))


def _make_voice(f0: float, tract: float, rng: Generator) -> _Voice:
    pulse = _glottal_cycle(rng.uniform(0.45, 0.75), rng.uniform(0.015, 0.12), int(7600 / (1.6 * f0)))
    colours = {}
    for vowel, formants in _FORMANTS.items():
        peaks = np.array([*formants, 3700, 4700]) * tract * rng.normal(1, 0.03, 5)
        colours[vowel] = _all_pole(peaks, np.array(_BANDWIDTHS) * rng.uniform(0.8, 1.4))
    return _Voice(pulse, f0, tract, rng.uniform(3, 9), rng.uniform(0.01, 0.1), colours)


def _glottal_cycle(open_share: float, recovery: float, harmonics: int) -> np.ndarray:
    """One period of glottal flow derivative: a growing sine that closes sharply, then recovers (LF-like)."""
    time = np.arange(1024) / 1024
    peak = 0.72 * open_share
    flow = np.exp(3.0 * time / open_share) * np.sin(np.pi * time / peak)
    end = np.exp(3.0) * np.sin(np.pi * open_share / peak)
    cycle = np.where(time < open_share, flow, end * np.exp(-(time - open_share) / recovery))
    spectrum = fft.rfft(cycle)
    spectrum[0] = 0
    spectrum[min(harmonics, 400) + 1 :] = 0
    return _unit(fft.irfft(spectrum)).astype(np.float32)


def _all_pole(peaks: np.ndarray, bandwidths: np.ndarray) -> np.ndarray:
    """Denominator of a cascade of resonances (Hz); those above 7.4 kHz are left out."""
    denominator = np.ones(1)
    for peak, width in zip(peaks, bandwidths, strict=True):
        if peak < 7400:
            radius = np.exp(-np.pi * width / SAMPLE_RATE)
            angle = 2 * np.pi * peak / SAMPLE_RATE
            denominator = np.convolve(denominator, [1, -2 * radius * np.cos(angle), radius**2])
    return denominator


def _vowel(voice: _Voice, name: str, source: np.ndarray) -> np.ndarray:
    """A vowel with soft edges, at a root mean square of one, from a stretch of the glottal source."""
    stretch = source * _ramp(len(source), 400, 500)
    return _unit(signal.lfilter([1.0], voice.colours[name], stretch).astype(np.float32))


def _glottis(voice: _Voice, length: int, rng: Generator, glide: float = 0.0) -> np.ndarray:
    """The voiced source: pitch that glides by semitones, wanders and trembles, and a little breath."""
    time = np.arange(length, dtype=np.float32) / SAMPLE_RATE
    tremor = 1 + 0.012 * np.sin(2 * np.pi * voice.tremor_hz * time)
    f0 = voice.f0 * tremor * _wander(rng, length, 3.0 - 0.2 * abs(glide), glide)
    return _play(voice.pulse, f0, rng.random()) + voice.breath * rng.standard_normal(length, np.float32)


def _consonant(name: str, length: int, tract: float, rng: Generator) -> np.ndarray:
    """A fricative that fills its length, or for "t" a silence and a burst."""
    noise = rng.standard_normal(length, np.float32)
    if name == "t":
        burst = np.zeros(length, np.float32)
        burst[-350:] = noise[-350:] * np.exp(-np.arange(350) / 90)
        return 1.5 * burst
    centre, width = _HISSES[name]
    hiss = signal.lfilter([1.0], _all_pole(np.array([centre * tract**0.5]), np.array([width])), noise)
    return 0.5 * _unit(hiss.astype(np.float32)) * _ramp(length, 300, 300)


def _say(voice: _Voice, phones: str, beats: np.ndarray, rng: Generator, glide: float = 0.0) -> np.ndarray:
    """Speak phones one after the other; beats are their borders in samples, one more than the phones."""
    out, source = np.zeros(CLIP, np.float32), _glottis(voice, CLIP, rng, glide)
    for phone, start, stop in zip(phones, beats[:-1], beats[1:], strict=True):
        if phone in voice.colours:
            stretch = source[start : min(stop + 300, CLIP)]
            _add(out, _vowel(voice, phone, stretch) * 10 ** rng.uniform(-0.15, 0.15), start)
        else:
            _add(out, _consonant(phone, stop - start, voice.tract, rng), start)
    return out


def _spread_beats(shares: np.ndarray, onset: float, length: float) -> np.ndarray:
    """Borders (samples) of parts with the given relative durations, from an onset, over a length (both s)."""
    borders = np.concatenate([[0], np.cumsum(shares)]) / np.sum(shares)
    return ((onset + length * borders) * SAMPLE_RATE).astype(int)


# Tones, taps and textures -----------------------------------------------------------------------------------


@cache
def _timbre(number: int) -> np.ndarray:
    """Amplitudes of 24 harmonics of a numbered timbre: a tilt, a bump, a share of even harmonics."""
    rng, order = _rng("timbre", number), np.arange(1, 25)
    bump = 1 + 3 * rng.random() * np.exp(-0.5 * ((order - rng.uniform(1, 10)) / rng.uniform(1, 3)) ** 2)
    even = np.where(order % 2 == 0, rng.uniform(0.1, 1), 1)
    return bump * even * order ** -rng.uniform(0.6, 1.8) * 10 ** rng.normal(0, 0.2, 24)


def _harmonics(amplitudes: np.ndarray, f0: np.ndarray, rng: Generator) -> np.ndarray:
    """A tone with the given harmonic amplitudes, random phases, no harmonic above 7.6 kHz."""
    kept = amplitudes[: max(1, int(7600 / f0.max()))]
    spectrum = np.zeros(513, np.complex64)
    spectrum[1 : len(kept) + 1] = kept * np.exp(2j * np.pi * rng.random(len(kept)))
    return _unit(_play(fft.irfft(spectrum).astype(np.float32), f0, rng.random()))


def _note(number: int, hz: float, length: int, rng: Generator) -> np.ndarray:
    """A note of a numbered timbre with its own attack, decay and a little vibrato."""
    time = np.arange(length, dtype=np.float32) / SAMPLE_RATE
    vibrato = 1 + rng.uniform(0, 0.008) * np.sin(2 * np.pi * rng.uniform(4, 7) * time)
    decay = np.exp(-time / rng.uniform(0.15, 1.5))
    return _harmonics(_timbre(number), hz * vibrato, rng) * decay * _ramp(length, rng.integers(50, 500), 300)


@cache
def _tap(number: int) -> np.ndarray:
    """A numbered percussive sound of 0.3 s: a few ringing modes and a noise burst."""
    rng, time = _rng("tap", number), np.arange(4800) / SAMPLE_RATE
    modes = rng.uniform(1, 3) * 150 * 2 ** (rng.uniform(0, 4) * np.sort(rng.random(5)))
    rings = np.exp(-time / rng.uniform(0.01, 0.07, (5, 1))) * np.sin(2 * np.pi * modes[:, None] * time)
    burst = rng.standard_normal(4800) * np.exp(-time / rng.uniform(0.004, 0.03))
    burst = signal.lfilter([1.0], _all_pole(rng.uniform(500, 6000, 1), np.array([1500])), burst)
    mixed = _unit(rng.random(5) @ rings) + rng.uniform(0.2, 1.5) * _unit(burst)
    return (_unit(mixed) * _ramp(4800, 8, 400)).astype(np.float32)


def _taps(number: int, onsets_s: np.ndarray, rng: Generator) -> np.ndarray:
    """A numbered tap at each onset (s), each at its own strength."""
    out = np.zeros(CLIP, np.float32)
    for onset in onsets_s:
        _add(out, _tap(number) * 10 ** rng.uniform(-0.15, 0.15), int(onset * SAMPLE_RATE))
    return out


def _texture(number: int, track: np.ndarray, rng: Generator) -> np.ndarray:
    """A band of noise, or nearly a tone, whose centre follows a track (octaves from its own); unit RMS."""
    own = _rng("texture", number)
    centre, width = 700 * 2 ** own.uniform(0, 1.8), 10 ** own.uniform(0.7, 2.3)
    keep = np.float32(np.exp(-2 * np.pi * width / SAMPLE_RATE))
    noise = rng.standard_normal((2, len(track)), np.float32)
    cosine, sine = signal.lfilter(np.ones(1, np.float32), np.array([1, -keep], np.float32), noise)
    angle = np.float32(2 * np.pi) * _fraction(np.cumsum(centre / SAMPLE_RATE * np.exp2(track), dtype=np.float64))
    return _unit(cosine * np.cos(angle) + sine * np.sin(angle))


# Channel: room, equaliser, background noise, level ----------------------------------------------------------

_FFT = 24_576  # clip and room response together
_BINS = np.linspace(0, SAMPLE_RATE / 2, _FFT // 2 + 1)
_OCTAVE = np.clip(np.log2(np.maximum(_BINS, 1) / 80) / np.log2(100), 0, 1).astype(np.float32)  # 80 Hz .. 8 kHz
_RIPPLES = np.stack([f(np.pi * k * _OCTAVE) for k in range(1, 6) for f in (np.cos, np.sin)])


@cache
def _room(number: int) -> np.ndarray:
    """Transfer function of a numbered room: a direct path and an exponential tail of 0.05 to 0.35 s (RT60)."""
    rng, time = _rng("room", number), np.arange(4096) / SAMPLE_RATE
    tail = rng.standard_normal(4096) * 10 ** (-3 * time / rng.uniform(0.05, 0.35))
    tail[: int(0.002 * SAMPLE_RATE)] = 0
    response = tail / np.sqrt(np.sum(tail**2)) * 10 ** rng.uniform(-0.8, 0.0)
    response[0] += 1
    return fft.rfft(response, _FFT).astype(np.complex64)


@cache
def _noise_shape(number: int) -> np.ndarray:
    """Amplitude spectrum of a numbered background: a tilt from brown to blue and ripples."""
    rng = _rng("noise", number)
    decibel = rng.uniform(-35, 10) * _OCTAVE + (rng.normal(0, 4, len(_RIPPLES)) @ _RIPPLES)
    shape = 10 ** (decibel / 20) * (_BINS > 40)
    return (shape / np.sqrt(np.mean(shape**2))).astype(np.float32)


def _equaliser(rng: Generator) -> np.ndarray:
    """A smooth random gain over frequency: a tilt of up to 12 dB either way and ripples of some 4 dB."""
    decibel = rng.uniform(-12, 12) * _OCTAVE + (rng.normal(0, 3, len(_RIPPLES)).astype(np.float32) @ _RIPPLES)
    return np.exp(decibel * np.float32(np.log(10) / 20)).astype(np.float32)


def _transmit(dry: np.ndarray, factors: Factors, rng: Generator) -> np.ndarray:
    """The clip as recorded: room, equaliser, noise at the stated SNR, level; float32 within [-1, 1]."""
    gain = _equaliser(rng)
    heard = fft.rfft(dry, _FFT) * (_room(factors["room"]) * gain)
    noise = rng.standard_normal((2, len(_BINS)), np.float32)
    noise = (noise[0] + 1j * noise[1]) * (_noise_shape(factors["noise"]) * gain)
    # The SNR is that of the recording, after the equaliser: the one that can be heard.
    ratio = np.linalg.norm(heard) / np.linalg.norm(noise) * 10 ** (-factors["snr_db"] / 20)
    wave = _unit(fft.irfft(heard + ratio * noise, _FFT)[:CLIP])
    wave *= 10 ** ((factors["level_db"] - 27) / 20)
    return (wave * min(1.0, 0.99 / np.abs(wave).max())).astype(np.float32)


def _channel(part: str, rng: Generator) -> Factors:
    return {
        "room": _held(rng, part),
        "noise": _held(rng, part),
        "snr_db": float(rng.uniform(5, 30)),
        "level_db": float(rng.uniform(-12, 12)),
    }


# The tasks: label, split and generator -> factors, and a function that makes the dry sound --------------------

Draft = tuple[Factors, Callable[[], np.ndarray]]

# Two syllables of different consonants and vowels: any four words in a row use the same four phones.
_WORDS = tuple(
    word
    for (c, d), (v, w) in [(("s", "t"), ("i", "a")), (("x", "t"), ("i", "u")), (("s", "x"), ("a", "u")),
                           (("s", "t"), ("e", "o")), (("x", "t"), ("a", "o"))]
    for word in (c + v + d + w, d + w + c + v, c + w + d + v, d + v + c + w)
)  # fmt: skip


def _word(label: int, part: str, rng: Generator) -> Draft:
    voice, onset, length = _held(rng, part), rng.uniform(0.03, 0.3), rng.uniform(0.55, 0.85)
    beats = _spread_beats(np.array([0.7, 1.2, 0.7, 1.2]) * rng.uniform(0.8, 1.2, 4), onset, length)
    factors = {"voice": voice, "onset_s": onset, "length_s": length}
    return factors, lambda: _say(_voice(voice), _WORDS[label], beats, rng)


_HABITS = ("rising stress-first", "rising stress-last", "falling stress-first", "falling stress-last")
_SPEAKERS = tuple(f"tract {tract} {habit}" for tract in range(5) for habit in _HABITS)


def _speaker(label: int, part: str, rng: Generator) -> Draft:
    """A speaker is a vocal tract and a habit of intonation and stress; the words are new in every split."""
    utterance, tract, habit = _held(rng, part), label // 4, _HABITS[label % 4]
    onset, length, draw = rng.uniform(0, 0.15), rng.uniform(0.9, 1.1), _rng("utterance", utterance)
    phones = "".join(draw.choice(list("stx")) + draw.choice(list("ieaou")) for _ in range(3))
    shares = np.array([0.6, 1.2] * 3) * rng.uniform(0.85, 1.15, 6)
    shares[1 if "first" in habit else 5] *= 2
    glide = rng.uniform(8, 12) * (1 if "rising" in habit else -1)
    factors = {"utterance": utterance, "phones": phones, "onset_s": onset, "glide_semitones": glide}
    beats = _spread_beats(shares, onset, length)
    return factors, lambda: _say(_speaker_voice(tract), phones, beats, rng, glide)


_ORDERS = tuple("".join(order) for order in itertools.permutations("iau"))


def _vowel_order(label: int, part: str, rng: Generator) -> Draft:
    voice, onset, length = _held(rng, part), rng.uniform(0, 0.25), rng.uniform(0.7, 1.0)
    beats = _spread_beats(rng.uniform(0.7, 1.3, 3), onset, length)
    factors = {"voice": voice, "onset_s": onset, "length_s": length}
    return factors, lambda: _say(_voice(voice), _ORDERS[label], beats, rng)


_BODIES = {"reed": np.arange(1, 16, 2), "string": np.arange(1, 13), "bar": np.array([1, 2.76, 5.4, 8.93])}
_GESTURES = ("struck", "swelling", "slow tremolo", "fast tremolo")
_INSTRUMENTS = tuple(f"{gesture} {body}" for body in _BODIES for gesture in _GESTURES)


def _instrument(label: int, part: str, rng: Generator) -> Draft:
    pitch, gesture, body = _held(rng, part), *_INSTRUMENTS[label].rsplit(" ", 1)
    hz, onset = 140 * 2 ** _rng("pitch", pitch).uniform(0, 2), rng.uniform(0.02, 0.3)
    factors = {"pitch": pitch, "hz": hz, "onset_s": onset}
    return factors, lambda: _gesture(gesture, _BODIES[body], hz, onset, rng)


def _gesture(gesture: str, ratios: np.ndarray, hz: float, onset: float, rng: Generator) -> np.ndarray:
    """One long note: partials at the given ratios, shaped as struck, swelling (struck reversed) or trembling."""
    out, time = np.zeros(CLIP, np.float32), np.arange(int(0.95 * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE
    strengths = ratios ** -rng.uniform(0.5, 1.5) * rng.uniform(0.4, 1, len(ratios)) * (hz * ratios < 7600)
    turns = 2 * np.pi * (hz * ratios[:, None] * time + rng.random((len(ratios), 1))).astype(np.float32)
    sound = strengths.astype(np.float32) @ np.sin(turns)
    if "tremolo" in gesture:
        rate = rng.uniform(3, 4.5) if gesture.startswith("slow") else rng.uniform(7.5, 11)
        depth = rng.uniform(0.7, 0.95)
        sound *= 1 - depth * (0.5 + 0.5 * np.sin(2 * np.pi * (rate * time + rng.random())))
    else:
        fall = np.exp(-time / rng.uniform(0.12, 0.4)) * _ramp(len(time), 60, 400)
        sound *= fall if gesture == "struck" else fall[::-1]
    _add(out, sound * _ramp(len(time), 100, 100), int(onset * SAMPLE_RATE))
    return out


_PITCHES = tuple(f"{n} semitones above 220 Hz" for n in range(24))


def _pitch(label: int, part: str, rng: Generator) -> Draft:
    """The last of three notes, each up to a third of a semitone out of tune."""
    timbre, onset = _held(rng, part), rng.uniform(0, 0.2)
    semitones = np.append(rng.integers(0, 24, 2), label) + rng.uniform(-0.33, 0.33, 3)
    beats = _spread_beats(rng.uniform(0.8, 1.2, 3), onset, rng.uniform(0.8, 1.05))
    factors = {"timbre": timbre, "semitones": semitones.round(2).tolist(), "onset_s": onset}
    return factors, lambda: _melody(timbre, 220 * 2 ** (semitones / 12), beats, rng)


def _melody(timbre: int, hertz: np.ndarray, beats: np.ndarray, rng: Generator) -> np.ndarray:
    """Notes of one timbre, one after the other; beats are their borders in samples."""
    out = np.zeros(CLIP, np.float32)
    for hz, start, stop in zip(hertz, beats[:-1], beats[1:], strict=True):
        _add(out, _note(timbre, hz, stop - start, rng), start)
    return out


_CONTOURS = {"rise": (0, 1, 2, 3), "fall": (3, 2, 1, 0), "arch": (0, 2, 3, 1), "valley": (3, 1, 0, 2),
             "zigzag up": (1, 0, 3, 2), "zigzag down": (2, 3, 0, 1)}  # fmt: skip


def _contour(label: int, part: str, rng: Generator) -> Draft:
    """Four notes; every contour has the same four pitches in another order."""
    timbre, onset, base = _held(rng, part), rng.uniform(0, 0.15), 220 * 2 ** rng.uniform(0, 0.25)
    scale = base * 2 ** (np.concatenate([[0], np.cumsum(rng.integers(4, 7, 3))]) / 12)
    beats = _spread_beats(rng.uniform(0.85, 1.15, 4), onset, rng.uniform(0.85, 1.1))
    factors = {"timbre": timbre, "hertz": scale.round(1).tolist(), "onset_s": onset}
    order = list(list(_CONTOURS.values())[label])
    return factors, lambda: _melody(timbre, scale[order], beats, rng)


_TEMPI = tuple(f"{beats} beats a minute" for beats in (180, 236, 309, 405, 531, 696))


def _tempo(label: int, part: str, rng: Generator) -> Draft:
    tap, gap = _held(rng, part), 60 / int(_TEMPI[label].split()[0]) * rng.uniform(0.95, 1.05)
    onsets = np.arange(rng.uniform(0, gap), 1.24, gap)
    onsets = onsets + rng.normal(0, 0.02 * gap, len(onsets)).clip(0)
    return {"tap": tap, "gap_s": gap}, lambda: _taps(tap, onsets, rng)


_RHYTHMS = ("x.x.x.x.", "xxxx....", "xx..xx..", "xxx.x...", "xx.x.x..", "x.xx..x.")


def _rhythm(label: int, part: str, rng: Generator) -> Draft:
    tap, onset, step = _held(rng, part), rng.uniform(0, 0.1), rng.uniform(0.065, 0.075)
    struck = np.flatnonzero(np.array(list(_RHYTHMS[label] * 2)) == "x")
    return {"tap": tap, "onset_s": onset, "step_s": step}, lambda: _taps(tap, onset + step * struck, rng)


_COUNTS = tuple(f"{n} events" for n in range(1, 7))


def _event_rate(label: int, part: str, rng: Generator) -> Draft:
    tap, free = _held(rng, part), 1.2 - 0.1 * label
    onsets = np.sort(rng.uniform(0, free, label + 1)) + 0.1 * np.arange(label + 1)
    return {"tap": tap, "onsets_s": onsets.round(3).tolist()}, lambda: _taps(tap, onsets, rng)


_SNRS = (-7, 0, 7, 14, 21)
_NOISE_LEVELS = tuple(f"{snr} dB" for snr in _SNRS)


def _noise_level(label: int, part: str, rng: Generator) -> Draft:
    """Short or long speech; the SNR counts while it lasts, so that a clip's spread alone does not tell it."""
    voice, onset, length = _held(rng, part), rng.uniform(0, 0.25), rng.uniform(0.15, 1.0)
    phones = "".join(rng.choice(list("ieaou"), int(np.ceil(5 * length))))
    beats = _spread_beats(rng.uniform(0.7, 1.3, len(phones)), onset, length)
    while_speaking = _SNRS[label] + rng.uniform(-2, 2)
    factors = {"voice": voice, "onset_s": onset, "length_s": length, "speech_snr_db": while_speaking}
    factors["snr_db"] = while_speaking + 10 * np.log10(length * SAMPLE_RATE / CLIP)
    return factors, lambda: _say(_voice(voice), phones, beats, rng)


@dataclass(frozen=True)
class _Motion:
    """What moves in one clip of an environment: cycles (sample,) from 0 to 1, a slow drift, scattered hits."""

    slow: np.ndarray
    fast: np.ndarray
    rapid: np.ndarray
    reach: float  # octaves
    knots: np.ndarray
    hits: np.ndarray  # samples

    def drift(self) -> np.ndarray:
        return np.interp(_TIME, np.linspace(0, 1.28, len(self.knots)), self.knots).astype(np.float32)

    def crackle(self) -> np.ndarray:
        out = np.zeros(CLIP, np.float32)
        for hit in self.hits:
            _add(out, np.exp(-_TIME[:1600] / 0.012), hit)
        return out


def _motion(rng: Generator) -> _Motion:
    slow, fast, rapid = (_fraction(rng.uniform(*rate) * _TIME + rng.random()) for rate in _RATES)
    hits = rng.integers(0, CLIP, 3 + rng.poisson(10))
    return _Motion(slow, fast, rapid, rng.uniform(0.8, 1.6), rng.random(9) ** 2, hits)


_RATES = ((1.6, 3.2), (6, 9), (16, 22))  # Hz
_TIME = np.arange(CLIP, dtype=np.float32) / SAMPLE_RATE
# An environment is a way to be loud over time and a way to move in frequency (octaves per reach); others are flat.
_ENVELOPES = {
    "gusts": lambda m: m.drift(),
    "surf in": lambda m: m.slow**3,
    "surf out": lambda m: (1 - m.slow) ** 3,
    "chop": lambda m: (m.fast < 0.5) + np.float32(0.02),
    "flutter": lambda m: m.rapid**2,
    "crackle": lambda m: m.crackle(),
    "double knock": lambda m: np.exp(-np.where(m.slow < 0.22, m.slow, m.slow - 0.22) / 0.05) * (m.slow < 0.44),
    "chirps up": lambda m: np.sin(np.pi * m.fast) ** 2,
    "chirps down": lambda m: np.sin(np.pi * m.fast) ** 2,
}
_TRACKS = {
    "whoop": lambda m: m.slow - 0.5,
    "dive": lambda m: 0.5 - m.slow,
    "siren": lambda m: np.abs(2 * m.slow - 1) - 0.5,
    "two tones": lambda m: (m.slow < 0.5) - np.float32(0.5),
    "chirps up": lambda m: m.fast - 0.5,
    "chirps down": lambda m: 0.5 - m.fast,
    "wobble": lambda m: 0.25 * np.sin(2 * np.pi * m.fast),
    "wander": lambda m: m.drift() - 0.5,
}
_ENVIRONMENTS = ("steady", *dict.fromkeys([*_ENVELOPES, *_TRACKS]))


def _scene(kind: str, number: int, rng: Generator) -> np.ndarray:
    """A clip of an environment, made of a numbered texture."""
    motion, still = _motion(rng), np.zeros(CLIP, np.float32)
    track = motion.reach * _TRACKS[kind](motion) if kind in _TRACKS else still
    sound = _texture(number, track, rng)
    return sound * _ENVELOPES[kind](motion) if kind in _ENVELOPES else sound


def _environment(label: int, part: str, rng: Generator) -> Draft:
    texture = _held(rng, part)
    return {"texture": texture}, lambda: _scene(_ENVIRONMENTS[label], texture, rng)


_SOURCES = tuple(f"{n} source{'s' * (n > 1)}" for n in range(1, 5))


def _sources(label: int, part: str, rng: Generator) -> Draft:
    numbers, kinds = [_held(rng, part) for _ in range(label + 1)], rng.permutation(4)[: label + 1]
    factors = {"number": numbers, "kinds": kinds.tolist()}

    def sound() -> np.ndarray:
        levels = 10 ** rng.uniform(-0.2, 0.2, label + 1)
        parts = zip(numbers, kinds, levels, strict=True)
        return sum(level * _unit(_SOURCE_KINDS[kind](number, part, rng)) for number, kind, level in parts)

    return factors, sound


def _talk(number: int, part: str, rng: Generator) -> np.ndarray:
    beats = _spread_beats(rng.uniform(0.7, 1.3, 5), rng.uniform(0, 0.3), rng.uniform(0.6, 0.95))
    return _say(_voice(number), "".join(rng.choice(list("ieaoustx"), 5)), beats, rng)


def _tune(number: int, part: str, rng: Generator) -> np.ndarray:
    beats = _spread_beats(rng.uniform(0.7, 1.3, 4), rng.uniform(0, 0.3), rng.uniform(0.6, 0.95))
    return _melody(number, 200 * 2 ** (rng.integers(0, 25, 4) / 12), beats, rng)


def _tapping(number: int, part: str, rng: Generator) -> np.ndarray:
    return _taps(number, np.arange(rng.uniform(0, 0.3), 1.2, rng.uniform(0.15, 0.35)), rng)


def _weather(number: int, part: str, rng: Generator) -> np.ndarray:
    return _scene(rng.choice(_ENVIRONMENTS), number, rng)


_SOURCE_KINDS = (_talk, _tune, _tapping, _weather)


_TAGS = ("voice", "fricative", "note", "tap", "rising chirp", "falling chirp", "flutter", "crackle")


def _tags(label: np.ndarray, part: str, rng: Generator) -> Draft:
    number, names = _held(rng, part), [tag for tag, present in zip(_TAGS, label, strict=True) if present]

    def sound() -> np.ndarray:
        out = np.zeros(CLIP, np.float32)
        for name in names:
            piece = _around_peak(_tagged(name, number, rng), int(rng.uniform(0.3, 0.6) * SAMPLE_RATE))
            shaped = piece * _ramp(len(piece), 300, 800) * 10 ** rng.uniform(-0.3, 0.3)
            _add(out, shaped, rng.integers(0, CLIP - len(piece)))
        return out

    return {"number": number}, sound


def _around_peak(sound: np.ndarray, length: int) -> np.ndarray:
    """A stretch of that length with the loudest sample in it: a tag that is set can be heard."""
    start = np.clip(np.abs(sound).argmax() - length // 2, 0, len(sound) - length)
    return _unit(sound[start : start + length])


def _tagged(name: str, number: int, rng: Generator) -> np.ndarray:
    """A sound of at least 0.6 s that a tag names."""
    length, voice = 10_000, _voice(number)
    match name:
        case "voice":
            return _vowel(voice, rng.choice(list("ieaou")), _glottis(voice, length, rng))
        case "fricative":
            return _consonant(rng.choice(["s", "x"]), length, voice.tract, rng)
        case "note":
            return _note(number, 200 * 2 ** rng.uniform(0, 2), length, rng)
        case "tap":
            return np.tile(_tap(number), 3)
    kind = {"rising chirp": "chirps up", "falling chirp": "chirps down"}.get(name, name)
    return _scene(kind, number, rng)


# Tasks from recipes -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Recipe:
    """How a task is made: its labels, and a function from a label to factors and a dry sound."""

    vocabulary: tuple[str, ...]
    draft: Callable[[int | np.ndarray, str, Generator], Draft]


_RECIPES = {
    "word": _Recipe(_WORDS, _word),
    "speaker": _Recipe(_SPEAKERS, _speaker),
    "vowel_order": _Recipe(_ORDERS, _vowel_order),
    "instrument": _Recipe(_INSTRUMENTS, _instrument),
    "pitch": _Recipe(_PITCHES, _pitch),
    "contour": _Recipe(tuple(_CONTOURS), _contour),
    "tempo": _Recipe(_TEMPI, _tempo),
    "rhythm": _Recipe(_RHYTHMS, _rhythm),
    "event_rate": _Recipe(_COUNTS, _event_rate),
    "environment": _Recipe(_ENVIRONMENTS, _environment),
    "sources": _Recipe(_SOURCES, _sources),
    "noise_level": _Recipe(_NOISE_LEVELS, _noise_level),
    "tags": _Recipe(_TAGS, _tags),
}
CANDIDATES = tuple(_RECIPES)
# The tasks that count for Q: those that data/freeze_tasks.py kept, before any masked autoencoder was scored. A test
# compares this list with its table, data/tasks-v1.csv.
FROZEN = CANDIDATES  # none was dropped


def _labels(name: str, part: str, size: int) -> np.ndarray:
    """Labels of a split's first clips, the same whatever the size: every class once in a row of n_class clips."""
    n = len(_RECIPES[name].vocabulary)
    if name == "tags":
        return np.stack([_rng(name, part, "label", i).permutation(n) < 1 + i % 3 for i in range(size)])
    rows = [_rng(name, part, "label", i).permutation(n) for i in range(-(-size // n))]
    return np.concatenate(rows)[:size].astype(np.int64)


def _draft(name: str, part: str, i: int, label: int | np.ndarray) -> tuple[Factors, Callable, Generator]:
    rng = _rng(name, part, "clip", i)
    own, sound = _RECIPES[name].draft(label, part, rng)
    return _channel(part, rng) | own, sound, rng


def _clips(name: str, part: str, labels: np.ndarray) -> Iterator[torch.Tensor]:
    for i, label in enumerate(labels):
        factors, sound, rng = _draft(name, part, i, label)
        yield torch.from_numpy(_transmit(sound(), factors, rng))


def _size(part: str, clips: int | None) -> int:
    return SIZES[part] if clips is None else min(clips, SIZES[part])


def synthetic_task(name: str, clips: int | None = None) -> Task:
    """A synthetic task with splits train, valid and test (HEAR's one-fold form); clips are made when asked for.

    name: one of CANDIDATES. clips: at most so many clips in each split (the first ones), None for SIZES.
    Clip i of a split is the same whatever `clips` and the block size. Raises ValueError on an unknown name.
    """
    if name not in _RECIPES:
        raise ValueError(f"synthetic task {name!r}: choose one of {', '.join(CANDIDATES)}")
    splits = {}
    for part in SIZES:
        labels = _labels(name, part, _size(part, clips))
        splits[part] = Split(part, labels, lambda part=part, labels=labels: _clips(name, part, labels))
    prediction = "multilabel" if name == "tags" else "multiclass"
    vocabulary = _RECIPES[name].vocabulary
    fold = Fold(("train",), ("valid",), ("test",))
    return Task(name, TASK_VERSION, "scene", prediction, vocabulary, splits, (fold,), CLIP / SAMPLE_RATE)


def task_factors(name: str, part: str, clips: int | None = None) -> pd.DataFrame:
    """What each clip of a split was made from, one row a clip, without making the sound."""
    labels = _labels(name, part, _size(part, clips))
    return pd.DataFrame([_draft(name, part, i, label)[0] for i, label in enumerate(labels)])


def frozen_tasks(clips: int | None = None, name: str | None = None) -> list[Task]:
    """The synthetic tasks that Q is the mean of, or one of all candidates by name; clips as in synthetic_task."""
    return [synthetic_task(each, clips) for each in ((name,) if name else FROZEN)]


def level_db(task: Task, clips: int = 8) -> float:
    """Mean level in dB of a task's first test clips: a number by which to see that its sounds are still the same."""
    waves = next(iter(task.waveforms("test", clips)))
    return float(10 * waves.square().mean(1).log10().mean())
