"""Speed of the synthesiser as a ratio to real time: one process, then two at once, one thread each.

Mixtures as in the corpus. A round makes `--clips` clips in each process; the rounds of one and of two processes
take turns, so that a busy machine hurts both, and the median round counts. The ratio of two processes is the
sound of both over the time until the slower one is done. The ratio by CPU time is beside it: it is what the wall
clock would show if nobody else used the cores.

    python benchmarks/synth.py [--clips 256] [--rounds 3] [--clip-s 1.28]
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median

import torch

from rankscale.sound.synth import synthesize

PROCESSES = 2


def start_worker() -> None:
    """One thread, and a first batch so that nothing is built or loaded while the clock runs."""
    torch.set_num_threads(1)
    synthesize(range(8))


def make_clips(first: int, count: int, clip_s: float) -> float:
    """CPU seconds to make clips first .. first + count."""
    begin = time.process_time()
    synthesize(range(first, first + count), seed=1, clip_s=clip_s)
    return time.process_time() - begin


def time_round(pools: list[ProcessPoolExecutor], first: int, count: int, clip_s: float) -> tuple[float, float]:
    """Real-time ratios of some processes together: by the wall clock, and by the CPU time they used."""
    begin = time.perf_counter()
    jobs = [pool.submit(make_clips, first + i * count, count, clip_s) for i, pool in enumerate(pools)]
    cpu = [job.result() for job in jobs]
    sound_s = count * clip_s * len(pools)
    return sound_s / (time.perf_counter() - begin), sound_s * len(pools) / sum(cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clip-s", type=float, default=1.28)
    options = parser.parse_args()

    spawn = get_context("spawn")
    pools = [ProcessPoolExecutor(1, mp_context=spawn, initializer=start_worker) for _ in range(PROCESSES)]
    for pool in pools:
        pool.submit(make_clips, 0, 8, options.clip_s).result()  # the worker starts and warms up here
    ratios: dict[int, list[tuple[float, float]]] = {1: [], PROCESSES: []}
    for i in range(options.rounds):
        for n in ratios:
            first = i * PROCESSES * options.clips
            ratios[n].append(time_round(pools[:n], first, options.clips, options.clip_s))
    for pool in pools:
        pool.shutdown()

    print(f"synthetic clips of {options.clip_s} s, {options.rounds} rounds of {options.clips} clips a process")
    for n, rounds in ratios.items():
        wall, cpu = (median(column) for column in zip(*rounds, strict=True))
        label = "1 process, 1 thread" if n == 1 else f"{n} processes, 1 thread each"
        clips = wall / options.clip_s
        print(f"{label}: {wall:.0f} x real time ({clips:.0f} clips/s); by CPU time {cpu:.0f} x")


if __name__ == "__main__":
    main()
