"""Speech-like sources: a glottal pulse train and noise through a moving vocal tract, saying Zipfian syllables."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rankscale.sound._draw import (
    Quantile,
    Table,
    lognormal,
    normal,
    pareto,
    sometimes,
    uniform,
    zipf,
)
from rankscale.sound._render import (
    N_FFT,
    Rows,
    band,
    bin_hz,
    each,
    from_frames,
    line_up,
    locate,
    pulses,
    resonance,
    smooth,
    to_frames,
    upsample,
)


class Phone(NamedTuple):
    """What the vocal tract aims at: formants for a tract scale of 1, strengths of the three sources, duration."""

    f1: float
    f2: float
    f3: float
    voice: float  # glottal pulses
    breath: float  # noise through the formants
    hiss: float  # noise past them, at the teeth or lips
    hiss_hz: float
    hiss_octaves: float
    ms: float  # at 4.5 syllables a second


# Formants are round figures in the range that textbooks give for an adult man.
PHONES = {
    # silence
    "_": Phone(500, 1500, 2500, 0, 0, 0, 4000, 1, 0),
    # vowels
    "i": Phone(280, 2250, 2950, 1, 0.02, 0, 4000, 1, 130),
    "e": Phone(400, 2050, 2600, 1, 0.02, 0, 4000, 1, 140),
    "ɛ": Phone(550, 1800, 2500, 1, 0.02, 0, 4000, 1, 140),
    "æ": Phone(680, 1700, 2400, 1, 0.02, 0, 4000, 1, 170),
    "a": Phone(750, 1250, 2500, 1, 0.02, 0, 4000, 1, 170),
    "ɑ": Phone(720, 1080, 2450, 1, 0.02, 0, 4000, 1, 160),
    "ɔ": Phone(570, 860, 2450, 1, 0.02, 0, 4000, 1, 150),
    "o": Phone(430, 780, 2450, 1, 0.02, 0, 4000, 1, 140),
    "u": Phone(310, 850, 2250, 1, 0.02, 0, 4000, 1, 130),
    "y": Phone(270, 1900, 2250, 1, 0.02, 0, 4000, 1, 130),
    "ø": Phone(400, 1600, 2250, 1, 0.02, 0, 4000, 1, 140),
    "ə": Phone(500, 1450, 2450, 0.8, 0.03, 0, 4000, 1, 80),
    "ɝ": Phone(480, 1330, 1680, 1, 0.02, 0, 4000, 1, 140),
    # nasals, liquids, glides
    "m": Phone(260, 1050, 2200, 0.35, 0, 0, 4000, 1, 75),
    "n": Phone(270, 1550, 2550, 0.35, 0, 0, 4000, 1, 70),
    "ŋ": Phone(270, 2050, 2600, 0.35, 0, 0, 4000, 1, 75),
    "l": Phone(350, 1100, 2700, 0.55, 0, 0, 4000, 1, 65),
    "r": Phone(340, 1100, 1400, 0.55, 0, 0, 4000, 1, 65),
    "w": Phone(300, 650, 2200, 0.5, 0, 0, 4000, 1, 65),
    "j": Phone(260, 2150, 3000, 0.5, 0, 0, 4000, 1, 65),
    # fricatives
    "s": Phone(320, 1600, 2550, 0, 0, 0.50, 6300, 0.35, 105),
    "ʃ": Phone(320, 1800, 2450, 0, 0, 0.55, 3400, 0.45, 105),
    "f": Phone(320, 1000, 2300, 0, 0, 0.14, 5000, 1.30, 95),
    "θ": Phone(320, 1350, 2550, 0, 0, 0.12, 6000, 1.00, 90),
    "x": Phone(400, 1300, 2400, 0, 0.25, 0.20, 1900, 0.50, 90),
    "h": Phone(500, 1500, 2500, 0.05, 0.35, 0, 4000, 1, 65),
    "z": Phone(280, 1600, 2550, 0.3, 0, 0.28, 6300, 0.35, 75),
    "ʒ": Phone(280, 1800, 2450, 0.3, 0, 0.30, 3400, 0.45, 75),
    "v": Phone(280, 1000, 2300, 0.4, 0, 0.07, 5000, 1.30, 60),
    # closures and releases of stops
    "·": Phone(250, 1400, 2400, 0, 0, 0, 4000, 1, 65),
    ":": Phone(200, 1400, 2400, 0.12, 0, 0, 400, 1, 55),
    "P": Phone(350, 800, 2200, 0, 0.25, 0.35, 900, 1.00, 28),
    "T": Phone(320, 1750, 2650, 0, 0.20, 0.55, 4600, 0.60, 32),
    "K": Phone(320, 1900, 2200, 0, 0.25, 0.50, 2000, 0.35, 40),
    "B": Phone(300, 850, 2200, 0.5, 0, 0.25, 700, 1.00, 12),
    "D": Phone(280, 1750, 2650, 0.5, 0, 0.30, 4200, 0.60, 14),
    "G": Phone(280, 1900, 2200, 0.5, 0, 0.30, 1900, 0.40, 18),
}
VOWELS = "aeioɛəuɔæɑyøɝ"  # most frequent first
STOPS = {"p": "·P", "t": "·T", "k": "·K", "b": ":B", "d": ":D", "g": ":G"}  # closure, release
ONSETS = [*"tnsmkdrlbphjgfvwzʃθxʒ", "", "st", "tʃ", "sk"]
CODAS = ["", *"nsrtlmkdŋfpzʃ"]

NAMES = list(PHONES)
TARGETS = np.array([phone[:-1] for phone in PHONES.values()])  # (phone, 8)
DURATION_S = np.array([phone.ms for phone in PHONES.values()]) / 1000


def _build_lexicon(size: int = 1024) -> tuple[list[str], np.ndarray]:
    """The syllables of the world: spelling, and phones (size, 7): three of onset, two of vowel, two of coda."""
    rng = np.random.Generator(np.random.Philox(key=1024))
    number, spelling, slots = {name: i for i, name in enumerate(NAMES)}, [], []
    for u in rng.random((size, 4)):
        onset, coda = (str(zipf(part, 0.7)(u[i : i + 1])[0]) for i, part in ((0, ONSETS), (3, CODAS)))
        first = str(zipf(list(VOWELS), 0.6)(u[1:2])[0])
        second = VOWELS[int(u[2] * 40) % 13] if u[2] > 0.7 else first  # a diphthong in 30 %
        spelling.append(onset + (first if first == second else first + second) + coda)
        parts = [
            "".join(STOPS.get(c, c) for c in onset).ljust(3, "_")[:3],
            first + second,
            "".join(STOPS.get(c, c) for c in coda).ljust(2, "_"),
        ]
        slots.append([number[c] for c in "".join(parts)])
    return spelling, np.array(slots)


SPELLING, LEXICON = _build_lexicon()


class Voice(NamedTuple):
    """How a kind of voice differs from the modal one."""

    voice: float = 1.0  # gain of the pulses
    breath: float = 0.0  # added to the noise of voiced phones
    jitter: float = 1.0  # factors on the drawn values
    pitch: float = 1.0
    rate: float = 1.0
    rolloff: float = 1.0


VOICES = {
    "modal": Voice(),
    "breathy": Voice(voice=0.7, breath=0.12, rolloff=0.5),
    "shouted": Voice(pitch=1.7, rolloff=1.9, jitter=1.5),
    "whispered": Voice(voice=0.0, breath=0.3),
    "sung": Voice(rate=0.45, jitter=0.3, pitch=1.4),
    "creaky": Voice(pitch=0.5, jitter=9.0, rolloff=1.2),
}

SPEECH: dict[str, Quantile] = {
    "kind": zipf(list(VOICES), 1.0),
    "tract_scale": lognormal(1.06, 0.13, 0.75, 1.6),  # of the formants: above 1 is a shorter tract
    "f0_hz": lognormal(1.0, 0.18),  # times what the tract suggests
    "syllable_hz": lognormal(4.3, 0.3, 1.5, 9.0),
    "language": zipf(range(32), 0.8),  # the order of the syllables' frequencies
    "intonation": lognormal(0.2, 0.6, 0.01, 0.7),  # SD of the log of f0 over syllables
    "jitter": lognormal(0.004, 0.7, 0.0005, 0.05),
    "vibrato": sometimes(0.2, uniform(0.01, 0.04), 0.0),
    "rolloff_hz": lognormal(1700.0, 0.35, 600, 4500),  # of the glottal pulses: effort
    "breath": lognormal(0.02, 0.8, 0.002, 0.3),
    "lisp": normal(1.0, 0.1, 0.7, 1.2),  # scale of the hiss frequencies
    "nasal": sometimes(0.15, uniform(0.5, 1.0), 0.0),  # a zero-like dip and wide first formant
    "sharpness": lognormal(1.0, 0.25, 0.5, 2.0),  # of the resonances
    "slur": lognormal(1.0, 0.35, 0.5, 2.5),  # how slowly articulators move
    "pause_share": sometimes(0.5, uniform(0.02, 0.35), 0.0),  # of the syllables that a pause follows
    "start_s": normal(-0.15, 0.2, -0.5, 0.5),  # of the first syllable; below 0: the clip begins within speech
    "zipf": pareto(0.9, 3.0, 4.0),  # exponent of the syllables' frequencies: a poor or a rich vocabulary
}


def complete_speech(table: Table) -> Table:
    """Fill in what depends on several factors: the kind of voice, and pitch that follows the tract."""
    kinds = [VOICES[kind] for kind in table["kind"]]
    pitch, rate, jitter, rolloff = (
        np.array([getattr(k, n) for k in kinds]) for n in ("pitch", "rate", "jitter", "rolloff")
    )
    table["f0_hz"] = np.clip(115 * table["f0_hz"] * table["tract_scale"] ** 2.3 * pitch, 40, 700)
    table["syllable_hz"] = np.maximum(table["syllable_hz"] * rate, 0.8)
    table["jitter"] = np.minimum(table["jitter"] * jitter, 0.08)
    table["rolloff_hz"] = np.clip(table["rolloff_hz"] * rolloff, 500, 5000)
    table["vibrato"] = np.where(table["kind"] == "sung", table["vibrato"] + 0.015, table["vibrato"])
    return table


class Utterance(NamedTuple):
    """What is said: each syllable's lexicon entry and onset (row, syllable); phones and their onsets (row, phone)."""

    syllable: np.ndarray
    syllable_s: np.ndarray
    phone: np.ndarray
    phone_s: np.ndarray


