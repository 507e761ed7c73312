"""A synthetic task with times: which of three sounds begins when, over a background that is no event.

Taps, notes and hisses of `synthetic_tasks` are laid over wind, rain, surf or a stream at known moments. Numbered taps,
timbres and voices, and all backgrounds, differ between train, valid and test; nothing is used for pre-training.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.random import Generator

from rankscale.config import SAMPLE_RATE
from rankscale.sound.synth import synthesize

# The sounds of the frozen tasks. Their file stays as it is: its text is part of the name of what was made from it.
from rankscale.sound.synthetic_tasks import _add, _consonant, _held, _note, _rng, _tap, _unit, _voice
from rankscale.sound.tasks import TRAIN_VALID_TEST, Event, Split, Task

EVENT_TASK_VERSION = "v1"
CLIP_S = 4.0
SIZES = {"train": 160, "valid": 60, "test": 120}  # clips
LABELS = ("tap", "note", "hiss")
LENGTHS_S = {"tap": (0.12, 0.12), "note": (0.25, 0.6), "hiss": (0.15, 0.4)}
BACKGROUNDS = ("wind", "rain", "surf", "stream")
MOST, GAP_S = 6, 0.3  # events in a clip; least time between two onsets
SNR_DB = (0.0, 15.0)  # of an event over the background
_SEED = 20_261_121  # of the backgrounds, a corpus that no run trains on
_FIRST = {"train": 0, "valid": 10_000, "test": 20_000}  # background clips of a split

Draft = tuple[list[Event], Generator]  # and the generator that goes on with the sounds


def onset_task(clips: int | None = None) -> Task:
    """The task as HEAR has them (event, multilabel), in splits train, valid and test; clips are made when asked for.

    clips: at most so many in each split (the first ones), None for SIZES. A clip and its events are the same whatever
    `clips` is. Raises ValueError for fewer than one.
    """
    if clips is not None and clips < 1:
        raise ValueError(f"clips {clips}: at least one in each split")
    splits = {}
    for part, size in SIZES.items():
        rows = range(size if clips is None else min(clips, size))
        splits[part] = Split(part, tuple(_draft(part, i)[0] for i in rows), partial(_clips, part, rows))
    folds = TRAIN_VALID_TEST
    return Task("synthetic_onset", EVENT_TASK_VERSION, "event", "multilabel", LABELS, splits, folds, CLIP_S)


def _draft(part: str, i: int) -> Draft:
    """What happens in a clip, in the order of time."""
    rng = _rng("onsets", part, i)
    count = rng.integers(1, MOST + 1)
    free = CLIP_S - 0.6 - GAP_S * count
    starts = 0.1 + np.sort(rng.uniform(0, free, count)) + GAP_S * np.arange(count)
    labels = [LABELS[k] for k in rng.integers(len(LABELS), size=count)]
    lengths = [rng.uniform(*LENGTHS_S[label]) for label in labels]
    rows = zip(labels, starts, lengths, strict=True)
    return [Event(label, 1000 * start, 1000 * (start + length)) for label, start, length in rows], rng


def _clips(part: str, rows: range) -> Iterator[torch.Tensor]:
    return (_make(part, i) for i in rows)


def _make(part: str, i: int) -> torch.Tensor:
    """The sound of a clip: (sample,) float32 within [-1, 1]."""
    events, rng = _draft(part, i)
    kind = BACKGROUNDS[i % len(BACKGROUNDS)]
    background = synthesize([_FIRST[part] + i], _SEED, CLIP_S, family="environment", kind=kind).waveform[0]
    wave = _unit(background.numpy())
    for event in events:
        sound = _unit(_sound(event, part, rng)) * 10 ** (rng.uniform(*SNR_DB) / 20)
        _add(wave, sound.astype(np.float32), round(event.start_ms / 1000 * SAMPLE_RATE))
    wave *= 10 ** ((rng.uniform(-12, 12) - 27) / 20)
    return torch.from_numpy((wave * min(1.0, 0.99 / np.abs(wave).max())).astype(np.float32))


def _sound(event: Event, part: str, rng: Generator) -> np.ndarray:
    number, length = _held(rng, part), round((event.end_ms - event.start_ms) / 1000 * SAMPLE_RATE)
    if event.label == "tap":
        return _tap(number)
    if event.label == "note":
        return _note(number, 200 * 2 ** rng.uniform(0, 2), length, rng)
    return _consonant(rng.choice(["s", "x"]), length, _voice(number).tract, rng)
