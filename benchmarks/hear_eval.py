"""Probing by HEAR's protocol: seconds of the linear probe and of the grid of shallow probes, against their goals.

1,000 training clips x 768 dimensions x 50 classes by the linear probe should take under 5 s on two cores; HEAR's grid
over all tasks of a folder (embeddings ready) under 10 minutes. CPU times are beside wall times: others' work on a
machine moves them less.

    python benchmarks/hear_eval.py [--tasks DIR ...] [--encoder logmel_meanstd] [--threads 2] [--cache runs/cache]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from rankscale.hear_eval import Embedded, Settings, embed_task, load_encoder, plain_answers, read_tasks, score_task
from rankscale.hear_eval.protocol import gather
from rankscale.sound.tasks import TRAIN_VALID_TEST, Split, Task

CLIPS, DIM, CLASSES = 1000, 768, 50


def timed(what: str, call: Callable[[], object]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    print(f"{what:44} {time.perf_counter() - wall:8.1f} s wall {time.process_time() - cpu:8.1f} s CPU", flush=True)


def probe_made_features(kind: str) -> None:
    """Classes as clouds along correlated axes; validation and test as large as training."""
    rng = np.random.default_rng(0)
    centres, mix = 0.3 * rng.normal(size=(CLASSES, DIM)), rng.normal(size=(DIM, DIM)) / DIM**0.5
    labels = {split: np.arange(CLIPS) % CLASSES for split in ("train", "valid", "test")}
    splits = {split: Split(split, y, lambda: iter(())) for split, y in labels.items()}
    task = Task("made", "v0", "scene", "multiclass", tuple(map(str, range(CLASSES))), splits, TRAIN_VALID_TEST)
    made = {
        s: Embedded((centres[y] + rng.normal(size=(CLIPS, DIM)) @ mix).astype(np.float32)) for s, y in labels.items()
    }
    folds = [tuple(gather(task, made, part) for part in fold) for fold in task.folds]
    timed(f"{kind}, {CLIPS} x {DIM} x {CLASSES}", lambda: plain_answers(kind, folds, lambda: None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=[], help="HEAR task folders")
    parser.add_argument("--encoder", default="logmel_meanstd")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        for kind in ("linear", "knn"):
            probe_made_features(kind)
        if args.tasks:
            score_folders(args)


def score_folders(args: argparse.Namespace) -> None:
    tasks, encoder = read_tasks(args.tasks), load_encoder(args.encoder)
    made = [embed_task(encoder, checked.task, checked.hashes, args.cache) for checked in tasks]
    settings = Settings()

    def score_all() -> None:
        for checked, embedded in zip(tasks, made, strict=True):
            timed(f"  {checked.task.name}", lambda c=checked, e=embedded: score_task(c, e, settings))

    timed(f"all probes, {len(tasks)} tasks", score_all)


if __name__ == "__main__":
    main()