def compose_utterance(rows: Rows) -> Utterance:
    """Draw syllables with Zipfian frequencies and lay their phones on the time axis."""
    f, (u_word, u_long, u_pause, u_rest) = rows.table, np.moveaxis(rows.event, 2, 0)[:4]
    size = len(LEXICON)
    exponent = f["zipf"][:, None]
    # inverse of a continuous power law over ranks 1..size; each language reads the lexicon in its own order
    power = 1 - np.where(np.abs(exponent - 1) < 1e-3, 1.001, exponent)
    rank = (1 + u_word * (size**power - 1)) ** (1 / power)
    stride, shift = 2 * f["language"][:, None] + 1, 331 * f["language"][:, None]
    syllable = (rank.astype(np.int64) * stride + shift) % size

    phone = LEXICON[syllable]  # (row, syllable, 7)
    stretch = 4.5 / f["syllable_hz"][:, None] * np.exp(0.5 * (u_long - 0.5))
    length = DURATION_S[phone] * stretch[..., None]
    length[..., 3:5] /= 2  # the two halves of the vowel
    length *= np.maximum(0.055 / length.sum(-1, keepdims=True), 1)  # the event table lasts for the clip
    pause = np.where(u_pause < f["pause_share"][:, None], 0.1 + 0.5 * u_rest**2, 0.0)
    phone = np.concatenate([phone, np.zeros_like(phone[..., :1])], -1)
    length = np.concatenate([length, pause[..., None]], -1).reshape(len(rows), -1)
    onset = line_up(length) + np.minimum(f["start_s"], 0.4 * rows.clip_s)[:, None]
    # silence comes first
    phone_s = np.pad(onset, ((0, 0), (1, 0)), constant_values=-10.0)
    return Utterance(syllable, onset[:, ::8], np.pad(phone.reshape(len(rows), -1), ((0, 0), (1, 0))), phone_s)


