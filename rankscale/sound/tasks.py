"""Labelled tasks in the HEAR layout: what an encoder's embeddings are scored on (Turian et al. 2022)."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import soundfile as sf
import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from rankscale.config import SAMPLE_RATE
from rankscale.sound.files import read_audio


class Event(NamedTuple):
    """One labelled stretch of a clip, in milliseconds from the clip's start."""

    label: str
    start_ms: float
    end_ms: float


Labels = np.ndarray | tuple[list[Event], ...]


@dataclass(frozen=True, eq=False)
class Split:
    """Clips that are used together (train, or fold00), and their labels in the same order.

    labels: (n,) int64 class numbers for multiclass, (n, n_label) bool for multilabel; for event tasks a tuple
    of n lists of Event. clips(): a fresh iterator over the n waveforms, each (sample,) float32 in [-1, 1] at
    16 kHz, in label order. names: n file stems, or empty where the clips are made and not files.
    """

    name: str
    labels: Labels
    clips: Callable[[], Iterator[Tensor]]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.names and len(self.names) != len(self.labels):
            raise ValueError(f"split {self.name}: {len(self.names)} names for {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)


class Fold(NamedTuple):
    """One way to train, choose and test: names of splits that share no clip."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Task:
    """A question about sound: clips, labels, and which clips may be trained on.

    kind: "scene" (labels for a clip) or "event" (labels with times). vocabulary: label texts; class number i
    is vocabulary[i]. clip_s: length of every clip in seconds, None where lengths differ. evaluation: names of the
    metrics that its authors report, the one that counts first; empty where they named none. post_processing: for event
    tasks, the median filters and shortest events (ms, ms) that its authors let a probe choose from; empty as before.
    Raises ValueError on a fold that names an unknown split or uses one split twice.
    """

    name: str
    version: str
    kind: Literal["scene", "event"]
    prediction: Literal["multiclass", "multilabel"]
    vocabulary: tuple[str, ...]
    splits: dict[str, Split]
    folds: tuple[Fold, ...]
    clip_s: float | None = None
    evaluation: tuple[str, ...] = ()
    post_processing: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for fold in self.folds:
            used = [*fold.train, *fold.valid, *fold.test]
            if len(used) != len(set(used)) or not set(used) <= set(self.splits):
                raise ValueError(
                    f"task {self.name}: fold {tuple(fold)} must name different splits among {list(self.splits)}"
                )

    @property
    def chance(self) -> float:
        """Score of guessing: 1 / classes (accuracy); the labels' mean rate in the test splits (mAP); 0 (events)."""
        if self.kind == "event":
            return 0.0
        if self.prediction == "multiclass":
            return 1 / len(self.vocabulary)
        tested = dict.fromkeys(name for fold in self.folds for name in fold.test)
        return float(np.concatenate([self.splits[name].labels for name in tested]).mean())

    def waveforms(self, split_name: str, block: int = 64) -> Iterator[Tensor]:
        """Clips of a split in label order, as blocks (<= block, sample) float32; a block has one clip length."""
        for _, run in itertools.groupby(self.splits[split_name].clips(), key=len):
            while clips := list(itertools.islice(run, block)):
                yield torch.stack(clips)

    def held_out(self) -> Task:
        """The same task with only the fold whose test split never enters a pre-training corpus.

        That is the last fold of a k-fold task (see `training_files`), and the only one of a presplit task.
        """
        return replace(self, folds=self.folds[-1:])


def kfold(names: Iterable[str]) -> tuple[Fold, ...]:
    """Every split once as test, the next as valid, the others as train, as hear-eval-kit does.

    names: at least three splits; they are sorted first. Raises ValueError on fewer.
    """
    names = sorted(names)
    if len(names) < 3:
        raise ValueError(f"k-fold needs at least three splits, got {names}")
    folds = []
    for k, test in enumerate(names):
        valid = names[(k + 1) % len(names)]
        train = tuple(name for name in names if name not in (test, valid))
        folds.append(Fold(train=train, valid=(valid,), test=(test,)))
    return tuple(folds)


TRAIN_VALID_TEST = (Fold(train=("train",), valid=("valid",), test=("test",)),)


# --- HEAR task folders ------------------------------------------------------------------------------------


class TaskError(ValueError):
    """A task folder that breaks the HEAR layout; says which file and field, and what was expected."""


class _PostProcessing(BaseModel):
    """HEAR's own names and defaults, in ms."""

    median_filter_ms: list[float] = [150.0]
    min_duration: list[float] = [60.0]


class _EvaluationParams(BaseModel):
    event_postprocessing_grid: _PostProcessing | None = None


class _Metadata(BaseModel):
    """The fields of task_metadata.json that matter here; others are left alone."""

    task_name: str
    version: str = ""
    embedding_type: Literal["scene", "event"]
    prediction_type: Literal["multiclass", "multilabel"]
    split_mode: Literal["trainvaltest", "presplit_kfold", "new_split_kfold"]
    nfolds: int | None = None
    sample_duration: float | None = Field(default=None, gt=0)
    splits: list[str] | None = None
    evaluation: list[str] = []
    evaluation_params: _EvaluationParams = _EvaluationParams()

    @property
    def split_names(self) -> tuple[str, ...]:
        """Sorted for k-fold tasks, so that the last one means the same everywhere."""
        if self.split_mode == "trainvaltest":
            return "train", "valid", "test"
        return tuple(sorted(self.splits or (f"fold{k:02d}" for k in range(self.nfolds or 0))))

    @property
    def training_splits(self) -> tuple[str, ...]:
        """Splits whose audio may be pre-trained on: train, or every fold but the last (see Task.held_out)."""
        return ("train",) if self.split_mode == "trainvaltest" else self.split_names[:-1]

    @property
    def post_processing(self) -> tuple[tuple[float, float], ...]:
        grid = self.evaluation_params.event_postprocessing_grid
        return tuple(itertools.product(grid.median_filter_ms, grid.min_duration)) if grid else ()

    @property
    def folds(self) -> tuple[Fold, ...]:
        return TRAIN_VALID_TEST if self.split_mode == "trainvaltest" else kfold(self.split_names)


def find_tasks(folder: Path | str) -> list[Path]:
    """HEAR task folders: the folder itself if it is one, else those directly in it, sorted; maybe none.

    Raises FileNotFoundError if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; name a HEAR task folder or a folder of them")
    if (folder / "task_metadata.json").is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob("*/task_metadata.json"))


def read_task(folder: Path | str) -> Task:
    """A HEAR task folder as a Task; labels are read now, audio as it is asked for.

    Raises TaskError, naming file and field, on a missing or malformed file, a label outside the vocabulary,
    missing audio, or a file name in two splits. Reading clips raises AudioError on a broken file: no clip of a
    task is left out in silence.
    """
    folder = Path(folder)
    metadata = _read_metadata(folder)
    vocabulary = _read_vocabulary(folder)
    splits = {name: _read_split(folder, name, metadata, vocabulary) for name in metadata.split_names}
    _refuse_shared_names(folder, splits)
    return Task(
        metadata.task_name, metadata.version, metadata.embedding_type, metadata.prediction_type, vocabulary, splits,
        metadata.folds, metadata.sample_duration, tuple(metadata.evaluation), metadata.post_processing,
    )  # fmt: skip


def training_files(folder: Path | str, scored: Iterable[Path | str] = ()) -> list[Path]:
    """Audio files of the HEAR task folders in `folder` that a pre-training corpus may hold.

    That is the train split, or every fold but the last, less any recording whose name (without suffix) lies in
    another split of any task found in `folder` or `scored`: one recording may serve two tasks, and what trains
    one is then a test of the other. Score such an encoder on `Task.held_out()`.
    Raises TaskError if `folder` holds no task, or if nothing may be trained on.
    """
    sources = find_tasks(folder)
    if not sources:
        raise TaskError(f"{folder}: no HEAR task here (no task_metadata.json in it or directly below it)")
    wanted, barred = [], set()
    for task in dict.fromkeys([*sources, *itertools.chain.from_iterable(map(find_tasks, scored))]):
        metadata = _read_metadata(task)
        for split in metadata.split_names:
            paths = _audio_paths(task, split, _read_json(task / f"{split}.json"))
            if split not in metadata.training_splits:
                barred |= {path.stem for path in paths}
            elif task in sources:
                wanted += paths
    allowed = [path for path in wanted if path.stem not in barred]
    if not allowed:
        raise TaskError(f"{folder}: every training file shares its name with a test file of a task")
    return allowed


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TaskError(f"{path}: missing; a HEAR task folder has it") from error
    except ValueError as error:
        raise TaskError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise TaskError(f"{path}: should hold a JSON object, holds a {type(value).__name__}")
    return value


def _read_metadata(folder: Path) -> _Metadata:
    path = folder / "task_metadata.json"
    try:
        metadata = _Metadata(**_read_json(path))
    except ValidationError as error:
        faults = [f"field {fault['loc'][0]}: {fault['msg']}, got {fault['input']!r}" for fault in error.errors()]
        raise TaskError(f"{path}: {'; '.join(faults)}") from error
    names = metadata.split_names
    if metadata.nfolds is not None and len(names) != metadata.nfolds and metadata.split_mode != "trainvaltest":
        raise TaskError(f"{path}: field nfolds is {metadata.nfolds}, but field splits names {list(names)}")
    if len(names) < 3 or len(set(names)) < len(names):
        raise TaskError(f"{path}: field splits (or nfolds) must give three or more different folds, got {list(names)}")
    return metadata


def _read_vocabulary(folder: Path) -> tuple[str, ...]:
    path = folder / "labelvocabulary.csv"
    if not path.is_file():
        raise TaskError(f"{path}: missing; a HEAR task folder has it")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"idx", "label"} <= set(rows[0]):
        raise TaskError(f"{path}: should have the columns idx and label, and at least one row")
    labels = {row["idx"]: row["label"] for row in rows}
    wanted = [str(i) for i in range(len(rows))]
    if sorted(labels) != sorted(wanted) or len(set(labels.values())) < len(rows):
        raise TaskError(f"{path}: idx should count 0 to {len(rows) - 1} and labels should differ")
    return tuple(labels[i] for i in wanted)


def _read_split(folder: Path, name: str, metadata: _Metadata, vocabulary: tuple[str, ...]) -> Split:
    source = folder / f"{name}.json"
    entries = _read_json(source)
    if not entries:
        raise TaskError(f"{source}: lists no clips")
    paths = _audio_paths(folder, name, entries)
    there = {path.name for path in paths[0].parent.iterdir()} if paths[0].parent.is_dir() else set()
    missing = [path for path in paths if path.name not in there]
    if missing:
        raise TaskError(f"{source}: {len(missing)} of {len(paths)} audio files are missing, first {missing[0]}")
    encode = _encode_events if metadata.embedding_type == "event" else _encode_classes
    labels = encode(source, entries, vocabulary, metadata.prediction_type)
    return Split(name, labels, partial(_read_clips, paths), tuple(path.stem for path in paths))


def _audio_paths(folder: Path, split: str, entries: Iterable[str]) -> tuple[Path, ...]:
    """Files of a split, at 16 kHz if the folder has them, else at the highest rate it has."""
    rates = sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())
    if not rates:
        raise TaskError(f"{folder}: no audio folder; it should be named by its sample rate, such as 16000")
    rate = SAMPLE_RATE if SAMPLE_RATE in rates else rates[-1]
    return tuple(folder / str(rate) / split / name for name in entries)


def _read_clips(paths: Sequence[Path]) -> Iterator[Tensor]:
    return map(read_audio, paths)


def _class_number(source: Path, clip: str, label: str, vocabulary: dict[str, int]) -> int:
    if str(label) not in vocabulary:
        raise TaskError(f"{source}: clip {clip!r} has label {label!r}, which labelvocabulary.csv lacks")
    return vocabulary[str(label)]


def _encode_classes(source: Path, entries: dict, vocabulary: tuple[str, ...], prediction: str) -> np.ndarray:
    numbers = {label: i for i, label in enumerate(vocabulary)}
    tags = np.zeros((len(entries), len(vocabulary)), bool)
    for row, (clip, labels) in zip(tags, entries.items(), strict=True):
        if not isinstance(labels, list):
            raise TaskError(f"{source}: clip {clip!r} should have a list of labels, has {labels!r}")
        if prediction == "multiclass" and len(labels) != 1:
            raise TaskError(f"{source}: clip {clip!r} should have one label (multiclass), has {labels!r}")
        row[[_class_number(source, clip, label, numbers) for label in labels]] = True
    return tags.argmax(axis=1) if prediction == "multiclass" else tags


def _encode_events(
    source: Path, entries: dict, vocabulary: tuple[str, ...], prediction: str
) -> tuple[list[Event], ...]:
    del prediction  # events carry their labels as text either way
    numbers = {label: i for i, label in enumerate(vocabulary)}

    def encode(clip: str, event: dict) -> Event:
        try:
            label, start, end = str(event["label"]), float(event["start"]), float(event["end"])
        except (KeyError, TypeError, ValueError) as error:
            raise TaskError(
                f"{source}: clip {clip!r}: an event needs label, start and end (ms), got {event!r}"
            ) from error
        if not 0 <= start <= end:
            raise TaskError(f"{source}: clip {clip!r}: event runs from {start} to {end} ms")
        _class_number(source, clip, label, numbers)
        return Event(label, start, end)

    return tuple([encode(clip, event) for event in events] for clip, events in entries.items())


def _refuse_shared_names(folder: Path, splits: dict[str, Split]) -> None:
    first: dict[str, str] = {}
    for split in splits.values():
        for name in split.names:
            other = first.setdefault(name, split.name)
            if other != split.name:
                raise TaskError(
                    f"{folder}: clip {name!r} is in {other}.json and in {split.name}.json: a test would leak"
                )


def write_task(task: Task, folder: Path | str) -> Path:
    """Write a task as a HEAR folder: 16-bit FLAC at 16 kHz, split JSONs, vocabulary and, last, the metadata.

    folder: the task folder to make. Clips keep their names, or get ones that name task, split and number.
    Returns the folder. Raises FileExistsError if a task is there, ValueError if the folds have no HEAR form.
    """
    folder = Path(folder)
    if (folder / "task_metadata.json").exists():
        raise FileExistsError(f"{folder}: already holds a task; name another folder or remove it first")
    mode = _split_mode(task)
    durations = set()
    for split in task.splits.values():
        stems = split.names or [f"{task.name}-{split.name}-{i:05d}" for i in range(len(split))]
        durations |= _write_clips(split, stems, folder / str(SAMPLE_RATE) / split.name)
        entries = dict(zip((f"{stem}.flac" for stem in stems), _texts(task, split), strict=True))
        _write_json(folder / f"{split.name}.json", entries)
    with (folder / "labelvocabulary.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("idx", "label"), *enumerate(task.vocabulary)])
    metric = (
        "event_onset_200ms_fms" if task.kind == "event" else "top1_acc" if task.prediction == "multiclass" else "mAP"
    )
    metadata = {
        "task_name": task.name, "version": task.version, "embedding_type": task.kind,
        "prediction_type": task.prediction, "split_mode": mode, "splits": list(task.splits),
        "sample_duration": durations.pop() / SAMPLE_RATE if len(durations) == 1 else None,
        "evaluation": list(task.evaluation) or [metric],
    }  # fmt: skip
    if task.post_processing:
        medians, shortest = (sorted(set(values)) for values in zip(*task.post_processing, strict=True))
        grid = {"median_filter_ms": medians, "min_duration": shortest}
        metadata["evaluation_params"] = {"event_postprocessing_grid": grid}
    _write_json(folder / "task_metadata.json", metadata | ({"nfolds": len(task.splits)} if "kfold" in mode else {}))
    return folder


def _split_mode(task: Task) -> str:
    if task.folds == TRAIN_VALID_TEST and set(task.splits) == {"train", "valid", "test"}:
        return "trainvaltest"
    if len(task.splits) > 2 and task.folds == kfold(task.splits):
        return "presplit_kfold"
    raise ValueError(f"task {task.name}: its folds are neither train/valid/test nor a whole k-fold; HEAR has no other")


def _write_clips(split: Split, stems: Sequence[str], folder: Path) -> set[int]:
    """Returns the lengths that occurred, in samples."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths = set()
    for stem, clip in zip(stems, split.clips(), strict=True):
        steps = (clip.double() * 2**15).round().clamp(-(2**15), 2**15 - 1).short()
        memory = io.BytesIO()  # soundfile would wait for the disk after each file
        sf.write(memory, steps.numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        (folder / f"{stem}.flac").write_bytes(memory.getvalue())
        lengths.add(len(clip))
    return lengths


def _texts(task: Task, split: Split) -> Iterator[list]:
    """Each clip's entry in the split JSON."""
    for label in split.labels:
        if task.kind == "event":
            yield [{"label": text, "start": start, "end": end} for text, start, end in label]
        elif task.prediction == "multiclass":
            yield [task.vocabulary[label]]
        else:
            yield [task.vocabulary[i] for i in np.flatnonzero(label)]


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
