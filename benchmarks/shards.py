"""Streaming tar shards: is a training step kept fed, and does memory stay constant however long the list of shards is?

Feeding: clips/s of decoding and log-Mel in one process, of several processes reading ahead, and of a training step that
finds its batch ready, in turns, so that a busy machine hurts all of them. The medians count; a ratio of readers to step
above 1 means that the step never waits.

Memory: a process each opens a list of 100, 1000, ... shards (the same few files under many names, each with as many
recordings as a shard of 256 MB in pieces of 30 s has) and reads batches from all over it. Largest resident memory, and
what it grew by for each further shard.

    python benchmarks/shards.py [--rounds 3] [--workers 2] [--shards 100 1000 10000] [--encoder en64-4] [--batch 64]
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import soundfile as sf
import torch

from rankscale.config import SAMPLE_RATE, RunConfig
from rankscale.corpus import ShardCorpus, build_corpus
from rankscale.mae import decay_groups
from rankscale.pretrain import Learner, TrainState, initial_model, pick_device, train_step
from rankscale.sound import files, shards
from rankscale.sound.synth import synthesize

RECORDINGS = 267  # of 30 s in a shard of 256 MB
STEPS = 32  # a round


def make_shards(root: Path, recordings: int, seconds: float, n: int = 3) -> Path:
    """n shards (or a few more) of synthetic recordings, at root/out."""
    (root / "in").mkdir(parents=True)
    for k in range(recordings * n):
        waveform = synthesize([k], clip_s=seconds).waveform[0]
        sf.write(root / "in" / f"{k}.flac", waveform.numpy(), SAMPLE_RATE, subtype="PCM_16")
    manifest = files.scan(root / "in", cache_dir=root / "cache", progress=False)
    shards.write_shards(manifest, root / "out", 2 * seconds * SAMPLE_RATE * recordings / 1e6, progress=False)
    return root / "out"


def open_corpus(config: RunConfig, folder: Path, cache: Path, workers: int = 1) -> ShardCorpus:
    return build_corpus(config.replace(corpus=f"shards:{folder}/*.tar"), cache, workers, progress=False)


# --- memory -----------------------------------------------------------------------------------------------


def measure_memory(config: RunConfig, folder: Path, cache: Path) -> tuple[float, float]:
    """Largest resident MB of this process before and after it has used a list of shards."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    corpus = open_corpus(config, folder, cache)
    for step in range(0, 40 * 1000, 1000):
        corpus.batch(step, config.batch, 0)
    return before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def report_memory(config: RunConfig, root: Path, counts: list[int]) -> None:
    out = make_shards(root, RECORDINGS, 1.28)
    real, peaks = sorted(out.glob("*.tar")), {}
    for n in counts:
        folder = root / str(n)
        folder.mkdir()
        for k in range(n):
            (folder / f"{k:07d}.tar").symlink_to(real[k % len(real)].resolve())
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            before, peaks[n] = alone.submit(measure_memory, config, folder, root / "cache").result()
        hours = n * RECORDINGS * 30 / 3600
        print(
            f"{n:8d} shards (as many recordings as {hours:8,.0f} h): {peaks[n]:6.0f} MB, {before:.0f} MB of it before"
        )
    if len(counts) > 1:
        first, last = counts[0], counts[-1]
        print(f"each further shard: {1e3 * (peaks[last] - peaks[first]) / (last - first):.2f} kB")


# --- feeding ----------------------------------------------------------------------------------------------


class Ready:
    """A corpus that has its batch at hand already."""

    def __init__(self, mel: torch.Tensor):
        self.mel = mel

    def batch(self, *_) -> torch.Tensor:
        return self.mel


def clips_per_s(work: Callable[[], object], batch: int, skip: int = 0) -> float:
    """skip: batches that are not counted, since they were ready before the clock started."""
    for _ in range(skip):
        work()
    started = time.perf_counter()
    for _ in range(STEPS):
        work()
    return STEPS * batch / (time.perf_counter() - started)


def report_feeding(config: RunConfig, root: Path, rounds: int, workers: int) -> None:
    out, device = make_shards(root, 8, 30.0), pick_device()
    corpus = open_corpus(config, out, root / "cache")
    reader = replace(corpus, workers=workers).reader(on_gpu=True)
    model = initial_model(config, corpus).to(device)
    learner = Learner.of(model, torch.optim.AdamW(decay_groups(model, 0.05), lr=1e-4, fused=True))
    ready, state = Ready(corpus.batch(0, config.batch, 0, device=device)), TrainState()
    alone_at, ahead_at = count(), count()
    arms = {  # a training step ends by reading its loss, so that a GPU's work is in its time
        "decoding and log-Mel, one process": (lambda: corpus.batch(next(alone_at), config.batch, 0), 0),
        f"reading ahead, {workers} processes": (
            lambda: reader.batch(next(ahead_at), config.batch, 0, slice(None), device), 2 * workers,
        ),
        f"training step, {config.encoder} on {device}": (lambda: train_step(config, ready, learner, state), 0),
    }  # fmt: skip
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for k in range(rounds + 1):
        for name, (work, skip) in arms.items():
            speed = clips_per_s(work, config.batch, skip)
            if k:  # the first round reads tables, starts processes, chooses kernels
                speeds[name].append(speed)
    for name, values in speeds.items():
        print(f"{name:40} {median(values):9.0f} clips/s of {config.clip_s} s")
    alone, several, training = (median(values) for values in speeds.values())
    print(f"(decode + log-Mel) / step: {alone / training:.2f} in one process, {several / training:.2f} in {workers}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--encoder", default="en64-4")
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = RunConfig(encoder=options.encoder, batch=options.batch, clips=10**9, rank_clips=64)
    with tempfile.TemporaryDirectory() as folder:
        report_feeding(config, Path(folder) / "feeding", options.rounds, options.workers)
        report_memory(config, Path(folder) / "memory", options.shards)


if __name__ == "__main__":
    main()
