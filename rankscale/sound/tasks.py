"""Labelled tasks in the HEAR layout: what an encoder's embeddings are scored on (Turian et al. 2022)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor


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
    is vocabulary[i]. clip_s: length of every clip in seconds, None where lengths differ.
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