def spell(said: Utterance, clip_s: float) -> list[str]:
    """The syllables that begin within the clip, joined by hyphens."""
    inside = (said.syllable_s >= 0) & (said.syllable_s < clip_s)
    return ["-".join(SPELLING[k] for k in row[keep]) for row, keep in zip(said.syllable, inside, strict=True)]


def bend_pitch(rows: Rows, said: Utterance) -> Tensor:
    """f0 in Hz at the control points: accents of syllables, vibrato, jitter; float64 (row, frame)."""
    number, _ = locate(rows, said.syllable_s)
    accent = each(rows, np.sqrt(12) * (rows.event[..., 4] - 0.5), number, torch.float64)
    sung = torch.as_tensor(rows.table["kind"] == "sung", device=rows.device)[:, None]
    log_f0 = rows.put64("intonation") * torch.where(sung, torch.round(accent), smooth(accent, 31))
    drift = 0.6 * rows.put64("intonation") * rows.wander(0.5, 4)
    vibrato = rows.put64("vibrato") * torch.sin(2 * torch.pi * 5.5 * rows.t)
    jitter = rows.put64("jitter") * rows.noise(3, rows.frames).double()
    return rows.put64("f0_hz") * torch.exp(smooth(log_f0, 9) + drift + vibrato + smooth(jitter, 3))


