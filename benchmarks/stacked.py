"""Several small models in one process, stacked by torch.func, against one after the other.

Models that differ in their seed only see the same batches under the same masks: their weights are stacked, and one
vectorised pass (vmap) takes a step of all. Printed is how many times as fast that is as a step of each in turn, on
this device; losses of all arms are compared first. Arms take turns, so that a busy machine hurts all of them, and CPU
times are beside wall times, since others' work moves them less. Where torch cannot vectorise its fused attention, it
loops over the seeds; "stacked, plain" has two matrix products and a softmax instead.

    python benchmarks/stacked.py [--encoder en32-4] [--seeds 4] [--batch 64] [--rounds 15] [--device auto]

One thread on a CPU, since that is what a worker of a sweep has.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from rankscale.config import BANDS, RunConfig
from rankscale.mae import MAE, decay_groups
from rankscale.pretrain import pick_device

Step = Callable[[Tensor, Tensor], Tensor]  # batch, mask noise -> losses (seed,)


def make_models(config: RunConfig, seeds: int, device: str) -> list[MAE]:
    models = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        models.append(MAE.from_config(config).to(device))
    return models


def in_turn(models: list[MAE], config: RunConfig) -> Step:
    """A step of each model, as `pretrain.train_step` takes it."""
    optimizers = [
        torch.optim.AdamW(decay_groups(m, config.weight_decay), lr=config.lr, betas=(0.9, 0.95), fused=True)
        for m in models
    ]

    def step(mel: Tensor, noise: Tensor) -> Tensor:
        losses = []
        for model, optimizer in zip(models, optimizers, strict=True):
            loss = model(mel, noise=noise).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    return step


def stacked(models: list[MAE], config: RunConfig) -> Step:
    """A step of all models at once; every weight has a first dimension more: the seed."""
    weights, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")
    decays = {id(p) for p in decay_groups(skeleton, 1.0)[0]["params"]}
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in skeleton.named_parameters():
        groups[id(parameter) in decays].append(weights[name])
    optimizer = torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": config.weight_decay}, {"params": groups[False], "weight_decay": 0.0}],
        lr=config.lr, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip

    def loss_of(weights: dict, buffers: dict, mel: Tensor, noise: Tensor) -> Tensor:
        return functional_call(skeleton, (weights, buffers), (mel,), {"noise": noise}).loss

    warnings.filterwarnings("ignore", "There is a performance drop.*attention")  # that is what is measured
    losses_of = vmap(loss_of, in_dims=(0, 0, None, None))

    def step(mel: Tensor, noise: Tensor) -> Tensor:
        losses = losses_of(weights, buffers, mel, noise)
        optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # each loss knows only its own weights
        clip(list(weights.values()), config.grad_clip)
        optimizer.step()
        return losses.detach()

    return step


def clip(weights: list[Tensor], most: float) -> None:
    """Gradient clipping for each seed by itself."""
    norm = torch.stack([w.grad.flatten(1).square().sum(1) for w in weights]).sum(0).sqrt()
    scale = (most / (norm + 1e-6)).clamp(max=1.0)
    for w in weights:
        w.grad.mul_(scale.view(-1, *[1] * (w.ndim - 1)))


def with_plain_attention(step: Step) -> Step:
    def plain(mel: Tensor, noise: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return step(mel, noise)

    return plain


def time_step(step: Step, mel: Tensor, noise: Tensor) -> tuple[float, float]:
    """Wall seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    losses = step(mel, noise)
    if not losses.isfinite().all():  # reading them waits for the device
        raise RuntimeError(f"losses became {losses.tolist()}: this is no fair race")
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="en32-4")
    parser.add_argument("--device", default="auto")
    for name, value in (("seeds", 4), ("batch", 64), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)

    config, device = RunConfig(encoder=options.encoder, batch=options.batch), pick_device(options.device)
    models = make_models(config, options.seeds, device)
    arms = {
        "in turn": in_turn(copy.deepcopy(models), config),
        "stacked": stacked(copy.deepcopy(models), config),
        "stacked, plain": with_plain_attention(stacked(copy.deepcopy(models), config)),
    }
    generator = torch.Generator().manual_seed(0)
    mel = (torch.randn(config.batch, BANDS, config.frames, generator=generator) * 10 - 30).to(device)
    noises = [models[0].mask_noise(config.batch, generator) for _ in range(options.rounds + 3)]

    for noise in noises[:3]:  # rounds that are not counted
        first, *others = (arm(mel, noise) for arm in arms.values())
        for losses in others:
            torch.testing.assert_close(losses, first, rtol=1e-3, atol=1e-4)
    times = {name: [] for name in arms}
    for noise in noises[3:]:
        for name, arm in arms.items():
            times[name].append(time_step(arm, mel, noise))

    print(f"{config.encoder}, {options.seeds} seeds, batch {config.batch}, {device}, {options.rounds} rounds")
    medians = {name: [median(each) for each in zip(*pairs, strict=True)] for name, pairs in times.items()}
    for name, (wall, cpu) in medians.items():
        print(f"  {name:15} a step of all seeds: median wall {1e3 * wall:7.1f} ms   CPU {1e3 * cpu:7.1f} ms")
    for name in list(arms)[1:]:
        wall, cpu = (one / other for one, other in zip(medians["in turn"], medians[name], strict=True))
        print(f"{name}: {wall:.2f} times as fast as in turn (CPU time {cpu:.2f})")


if __name__ == "__main__":
    main()
