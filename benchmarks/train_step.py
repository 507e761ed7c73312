"""Training step from waveform to updated weights: ours against the public Dasheng formulation.

en128-12, a batch of 16 clips of 10.08 s, Dasheng's 512 x 8 decoder with 16 heads, and the 64 x 2 decoder
beside it. Arms take turns, so that a busy machine hurts all of them; each has the same optimiser.

    python benchmarks/train_step.py [--rounds 5] [--threads 1] [--batch 16]
"""

from __future__ import annotations

import argparse
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
Step = Callable[[torch.Tensor], float]


def make_step(model: torch.nn.Module, loss_of: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    optimizer = torch.optim.AdamW(decay_groups(model, 0.05), lr=3e-4, fused=True)

    def step(waveform: torch.Tensor) -> float:
        started = time.perf_counter()
        loss = loss_of(waveform)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss = loss.item()
        if not torch.isfinite(torch.tensor(loss)):
            raise RuntimeError(f"the loss became {loss}: this is no fair race")
        return time.perf_counter() - started

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
    for name, value in (("rounds", 5), ("threads", 1), ("batch", 16)):
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

    medians = {name: median(values) for name, values in seconds.items()}
    print(f"median of {options.rounds} rounds, {options.threads} thread(s), en128-12, {options.batch} clips of 10.08 s")
    for name, value in medians.items():
        print(f"  {name:28s} {value * 1000:9.1f} ms   (best {min(seconds[name]) * 1000:.1f})")
    for name in ("512 x 8", "64 x 2"):
        ratio = medians[f"reference, decoder {name}"] / medians[f"ours, decoder {name}"]
        print(f"decoder {name}: ours is {ratio:.2f} times as fast")
    print(
        "our 64 x 2 against the reference's 512 x 8: "
        f"{medians['reference, decoder 512 x 8'] / medians['ours, decoder 64 x 2']:.1f} times as fast"
    )


if __name__ == "__main__":
    main()
