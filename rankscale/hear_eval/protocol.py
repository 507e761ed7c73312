"""HEAR's protocol on tasks: embed, search the probe's settings, train and test it on every fold; X-ARES' probes beside.

After hear-eval-kit 2021.1.3 (Turian et al. 2022, "HEAR: Holistic Evaluation of Audio Representations"): the grid is
searched on the first fold, by its validation split, and its best point is trained anew on each other fold; scores are
averaged over folds. What differs, and why:

* Each training has a seed of its own, so that tasks can be run alone or in any order.
* Audio is read at 16 kHz and resampled for encoders that want another rate; HEAR ships it at several.
* A validation without any predicted event counts 0 and training goes on; there it is NaN, which ends it. An error rate
  as the first metric is minimised throughout; there the post-processing is chosen by its largest value.
* Event tasks without a grid of their own choose their post-processing from more (`events.POST_PROCESSINGS`), and are
  validated every third epoch as all others; there every tenth, since sed_eval is slow.
* Averages over classes leave out those that no test clip has, or all have, and d' is bounded, as in `probe.metrics`.
* `chroma_acc` takes labels for MIDI notes, not their numbers in the vocabulary. In NSynth both say the same.

X-ARES (Zhang et al. 2025) has a linear probe and nearest neighbours: they are `probe.fit_probe`'s, for scenes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from rankscale.hear_eval.embeddings import Embedded, Encoder, Hashes, check_leaks, embed_task, hash_clips
from rankscale.hear_eval.events import POST_PROCESSINGS, PostProcessing, find_events, frame_targets
from rankscale.hear_eval.grid import Fit, GridPoint, Recipe, fit_point
from rankscale.hear_eval.scores import Answers, chance, goodness, interval, metrics_of
from rankscale.probe import Data, fit_probe, quality
from rankscale.sound.synthetic_tasks import frozen_tasks
from rankscale.sound.tasks import Event, Task, find_tasks, read_task

PROBES = ("hear", "linear", "knn")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Chosen(_Part):
    """The setting of HEAR's probe: best validation on the first fold. epochs: at which each fold was best."""

    point: GridPoint
    validation: float
    epochs: tuple[int, ...]
    post_processing: tuple[PostProcessing, ...] = ()


class ProbeScore(_Part):
    """A probe on a task: the metric that counts, its 95 % interval over test clips, all metrics, and those by fold."""

    value: float
    low: float
    high: float
    metrics: dict[str, float | None]
    folds: tuple[dict[str, float | None], ...]
    chosen: Chosen | None = None


class TaskScore(_Part):
    """A task's scores by probe. clips: that were tested on. chance: None where the metric has no such value."""

    task: str
    version: str
    suite: str
    kind: str
    metric: str
    chance: float | None
    clips: int
    probes: dict[str, ProbeScore]


class Evaluation(_Part):
    """An encoder on tasks. quality: by probe and suite, the mean of (score - chance) / (1 - chance) over scene tasks.

    digest: of the encoder. seconds: spent on embedding and on probing; the one part that differs from run to run.
    """

    encoder: str
    digest: str
    seed: int
    recipe: Recipe
    tasks: tuple[TaskScore, ...]
    quality: dict[str, dict[str, float]]
    remarks: tuple[str, ...]
    seconds: dict[str, float]


# --- tasks ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CheckedTask:
    """A task whose metrics are known and whose splits share no clip, or that says so in a remark."""

    task: Task
    suite: str
    metrics: tuple[str, ...]
    hashes: Hashes
    remark: str | None = None


