"""What a probe's answers on test clips are worth: metrics by HEAR's names, and intervals over clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import average_precision_score

from rankscale.hear_eval.events import EVENT_METRICS
from rankscale.probe import metrics
from rankscale.sound.tasks import Event, Task

RIGHT_OR_WRONG = ("top1_acc", "pitch_acc", "chroma_acc")  # of one label a clip
RANKED = ("mAP", "d_prime", "aucroc")  # of how all clips are ordered, averaged over classes
LOWER_IS_BETTER = ("segment_1s_er",)
DRAWS = 2000  # of test clips, for an interval
DRAWS_RANKED = 200  # for metrics of RANKED, which take their time


@dataclass(frozen=True, eq=False)
class Answers:
    """A probe's answers on clips. Of scenes: truth (n,) class numbers or (n, n_label) bool, given (n, n_label) scores,
    larger is surer. Of event tasks: a list of events a clip, each."""

    task: Task
    truth: np.ndarray | Sequence[Sequence[Event]]
    given: np.ndarray | Sequence[Sequence[Event]]

    def measure(self, metric: str) -> float:
        """One metric; NaN where these clips cannot tell, as none of them has an event."""
        if metric not in RANKED:
            hits, of = self.counts(metric).sum(axis=0)
            return float(hits / of) if of else np.nan
        truth = self.truth if self.truth.ndim == 2 else np.eye(self.given.shape[1], dtype=bool)[self.truth]
        both = truth.any(axis=0) & ~truth.all(axis=0)
        if not both.any():
            return np.nan
        if metric == "mAP":  # validation asks for it often, and the others take their time
            return float(average_precision_score(truth[:, both], self.given[:, both], average="macro"))
        return metrics(self.truth, self.given)[metric]

    def counts(self, metric: str) -> np.ndarray:
        """(n_clip, 2): a metric that is no ranking is the sum of the first column over that of the second."""
        if metric in EVENT_METRICS:
            pairs = zip(self.truth, self.given, strict=True)
            return np.array([EVENT_METRICS[metric](wanted, found) for wanted, found in pairs])
        wanted, found = self.truth, self.given.argmax(axis=1)
        if metric == "chroma_acc":
            pitch_class = np.array(midi_notes(self.task)) % 12
            wanted, found = pitch_class[wanted], pitch_class[found]
        return np.stack([wanted == found, np.ones(len(wanted))], axis=1).astype(float)

    def draw(self, metric: str, draws: int, rng: np.random.Generator) -> np.ndarray:
        """(draws,) values of the metric, each on as many clips drawn with replacement; NaN as in `measure`."""
        n = len(self.truth)
        if metric not in RANKED:
            hits, of = (rng.multinomial(n, np.full(n, 1 / n), size=draws) @ self.counts(metric)).T
            return np.divide(hits, of, out=np.full(draws, np.nan), where=of > 0)
        rows = rng.integers(n, size=(draws, n))
        return np.array([Answers(self.task, self.truth[some], self.given[some]).measure(metric) for some in rows])


def interval(folds: Sequence[Answers], metric: str, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean over folds: test clips are drawn again within each fold.

    It holds the trained probes as they are: how much another training would change them is not in it.
    """
    rng, draws = np.random.default_rng(seed), DRAWS_RANKED if metric in RANKED else DRAWS
    means = np.mean([fold.draw(metric, draws, rng) for fold in folds], axis=0)
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return float(low), float(high)


def metrics_of(task: Task) -> tuple[str, ...]:
    """What a task is scored by, the metric that counts first: as its authors say, then what else applies.

    Raises ValueError for a metric that is unknown, or that does not go with the task's labels.
    """
    if task.kind == "event":
        usual = ("event_onset_200ms_fms", "event_onset_50ms_fms", "segment_1s_er")
    else:
        usual = (*RIGHT_OR_WRONG[: task.prediction == "multiclass"], *RANKED)
    pitched = RIGHT_OR_WRONG[1:] if task.prediction == "multiclass" else ()
    fitting = tuple(EVENT_METRICS) if task.kind == "event" else (*usual, *pitched)
    if wrong := [name for name in task.evaluation if name not in fitting]:
        raise ValueError(
            f"task {task.name}: metric {wrong[0]!r} is unknown or not for a {task.prediction} {task.kind} task; "
            f"choose among {', '.join(fitting)}"
        )
    if "chroma_acc" in task.evaluation:
        midi_notes(task)
    return tuple(dict.fromkeys((*task.evaluation, *usual)))


def midi_notes(task: Task) -> list[int]:
    """The vocabulary as MIDI notes, whose remainders by 12 are pitch classes. Raises ValueError on other labels."""
    try:
        return [int(label) for label in task.vocabulary]
    except ValueError as error:
        raise ValueError(f"task {task.name}: chroma_acc needs labels that are MIDI notes ({error})") from error


def goodness(metric: str, value: float) -> float:
    """Larger is better; what cannot be told counts as 0: what a probe's settings are chosen by."""
    value = 0.0 if np.isnan(value) else value
    return -value if metric in LOWER_IS_BETTER else value


def chance(task: Task, metric: str) -> float | None:
    """The score of guessing, where the metric runs from there to 1; None for the others."""
    if metric in RANKED[1:] or metric in LOWER_IS_BETTER:
        return None
    if metric == "chroma_acc":
        return 1 / len({note % 12 for note in midi_notes(task)})
    if metric == "mAP" and task.prediction == "multiclass":
        return 1 / len(task.vocabulary)
    return task.chance