def speech(rows: Rows) -> tuple[Tensor, Table]:
    """Waveforms (row, sample) of speech-like sources, and the table with what they say."""
    said = compose_utterance(rows)
    number, _ = locate(rows, said.phone_s)
    target = rows.put(TARGETS)[rows.put(said.phone, torch.int64).gather(1, number)]  # (row, frame, 8)
    syllable, _ = locate(rows, said.syllable_s)
    stress = each(rows, np.exp(0.8 * (rows.event[..., 4] - 0.5)), syllable)
    voice, breath, hiss = smooth(target[..., 3:6].movedim(2, 0) * stress, 5)  # (row, frame) each
    kinds = [VOICES[kind] for kind in rows.table["kind"]]
    gain, air = (rows.put(np.array(x))[:, None] for x in zip(*[k[:2] for k in kinds], strict=True))

    noise = rows.noise()
    glottis = pulses(bend_pitch(rows, said), rows.put64("rolloff_hz"), rows.sample)
    breath = breath + voice * (air + rows["breath"])
    excitation = upsample(voice * gain, rows.sample) * glottis + upsample(breath, rows.sample) * noise
    spoken = shape_formants(rows, to_frames(excitation), target[..., :3])
    hissed = shape_hiss(rows, to_frames(upsample(2 * hiss, rows.sample) * noise), target[..., 6:])
    return from_frames(spoken.add_(hissed), rows.sample), rows.table | {"text": np.array(spell(said, rows.clip_s))}


def shape_hiss(rows: Rows, spectra: Tensor, target: Tensor) -> Tensor:
    """Give noise spectra (row, block, bin) the colour of a fricative: target (row, frame, 2), Hz and octaves."""
    hz = target[:, ::2, :1] * (rows["tract_scale"] ** 0.3 * rows["lisp"])[..., None]
    return spectra.mul_(band(bin_hz(N_FFT, rows.device), hz, target[:, ::2, 1:]))


def shape_formants(rows: Rows, spectra: Tensor, target: Tensor) -> Tensor:
    """Put excitation spectra (row, block, bin) through a tract that moves between targets (row, frame, 3) in Hz."""
    points = 2 * np.rint(4 * rows.table["slur"]).astype(int) + 1
    moved = torch.empty_like(target)
    for width in np.unique(points):  # articulators are slow: the tract glides over 20 to 80 ms
        same = torch.from_numpy(np.flatnonzero(points == width)).to(rows.device)
        moved[same] = smooth(target[same].movedim(2, 1), int(width)).movedim(1, 2)
    formant = moved[:, ::2] * rows["tract_scale"][..., None]
    sharp = rows["sharpness"][..., None]
    width = (50 + 0.04 * formant) / sharp + rows["nasal"][..., None] * formant.new_tensor([150.0, 60, 0])
    upper = torch.tensor([3500.0, 4500, 5500, 6500, 7500], device=rows.device) * rows["tract_scale"]
    fixed = resonance(upper[:, None], 0.05 * upper[:, None])
    return spectra.mul_(resonance(formant, width)).mul_(fixed)
