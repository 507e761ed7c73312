"""Procedural general audio: speech-like, music-like and environmental sources, mixed in rooms with noise.

Clip i of corpus seed s is a function of (s, i, clip_s) alone: the batch it is made in changes nothing beyond 1e-5,
the device nothing beyond 1e-4. Factors are independent, many and heavy-tailed, so that there is always a rarer
combination left to learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from rankscale.config import SAMPLE_RATE
from rankscale.sound._draw import (
    Quantile,
    Table,
    draw_table,
    draw_uniform,
    hash_noise,
    lognormal,
    normal,
    sometimes,
    uniform,
    zipf,
)
from rankscale.sound._environment import ENVIRONMENT, KINDS, complete_environment, environment
from rankscale.sound._music import INSTRUMENTS, MUSIC, music
from rankscale.sound._render import (
    EVENT_COLUMNS,
    N_FACTORS,
    Rows,
    bin_hz,
    colour_noise,
    count_events,
    noise_hz,
    normalise,
    shape,
    tilt,
)
from rankscale.sound._speech import SPEECH, VOICES, complete_speech, speech


class _Family(NamedTuple):
    """A family of sources: its kinds, how its factors are drawn, what follows from them, how it sounds."""

    kinds: tuple[str, ...]
    recipe: dict[str, Quantile]
    complete: Callable[[Table], Table]
    play: Callable[[Rows], tuple[Tensor, Table]]


_FAMILIES = {
    "speech": _Family(tuple(VOICES), SPEECH, complete_speech, speech),
    "music": _Family(tuple(INSTRUMENTS), MUSIC, lambda table: table, music),
    "environment": _Family(tuple(KINDS), ENVIRONMENT, complete_environment, environment),
}
FAMILIES = tuple(_FAMILIES)
KINDS_OF = {name: family.kinds for name, family in _FAMILIES.items()}
MAX_SOURCES = 4
SHORTEST_S, LONGEST_S = 0.16, 60.0
LONGEST_ECHO_S = 2.5
PEAK = 0.98  # no sample is beyond
BLOCK_SAMPLES = {"cpu": 64 * 20_480, "cuda": 1024 * 20_480}  # rendered at once: what fits the cache, or fills the GPU

SCENE: dict[str, Quantile] = {
    "n_sources": zipf(range(1, MAX_SOURCES + 1), 0.6),
    "snr_db": normal(16.0, 11.0, -5.0, 40.0),  # of the mixture over the background noise
    "noise_slope_db": normal(-3.5, 2.5, -10, 4),  # of the background, per octave
    # until the room's echo has fallen by 60 dB; 0: no room
    "reverb_s": sometimes(0.6, lognormal(0.45, 0.6, 0.08, LONGEST_ECHO_S), 0.0),
    "wet_db": normal(-7.0, 5.0, -25, 6),  # of the echo over the direct sound
    "damping_db": normal(-3.0, 1.5, -9, 0),  # slope of the echo, per octave
    "channel_db": normal(0.0, 1.5, -6, 6),  # slope of the microphone, per octave
    "low_cut_hz": sometimes(0.3, lognormal(180, 0.6, 30, 900), 20.0),
    "high_cut_hz": sometimes(0.3, lognormal(3800, 0.4, 1500, 8000), 8000.0),
    "level_db": normal(-26.0, 8.0, -60, -9),  # RMS over full scale; lowered where PEAK would be passed
    "key0": uniform(0, 2**32),  # of the noise
    "key1": uniform(0, 2**32),
}
# What `family=` sets: one source in the dry, by a flat microphone.
SOLO = {"n_sources": 1, "snr_db": 40.0, "reverb_s": 0.0, "channel_db": 0.0, "low_cut_hz": 20.0, "high_cut_hz": 8000.0}
SOURCE: dict[str, Quantile] = {
    "family": zipf(FAMILIES, 0.0),
    "gain_db": normal(0.0, 6.0, -20, 20),  # of the source within the mixture
    "start": sometimes(0.3, uniform(0.0, 0.35), 0.0),  # share of the clip before the source begins
    "key0": uniform(0, 2**32),  # of the noise
    "key1": uniform(0, 2**32),
}


@dataclass(frozen=True)
class SynthBatch:
    """Clips and what they are made of.

    waveform: float32 (clip, sample), 16 kHz, finite, within 0.98 of zero, never silent: there is background noise.
    factors: one row per clip. Columns: clip and seed; those of the scene (`n_sources`, `snr_db`, `reverb_s`, ...,
    see SCENE); then for sources 0 to 3 `source0_family`, `source0_kind`, `source0_f0_hz`, ... (see SOURCE and the
    families' recipes), NaN or None where a source is not there or has no such factor.
    """

    waveform: Tensor
    factors: pd.DataFrame


def synthesize(
    index: Sequence[int],
    seed: int = 0,
    clip_s: float = 1.28,
    device: str | torch.device = "cpu",
    family: str | None = None,
    kind: str | None = None,
) -> SynthBatch:
    """Make clips of a procedural corpus.

    index: numbers of the clips, 0 to 2**62; any order, repeats allowed. seed: of the corpus, 0 to 2**62.
    clip_s: 0.16 to 60 s; a longer clip has the same sources and factors, and more of their events.
    family: None for mixtures of one to four sources of any family in a room with background noise; one of FAMILIES
    for a single source in the dry, noise 40 dB below; then `kind`, one of KINDS_OF[family], fixes what it is.
    Raises ValueError on values outside these.
    """
    _check(index, seed, clip_s, family, kind)
    sample = round(clip_s * SAMPLE_RATE)
    device = torch.device(device)
    size = max(1, BLOCK_SAMPLES.get(device.type, BLOCK_SAMPLES["cpu"]) // sample)
    blocks = [
        _render(np.array(index[i : i + size], dtype=np.int64), seed, sample, device, family, kind)
        for i in range(0, len(index), size)
    ]
    factors = {name: np.concatenate([table[name] for _, table in blocks]) for name in blocks[0][1]}
    return SynthBatch(torch.cat([wave for wave, _ in blocks]), pd.DataFrame(factors))


def _check(index: Sequence[int], seed: int, clip_s: float, family: str | None, kind: str | None) -> None:
    """Raise ValueError where an argument of `synthesize` is outside its range."""
    if not len(index):
        raise ValueError("index is empty: name at least one clip, for example range(8)")
    for name, low, high in (("index", min(index), max(index)), ("seed", seed, seed)):
        if low < 0 or high > 2**62:
            raise ValueError(f"{name} {low if low < 0 else high}: must lie between 0 and 2**62")
    if not SHORTEST_S <= clip_s <= LONGEST_S:
        raise ValueError(f"clip_s {clip_s}: must lie between {SHORTEST_S} and {LONGEST_S} seconds")
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family {family!r}: choose one of {', '.join(FAMILIES)}, or None for mixtures")
    if kind is not None and kind not in KINDS_OF.get(family, ()):
        known = ", ".join(KINDS_OF.get(family, ())) or "none, unless a family is named"
        raise ValueError(f"kind {kind!r} of family {family!r}: choose one of {known}")


@dataclass(frozen=True)
class _Block:
    """Clips that are rendered together: their scenes and their sources (clip, slot, table, events, keys)."""

    scene: Table
    clip: np.ndarray  # (source,): row of the scene
    slot: np.ndarray  # (source,): 0 to 3
    source: Table
    factor: np.ndarray  # uniform (source, N_FACTORS)
    event: np.ndarray  # uniform (source, event, EVENT_COLUMNS)


def _draw(index: np.ndarray, seed: int, clip_s: float, family: str | None) -> _Block:
    """Draw the scenes of clips and the uniform numbers of their sources."""
    seed, events = int(seed), count_events(clip_s)
    scene = draw_table(SCENE, np.stack([draw_uniform(seed, int(i), MAX_SOURCES, len(SCENE)) for i in index]))
    if family:
        for name, value in SOLO.items():
            scene[name] = np.full_like(scene[name], value)
    clip = np.repeat(np.arange(len(index)), scene["n_sources"])
    slot = np.concatenate([np.arange(n) for n in scene["n_sources"]])
    count = len(SOURCE) + N_FACTORS + events * EVENT_COLUMNS
    u = np.stack([draw_uniform(seed, int(index[c]), int(s), count) for c, s in zip(clip, slot, strict=True)])
    own, factor, event = np.split(u, [len(SOURCE), len(SOURCE) + N_FACTORS], axis=1)
    source = draw_table(SOURCE, own)
    if family:
        source |= {"family": np.full(len(u), family), "start": np.zeros(len(u))}
    return _Block(scene, clip, slot, source, factor, event.reshape(len(u), events, EVENT_COLUMNS))


def _to_key(table: Table, device: torch.device) -> Tensor:
    """Noise keys (row, 2) as int32."""
    bits = np.stack([table["key0"], table["key1"]], 1).astype(np.uint32).view(np.int32)
    return torch.from_numpy(bits).to(device)


def _play_sources(
    block: _Block, sample: int, device: torch.device, kind: str | None
) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Sum each clip's sources: dry sound (clip, sample), and the columns that describe the sources."""
    key = _to_key(block.source, device)
    dry = torch.zeros(len(block.scene["n_sources"]), sample, device=device)
    columns = _empty_columns(len(dry))
    for name, family in _FAMILIES.items():
        chosen = np.flatnonzero(block.source["family"] == name)
        if not len(chosen):
            continue
        own = {column: values[chosen] for column, values in block.source.items() if not column.startswith("key")}
        table = draw_table(family.recipe, block.factor[chosen])
        if kind:
            table["kind"] = np.full(len(chosen), kind)
        at = torch.from_numpy(chosen).to(device)
        wave, table = family.play(Rows(family.complete(table), block.event[chosen], key[at], sample))
        gain = torch.as_tensor(10 ** (own["gain_db"] / 20), dtype=torch.float32, device=device)[:, None]
        wave = _delay(normalise(wave), own["start"]).mul_(gain)
        dry.index_add_(0, torch.from_numpy(block.clip[chosen]).to(device), wave)
        _fill_columns(columns, own | table, block.clip[chosen], block.slot[chosen])
    return dry, columns


def _empty_columns(count: int) -> dict[str, np.ndarray]:
    """A column for every factor of every slot: NaN for numbers, None for words."""
    half, examples = np.full(1, 0.5), {}
    for recipe in (SOURCE, *(family.recipe for family in _FAMILIES.values())):
        examples |= {name: quantile(half) for name, quantile in recipe.items() if not name.startswith("key")}
    words = {"text"} | {name for name, example in examples.items() if example.dtype.kind == "U"}
    return {
        f"source{k}_{name}": np.full(count, None) if name in words else np.full(count, np.nan)
        for k in range(MAX_SOURCES)
        for name in (*examples, "text")
    }


def _fill_columns(columns: dict[str, np.ndarray], table: Table, clip: np.ndarray, slot: np.ndarray) -> None:
    """Write sources' factors, each (source,), into the columns of their slots."""
    for k in range(MAX_SOURCES):
        here = slot == k
        for name, values in table.items():
            columns[f"source{k}_{name}"][clip[here]] = values[here]


def _delay(wave: Tensor, start: np.ndarray) -> Tensor:
    """Let sources begin after a share of the clip, with a ramp of 20 ms; those that start at 0 are left alone."""
    sample = wave.shape[-1]
    for row in np.flatnonzero(start):
        by = int(start[row] * sample)
        late = wave[row, : sample - by].clone()
        ramp = torch.arange(len(late), device=wave.device) / (0.02 * SAMPLE_RATE)
        wave[row, :by], wave[row, by:] = 0, late * ramp.clamp_(max=1)
    return wave


def _place_in_room(dry: Tensor, scene: Table) -> tuple[Tensor, Tensor]:
    """Echo and microphone: the mixture at RMS 1, and the background noise at its level below; both (clip, sample)."""
    sample, device = dry.shape[-1], dry.device
    col = {name: torch.as_tensor(values, dtype=torch.float32, device=device)[:, None] for name, values in scene.items()}
    key = _to_key(scene, device)

    wet = np.flatnonzero(scene["reverb_s"])
    if len(wet):
        at = torch.from_numpy(wet).to(device)
        dry[at] += _echo(dry[at], {name: values[at] for name, values in col.items()}, key[at])
    f = noise_hz(sample, device)
    microphone = _respond(f, col)
    noise = colour_noise(key + 1, tilt(f, col["noise_slope_db"]) * microphone, sample)
    return normalise(shape(dry, microphone)), normalise(noise) * 10 ** (-col["snr_db"] / 20)


def _echo(dry: Tensor, col: dict[str, Tensor], key: Tensor) -> Tensor:
    """What a room adds to sounds (clip, sample): their convolution with decaying noise."""
    sample, device = dry.shape[-1], dry.device
    length = min(sample, round(LONGEST_ECHO_S * SAMPLE_RATE))
    n_fft = next_fast_len(sample + length, real=True)
    t = torch.arange(length, device=device) / SAMPLE_RATE
    tail = hash_noise(key, length).mul_(torch.exp(t * (-6.91 / col["reverb_s"]))).mul_(t < col["reverb_s"])
    echo = torch.fft.rfft(tail, n=n_fft).mul_(tilt(bin_hz(n_fft, device), col["damping_db"]))
    power = torch.view_as_real(echo).square().mean((1, 2), keepdim=True)[..., 0].mul_(2).sqrt_().clamp_(min=1e-6)
    wet = torch.fft.irfft(echo.mul_(torch.fft.rfft(dry, n=n_fft)), n=n_fft)[..., :sample]
    return wet * (10 ** (col["wet_db"] / 20) / power)


def _respond(f: Tensor, col: dict[str, Tensor]) -> Tensor:
    """The microphone's gain (clip, bin): a slope between two cuts of 12 dB an octave."""
    low, high = (col["low_cut_hz"] / f) ** 2, (f / col["high_cut_hz"]) ** 2 * (col["high_cut_hz"] < 8000)
    return tilt(f, col["channel_db"]) / ((1 + low) * (1 + high**2))


def _set_level(sound: Tensor, level_db: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Scale clips to their level, or less where a peak would pass PEAK; also the level reached, in dB."""
    sound = normalise(sound)
    wanted = torch.as_tensor(10 ** (level_db / 20), dtype=torch.float32, device=sound.device)[:, None]
    scale = torch.minimum(wanted, PEAK / sound.abs().amax(-1, keepdim=True).clamp(min=1e-6))
    return sound * scale, 20 * np.log10(scale[:, 0].double().cpu().numpy())


def _render(
    index: np.ndarray, seed: int, sample: int, device: torch.device, family: str | None, kind: str | None
) -> tuple[Tensor, dict[str, np.ndarray]]:
    """One block of clips: waveforms and columns of factors."""
    block = _draw(index, seed, sample / SAMPLE_RATE, family)
    dry, columns = _play_sources(block, sample, device, kind)
    signal, noise = _place_in_room(dry, block.scene)
    wave, level_db = _set_level(signal + noise, block.scene["level_db"])
    scene = {name: values for name, values in block.scene.items() if not name.startswith("key")}
    first = {"clip": index, "seed": np.full(len(index), seed)}
    return wave, first | scene | {"level_db": level_db} | columns
