"""Sound events: from frames to events and back, and how well two lists of events agree.

Targets, post-processing and scores are those of hear-eval-kit (Turian et al. 2022), whose scores are sed_eval's
(Mesaros et al. 2016). They are written again here, in a few lines over SciPy's maximum matching, because sed_eval 0.2.1
cannot be imported beside a setuptools from 82 on; a test holds sed_eval's own numbers against them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.ndimage import median_filter
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from rankscale.sound.tasks import Event

THRESHOLD = 0.5  # a label is heard in a frame above it
STEPS_MS = (0, 62, 125, 250, 500, 1000)


class PostProcessing(NamedTuple):
    """How frames become events: a median filter over time, then the shortest event that counts, both in ms."""

    median_ms: float
    min_ms: float


# HEAR chooses among 250 ms with 125 or 250 ms, "good for dcase, change for other event-based tasks": such a filter
# erases every event under 125 ms. This is the longer list that its source keeps as a comment; validation chooses.
POST_PROCESSINGS = tuple(itertools.starmap(PostProcessing, itertools.product(STEPS_MS, STEPS_MS)))


def frame_targets(events: Sequence[Event], at_ms: np.ndarray, vocabulary: Sequence[str]) -> np.ndarray:
    """(frame, label) bool: which labels are on at the given times; an event's ends belong to it."""
    on = np.zeros((len(at_ms), len(vocabulary)), bool)
    for event in events:
        on[:, vocabulary.index(event.label)] |= (event.start_ms <= at_ms) & (at_ms <= event.end_ms)
    return on


def find_events(
    probabilities: np.ndarray, at_ms: np.ndarray, vocabulary: Sequence[str], ways: Sequence[PostProcessing]
) -> list[list[Event]]:
    """Events of one clip, for each way of post-processing: runs of frames above 0.5, in the order of their starts.

    probabilities: (frame, label). at_ms: (frame,) ascending. An event runs from its first frame's time to its last's.
    """
    heard = (probabilities > THRESHOLD).astype(np.int8)
    hop_ms = np.diff(at_ms).mean() if len(at_ms) > 1 else np.inf
    widths = {way.median_ms: round(way.median_ms / hop_ms) for way in ways}
    runs = {width: _runs(heard, width, at_ms, vocabulary) for width in set(widths.values())}
    return [[e for e in runs[widths[way.median_ms]] if e.end_ms - e.start_ms >= way.min_ms] for way in ways]


def _runs(heard: np.ndarray, width: int, at_ms: np.ndarray, vocabulary: Sequence[str]) -> list[Event]:
    # The median of 0 and 1 is that of the probabilities above or below the threshold: a filter that picks by rank.
    smooth = median_filter(heard, size=(width, 1)) if width else heard
    steps = np.diff(smooth, axis=0, prepend=0, append=0)
    events = []
    for k, label in enumerate(vocabulary):
        starts, ends = np.flatnonzero(steps[:, k] == 1), np.flatnonzero(steps[:, k] == -1) - 1
        events += [Event(label, float(at_ms[a]), float(at_ms[b])) for a, b in zip(starts, ends, strict=True)]
    return sorted(events, key=lambda event: event.start_ms)


# --- scores -----------------------------------------------------------------------------------------------

Counts = tuple[float, float]  # of one clip; a score is the sum of the first over the sum of the second
Count = Callable[[Sequence[Event], Sequence[Event]], Counts]


def match_counts(
    reference: Sequence[Event], predicted: Sequence[Event], collar_ms: float, length_share: float | None = None
) -> Counts:
    """Twice the events that can be paired, and all events: their ratio is the F-measure.

    A pair has one label and onsets at most collar_ms apart; with length_share, ends too are at most collar_ms apart, or
    that share of the reference's length if it is more. The pairing is the largest there is.
    """
    both = len(reference) + len(predicted)
    if not reference or not predicted:
        return 0.0, float(both)
    labels, starts, ends = (np.array(column) for column in zip(*reference, strict=True))
    labels_p, starts_p, ends_p = (np.array(column) for column in zip(*predicted, strict=True))
    hits = (labels[:, None] == labels_p) & (abs(starts[:, None] - starts_p) <= collar_ms)
    if length_share is not None:
        hits &= abs(ends[:, None] - ends_p) <= np.maximum(collar_ms, length_share * (ends - starts))[:, None]
    pairs = (maximum_bipartite_matching(csr_array(hits)) >= 0).sum() if hits.any() else 0
    return 2.0 * pairs, float(both)


def segment_counts(reference: Sequence[Event], predicted: Sequence[Event], segment_ms: float = 1000.0) -> Counts:
    """Substitutions, deletions and insertions in a grid of segments, and the reference's labels in it.

    In each segment a label is on where an event of it touches the segment. The ratio is the error rate; 0 is best, and
    it may be above 1.
    """
    grid, wanted, given = _segments(reference, segment_ms), {}, {}
    for cells, there in ((grid, wanted), (_segments(predicted, segment_ms), given)):
        for segment, label in cells:
            there.setdefault(segment, set()).add(label)
    errors = 0
    for segment in wanted.keys() | given.keys():
        one, other = wanted.get(segment, set()), given.get(segment, set())
        errors += max(len(one), len(other)) - len(one & other)
    return float(errors), float(len(grid))


def _segments(events: Sequence[Event], segment_ms: float) -> set[tuple[int, str]]:
    spans = ((int(e.start_ms // segment_ms), int(-(-e.end_ms // segment_ms)), e.label) for e in events)
    return {(segment, label) for first, stop, label in spans for segment in range(first, stop)}


EVENT_METRICS: dict[str, Count] = {
    "event_onset_200ms_fms": partial(match_counts, collar_ms=200.0),
    "event_onset_50ms_fms": partial(match_counts, collar_ms=50.0),
    "event_onset_offset_50ms_20perc_fms": partial(match_counts, collar_ms=50.0, length_share=0.2),
    "segment_1s_er": segment_counts,
}
