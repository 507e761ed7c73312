"""Spectra of embeddings: ours against `torch.linalg.svdvals` in float64 and float32, and a stream of a million rows.

Arms take turns, so that a busy machine hurts all of them. The ratio to quote is that of the median wall times.
Memory is the peak of the process beyond what it held before the call.

    python benchmarks/spectra.py [--rounds 3] [--threads N] [--rows 30000] [--dims 768 1536] [--stream 1000000]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from threadpoolctl import threadpool_limits

from rankscale.spectra import SpectrumAccumulator, rankme, spectrum

PIECE = 8192  # rows of the stream that are made at once


def make_embeddings(rows: int, dim: int) -> torch.Tensor:
    """float32 rows whose variances fall as 1 / rank along random axes, about a mean: well-conditioned."""
    generator = torch.Generator().manual_seed(dim)
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    scales = torch.arange(1, dim + 1) ** -0.5
    return torch.randn(rows, dim, generator=generator) * scales @ axes + 0.1


def seconds_of(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def race(arms: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each arm; the first round is not counted."""
    seconds = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, call in arms.items():
            taken = seconds_of(call)
            if turn:
                seconds[name].append(taken)
    return {name: median(values) for name, values in seconds.items()}


def compare(rows: int, dim: int, rounds: int) -> None:
    z = make_embeddings(rows, dim)
    arms = {
        "ours": lambda: spectrum(z),
        "ours, tsqr": lambda: spectrum(z, method="tsqr"),
        "svdvals float64": lambda: torch.linalg.svdvals(z.double()),
        "svdvals float32": lambda: torch.linalg.svdvals(z),
    }
    memory = _extra_memory(rows, dim)
    found = race(arms, rounds)
    exact = rankme(torch.linalg.svdvals(z.double()))
    print(f"\n{rows:,} x {dim}, float32 in")
    for name, taken in found.items():
        print(f"  {name:16} median {taken:7.2f} s   ours is {taken / found['ours']:5.2f} times as fast")
    print(f"  relative difference in RankMe to float64 svdvals: {abs(rankme(z) / exact - 1):.1e}")
    print(f"  the same of float32 svdvals:                      {abs(rankme(torch.linalg.svdvals(z)) / exact - 1):.1e}")
    print(f"  peak memory beyond the matrix: {memory:.0f} MB")


def _extra_memory(rows: int, dim: int) -> float:
    """Megabytes that `spectrum` needs beyond what is held when it starts (Linux: the kernel's own high-water mark)."""
    z = make_embeddings(rows, dim)
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts again at what is held now
    before = _high_water()
    spectrum(z)
    return (_high_water() - before) / 1024


def _high_water() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def stream(rows: int, dim: int, rounds: int) -> None:
    """Many rows in pieces: the accumulator against the bare product of each piece with itself in float64."""
    piece = make_embeddings(PIECE, dim)
    pieces = -(-rows // PIECE)
    total = torch.zeros(dim, dim, dtype=torch.float64)

    def ours() -> None:
        seen = SpectrumAccumulator(dim)
        for _ in range(pieces):
            seen.update(piece)

    def product() -> None:
        for _ in range(pieces):
            block = piece.double()
            total.addmm_(block.T, block)

    found = race({"ours": ours, "product": product}, rounds)
    print(f"\n{pieces * PIECE:,} rows of {dim} in pieces of {PIECE}")
    print(f"  accumulator {found['ours']:7.2f} s, bare matrix product {found['product']:7.2f} s")
    print(f"  the accumulator takes {found['ours'] / found['product']:.2f} of the product's time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rounds", 3), ("threads", os.cpu_count() or 1), ("rows", 30_000), ("stream", 1_000_000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dims", type=int, nargs="+", default=[768, 1536])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.rounds} rounds, {options.threads} thread(s)")
    with threadpool_limits(options.threads):  # NumPy and SciPy have a BLAS of their own
        for dim in options.dims:
            compare(options.rows, dim, options.rounds)
        if options.stream:
            stream(options.stream, options.dims[0], max(1, options.rounds // 2))


if __name__ == "__main__":
    main()