def read_tasks(
    entries: Sequence[str | Path], task_clips: int | None = None, unseen: bool = False, allow_leaks: bool = False,
    progress: bool = True,
) -> list[CheckedTask]:  # fmt: skip
    """Tasks to score on, all their clips heard once.

    entries: "synth" (all that count), "synth:NAME", HEAR task folders, or folders of them. task_clips: of each
    synthetic task and split. unseen: only the fold that no pre-training corpus holds (`Task.held_out`), not all.
    Raises ValueError for a folder without a task, two tasks of one name, labels that HEAR's protocol has no probe for,
    unknown metrics, or, unless allow_leaks, a clip in two splits.
    """
    found = [pair for entry in entries for pair in _tasks_of(str(entry), task_clips)]
    names = [task.name for task, _ in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two tasks are called {twice[0]!r}: evaluate them one at a time")
    found = [(task.held_out() if unseen else task, suite) for task, suite in found]
    scored = [(task, suite, metrics_of(task)) for task, suite in found]
    bar = tqdm(scored, "checking clips", unit="task", disable=not progress)
    return [check_task(task, suite, metrics, allow_leaks) for task, suite, metrics in bar]


def _tasks_of(entry: str, task_clips: int | None) -> list[tuple[Task, str]]:
    head, _, name = entry.partition(":")
    if head == "synth":
        return [(task, "synthetic") for task in frozen_tasks(task_clips, name or None)]
    folders = find_tasks(entry)
    if not folders:
        raise ValueError(f"{entry}: no HEAR task in this folder (looked for task_metadata.json)")
    return [(read_task(folder), "real") for folder in folders]


def check_task(
    task: Task, suite: str = "real", metrics: tuple[str, ...] = (), allow_leaks: bool = False
) -> CheckedTask:
    """Hash a task's clips and look for those in two splits; errors as `read_tasks`."""
    if task.kind == "event" and task.prediction != "multilabel":
        raise ValueError(f"task {task.name}: events are probed as multilabel, its prediction_type is {task.prediction}")
    hashes = hash_clips(task)
    return CheckedTask(task, suite, metrics or metrics_of(task), hashes, check_leaks(task, hashes, allow_leaks))


# --- one task ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Part:
    """Train, valid or test of a fold. x: (n_row, dim) and y, its targets; truth: of each clip; at_ms: times of each
    clip's frames, None where a row is a clip."""

    task: Task
    x: np.ndarray
    y: np.ndarray
    truth: np.ndarray | list[list[Event]]
    at_ms: list[np.ndarray] | None = None

    def by_clip(self, rows: np.ndarray) -> list[np.ndarray]:
        """Values of rows, as one array a clip."""
        return np.split(rows, np.cumsum([len(at) for at in self.at_ms])[:-1])

    def drawn(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """x and y in a drawn order of clips; the frames of a clip stay together, as in HEAR's files."""
        clips = np.random.default_rng(seed).permutation(len(self.truth))
        if self.at_ms is not None:
            rows = self.by_clip(np.arange(len(self.x)))
            clips = np.concatenate([rows[clip] for clip in clips])
        return self.x[clips], self.y[clips]

    def answers(self, probabilities: np.ndarray, ways: Sequence[PostProcessing]) -> list[Answers]:
        """One for each way of making events from frames; scenes have one way."""
        if self.at_ms is None:
            return [Answers(self.task, self.truth, probabilities)]
        clips = zip(self.by_clip(probabilities), self.at_ms, strict=True)
        found = [find_events(p, at, self.task.vocabulary, ways) for p, at in clips]
        return [Answers(self.task, self.truth, events) for events in zip(*found, strict=True)]


def gather(task: Task, embedded: dict[str, Embedded], splits: Sequence[str]) -> Part:
    """Splits that are used together. Raises ValueError for an event task without any event there."""
    parts, labels = [embedded[split] for split in splits], [task.splits[split].labels for split in splits]
    x = np.concatenate([part.z for part in parts])
    if task.kind == "scene":
        y = np.concatenate(labels)
        return Part(task, x, y, y)
    truth = [events for some in labels for events in some]
    if not any(truth):
        raise ValueError(f"task {task.name}: no event in {', '.join(splits)}: nothing can be learnt or scored there")
    at_ms = [at for part in parts for at in part.clips(part.at_ms)]
    targets = [frame_targets(events, at, task.vocabulary) for events, at in zip(truth, at_ms, strict=True)]
    return Part(task, x, np.concatenate(targets), truth, at_ms)


Folds = list[tuple[Part, Part, Part]]
Tick = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """What an evaluation is made with. device: that HEAR's probe is trained on."""

    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    device: str = "cpu"


def hear_answers(folds: Folds, metric: str, settings: Settings, tick: Tick) -> tuple[list[Answers], Chosen]:
    """HEAR's probe: the whole grid on the first fold, its best point on the others; answers on test clips by fold."""
    task = folds[0][0].task
    ways = [PostProcessing(*way) for way in task.post_processing] or list(POST_PROCESSINGS)

    def fit(fold: int, number: int, point: GridPoint) -> Fit | None:
        train, valid, _ = folds[fold]

        def judge(probabilities: np.ndarray) -> tuple[float, int]:
            values = [goodness(metric, answers.measure(metric)) for answers in valid.answers(probabilities, ways)]
            return max(values), int(np.argmax(values))

        recipe, labels, (x, y) = settings.recipe, len(task.vocabulary), train.drawn(settings.seed)
        seed = int(np.random.SeedSequence([settings.seed, fold, number]).generate_state(1)[0])
        found = fit_point(point, recipe, x, y, labels, valid.x, judge, seed, settings.device)
        tick()
        return found

    tried = list(enumerate(settings.recipe.grid))
    fits = [(number, found) for number, point in tried if (found := fit(0, number, point))]
    if not fits:
        raise ValueError(f"task {task.name}: every probe diverged before its first validation; are embeddings huge?")
    number, best = max(fits, key=lambda pair: pair[1].validation)
    others = [fit(k, number, best.point) for k in range(1, len(folds))]
    if None in others:
        raise ValueError(f"task {task.name}: the best probe of the first fold diverges on another")
    by_fold = [best, *others]
    answers = [
        test.answers(fit.predict(test.x), [ways[fit.choice]])[0]
        for fit, (_, _, test) in zip(by_fold, folds, strict=True)
    ]
    chosen = Chosen(
        point=best.point,
        validation=abs(best.validation),
        epochs=tuple(fit.epoch for fit in by_fold),
        post_processing=tuple(ways[fit.choice] for fit in by_fold) if task.kind == "event" else (),
    )
    return answers, chosen


def plain_answers(kind: str, folds: Folds, tick: Tick) -> list[Answers]:
    """The linear probe or nearest neighbours, on features standardised by their training split."""
    answers = []
    for parts in folds:
        scaler = StandardScaler().fit(parts[0].x)
        train, valid, test = (Data(scaler.transform(part.x), part.y) for part in parts)
        scorer = fit_probe(kind, train, valid, len(parts[0].task.vocabulary))
        answers += parts[2].answers(scorer(test.x), [])
        tick()
    return answers


def score_task(
    checked: CheckedTask, embedded: dict[str, Embedded], settings: Settings | None = None, tick: Tick = lambda: None
) -> TaskScore:
    """Every probe on one task: HEAR's on all tasks, linear and kNN on scenes. tick: called after each training.

    embedded: split -> what `embed_task` gave. Raises ValueError where nothing can be scored, saying why.
    """
    task, metrics, settings = checked.task, checked.metrics, settings or Settings()
    folds = [tuple(gather(task, embedded, part) for part in fold) for fold in task.folds]
    answers, chosen = hear_answers(folds, metrics[0], settings, tick)
    probes = {"hear": _summary(answers, metrics, settings.seed, chosen)}
    for kind in PROBES[1:] if task.kind == "scene" else ():
        probes[kind] = _summary(plain_answers(kind, folds, tick), metrics, settings.seed)
    return TaskScore(
        task=task.name,
        version=task.version,
        suite=checked.suite,
        kind=task.kind,
        metric=metrics[0],
        chance=chance(task, metrics[0]),
        clips=sum(len(test.truth) for _, _, test in folds),
        probes=probes,
    )


def fits_of(task: Task, recipe: Recipe) -> int:
    """How many trainings `score_task` makes: its ticks."""
    return recipe.points + len(task.folds) - 1 + (2 * len(task.folds) if task.kind == "scene" else 0)


def _summary(answers: list[Answers], metrics: Sequence[str], seed: int, chosen: Chosen | None = None) -> ProbeScore:
    by_fold = [{metric: fold.measure(metric) for metric in metrics} for fold in answers]
    means = {metric: float(np.mean([fold[metric] for fold in by_fold])) for metric in metrics}
    if np.isnan(means[metrics[0]]):
        raise ValueError(f"task {answers[0].task.name}: {metrics[0]} cannot be told from the test clips of every fold")
    low, high = interval(answers, metrics[0], seed)
    return ProbeScore(
        value=means[metrics[0]],
        low=low,
        high=high,
        metrics=_plain(means),
        folds=tuple(map(_plain, by_fold)),
        chosen=chosen,
    )


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if np.isnan(value) else value for name, value in values.items()}


# --- one encoder ------------------------------------------------------------------------------------------


def evaluate(
    encoder: Encoder, tasks: Sequence[CheckedTask], cache: Path, settings: Settings | None = None, progress: bool = True
) -> Evaluation:
    """Score an encoder on tasks; embeddings are kept in the cache, see `embed_task`.

    Event tasks are left out, with a remark, where the encoder has no frames with timestamps. The same encoder, tasks,
    settings and number of threads give the same numbers. Errors as `score_task` and `embed_task`.
    """
    settings = settings or Settings()
    embedder, remarks = encoder.embedder, [checked.remark for checked in tasks if checked.remark]
    heard = [checked for checked in tasks if checked.task.kind == "scene" or embedder.frames]
    if left_out := [checked.task.name for checked in tasks if checked not in heard]:
        remarks.append(f"{', '.join(left_out)}: left out, as {embedder.name} gives no frames with timestamps")
    seconds, scores = {"embedding": 0.0, "probing": 0.0}, []
    total = sum(fits_of(checked.task, settings.recipe) for checked in heard)
    with tqdm(total=total, desc=f"probing {embedder.name}", unit="fit", disable=not progress) as bar:
        for checked in heard:
            bar.set_postfix_str(checked.task.name)
            started = time.monotonic()
            embedded = embed_task(encoder, checked.task, checked.hashes, cache, progress)
            between = time.monotonic()
            scores.append(score_task(checked, embedded, settings, bar.update))
            seconds["embedding"] += between - started
            seconds["probing"] += time.monotonic() - between
    return Evaluation(
        encoder=embedder.name,
        digest=encoder.digest,
        seed=settings.seed,
        recipe=settings.recipe,
        tasks=tuple(scores),
        quality=_qualities(scores),
        remarks=tuple(remarks),
        seconds=seconds,
    )


def _qualities(scores: Sequence[TaskScore]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, dict[str, float]]] = {probe: {} for probe in PROBES}
    for score in (score for score in scores if score.kind == "scene" and score.chance is not None):
        for probe, of in score.probes.items():
            above_chance = (of.value - score.chance) / (1 - score.chance)
            found[probe].setdefault(score.suite, {})[score.task] = above_chance
    return {probe: {suite: quality(of) for suite, of in suites.items()} for probe, suites in found.items() if suites}


