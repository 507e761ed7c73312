"""Training step from waveform to updated weights: ours against the public Dasheng formulation.

en128-12, a batch of 16 clips of 10.08 s, Dasheng's 512 x 8 decoder with 16 heads, and the 64 x 2 decoder
beside it. Arms take turns, so that a busy machine hurts all of them; each has the same optimiser. The ratio
to quote is that of the median wall times; CPU times are beside it, since others' work moves them less.

    python benchmarks/train_step.py [--rounds 5] [--threads N] [--batch 16]

Threads: all cores if nothing is said. With one thread both arms are held up by the same matrix products.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

import torch
from reference_mae import ReferenceMAE

from rankscale.config import HOP
from rankscale.mae import MAE, Encoder, decay_groups
from rankscale.mel import LogMel, mel_stats

FRAMES = 1008  # 10.08 s: 252 tokens
WIDTH, DEPTH, HEADS = 128, 12, 4
Step = Callable[[torch.Tensor], tuple[float, float]]  # wall seconds, CPU seconds


def make_step(model: torch.nn.Module, loss_of: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    optimizer = torch.optim.AdamW(decay_groups(model, 0.05), lr=3e-4, fused=True)

    def step(waveform: torch.Tensor) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        loss = loss_of(waveform)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        if not loss.isfinite():
            raise RuntimeError(f"the loss became {loss.item()}: this is no fair race")
        return seconds

    return step


def make_ours(waveform: torch.Tensor, decoder_width: int, decoder_depth: int, decoder_heads: int) -> Step:
    model = MAE(Encoder(WIDTH, DEPTH, HEADS, target_frames=FRAMES), decoder_width, decoder_depth, decoder_heads)
    front_end, generator = LogMel(), torch.Generator().manual_seed(0)
    model.encoder.set_input_stats(mel_stats([front_end(waveform)]))
    return make_step(model, lambda x: model(front_end(x), generator).loss)


def make_reference(decoder_width: int, decoder_depth: int, decoder_heads: int) -> Step:
    model = ReferenceMAE(
        WIDTH, DEPTH, HEADS, FRAMES // 4, decoder_width, decoder_depth, decoder_heads
    ).train()  # fmt: skip
    return make_step(model, model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rounds", 5), ("threads", os.cpu_count() or 1), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    # One sample short of the next frame: both see exactly 1008 frames.
    waveform = torch.randn(options.batch, FRAMES * HOP - 1) * 0.1
    arms = {}
    for shape in ((512, 8, 16), (64, 2, 2)):
        name = f"{shape[0]} x {shape[1]}"
        arms[f"ours, decoder {name}"] = make_ours(waveform, *shape)
        arms[f"reference, decoder {name}"] = make_reference(*shape)

    for step in arms.values():  # a round that is not counted
        step(waveform)
    seconds = {name: [] for name in arms}
    for _ in range(options.rounds):
        for name, step in arms.items():
            seconds[name].append(step(waveform))

    print(f"{options.rounds} rounds, {options.threads} thread(s), en128-12, {options.batch} clips of 10.08 s")
    wall = {name: median(value for value, _ in pairs) for name, pairs in seconds.items()}
    cpu = {name: median(value for _, value in pairs) for name, pairs in seconds.items()}
    for name in arms:
        print(f"  {name:28s} median wall {wall[name]:7.3f} s   CPU {cpu[name]:7.3f} s")
    for shape in ("512 x 8", "64 x 2"):
        ours, reference = f"ours, decoder {shape}", f"reference, decoder {shape}"
        ratio, cpu_ratio = wall[reference] / wall[ours], cpu[reference] / cpu[ours]
        print(f"decoder {shape}: ours is {ratio:.2f} times as fast (CPU time {cpu_ratio:.2f})")
    ratio = wall["reference, decoder 512 x 8"] / wall["ours, decoder 64 x 2"]
    print(f"our 64 x 2 against the reference's 512 x 8: {ratio:.1f} times as fast")


if __name__ == "__main__":
    main()