def read_evaluations(path: str | Path) -> list[Evaluation]:
    """What `rankscale evaluate --json` printed, from a file. Raises ValueError that names file and field."""
    try:
        return TypeAdapter(list[Evaluation]).validate_json(Path(path).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(f"{path}: not what `rankscale evaluate --json` prints: {where}: {first['msg']}") from error


# --- words ------------------------------------------------------------------------------------------------


def table(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """One row a task, encoder and probe: metric, value, low, high, chance, clips; tasks in their order."""
    rows = [
        {"suite": score.suite, "task": score.task, "metric": score.metric, "encoder": found.encoder, "probe": probe}
        | {"value": of.value, "low": of.low, "high": of.high, "chance": score.chance, "clips": score.clips}
        for found in evaluations
        for score in found.tasks
        for probe, of in score.probes.items()
    ]
    order = list(dict.fromkeys(row["task"] for row in rows))
    return pd.DataFrame(sorted(rows, key=lambda row: order.index(row["task"])))


def describe(evaluations: Sequence[Evaluation]) -> str:
    """Scores with their intervals for a terminal: a row a task and encoder, a column a probe; then Q and remarks."""
    layout = "{:22} {:22} {:16} {:>21} {:>21} {:>21}"
    lines = [layout.format("task", "metric", "encoder", "HEAR's probe", "linear", "kNN").rstrip()]
    names = list(dict.fromkeys(score.task for found in evaluations for score in found.tasks))
    for name in names:
        for found in evaluations:
            for score in (score for score in found.tasks if score.task == name):
                cells = (_cell(score.probes.get(probe)) for probe in PROBES)
                lines.append(layout.format(name[:22], score.metric[:22], found.encoder[:16], *cells).rstrip())
    for suite in dict.fromkeys(suite for found in evaluations for of in found.quality.values() for suite in of):
        for found in evaluations:
            cells = (
                f"{q:.3f}" + " " * 15 if (q := found.quality.get(p, {}).get(suite)) is not None else "" for p in PROBES
            )
            lines.append(layout.format(f"Q, {suite} scenes", "above chance", found.encoder[:16], *cells).rstrip())
    lines.append("brackets: 95 % intervals over test clips, the trained probes as they are")
    for found in evaluations:
        spent = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in found.seconds.items())
        lines.append(f"{found.encoder}: {spent}")
    remarks = dict.fromkeys(remark for found in evaluations for remark in found.remarks)
    return "\n".join([*lines, *(f"! {remark}" for remark in remarks)])


def _cell(score: ProbeScore | None) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" if score else ""
