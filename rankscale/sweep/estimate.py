"""What it will cost: wall times from records of the same shape, else from a few steps taken now."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rankscale.budget import budget
from rankscale.config import BANDS, RunConfig
from rankscale.corpus import SHARD, synth_folder
from rankscale.mae import MAE, decay_groups
from rankscale.pretrain import (
    HISTORY_CLIPS,
    LOSS_CLIPS,
    TrainState,
    history_steps,
    pick_device,
    train_step,
    trunk_end,
    trunk_hash,
)  # fmt: skip
from rankscale.probe import PROBES
from rankscale.records import RunRecord, device_name
from rankscale.sound.synthetic_tasks import FROZEN, SIZES
from rankscale.sound.tasks import find_tasks
from rankscale.sweep.executors import one_worker
from rankscale.sweep.shelves import Shelves
from rankscale.sweep.spec import Planned

TIMING_S, TIMING_STEPS = 2.0, 20  # at most so many steps for each shape that no record tells the speed of
SYNTH_RATE = 250.0  # seconds of sound that one core makes in a second, log-Mel included (LOG.md): an assumption
PROBE_S = 8.0  # a task with 1500 training clips at 64 dimensions, all probes: an assumption
SHAPE = ("encoder", "heads", "mlp_ratio", "patch_frames", "decoder_width", "decoder_depth", "mask_ratio", "mask_group",
         "clip_s", "batch", "precision")  # fmt: skip
MEASURE = ("encoder", "pool", "patch_frames", "clip_s", "rank_clips", "tasks", "task_clips", "test_folds")
TIMED, ASSUMED = "timed now", "assumed"
Speeds = dict[tuple, tuple[float, float, str]]  # shape -> FLOP of a step, its seconds, what they are known from


@dataclass(frozen=True)
class Expected:
    """Wall time of a run on one worker (seconds), and what each part is known from."""

    train_s: float
    train_from: str
    measure_s: float
    measure_from: str

    @property
    def total_s(self) -> float:
        return self.train_s + self.measure_s


def expect(planned: Sequence[Planned], shelves: Shelves, device: str = "auto") -> dict[str, Expected]:
    """Expected times, by hash, of the runs that have no record.

    From records of the same shape on this kind of device, else from a few steps taken now. Runs of schedule "branch"
    are charged for what is left of them after the longest shorter one.
    """
    device = pick_device(device)
    rest = [each.config for each in planned if shelves.find(each.config) is None]
    tasks = {config.hash: _count_tasks(config) for config in rest}  # first: a folder that is not there shows at once
    with one_worker(device) as helper:
        name = device_name(device) if device == "cpu" else helper.submit(device_name, device).result()
        known = [record for record in shelves.all() if record.provenance.device == name]
        speeds = _step_times(rest, known, lambda config: helper.submit(time_step, config, device).result())
    flop_s = statistics.median([flop / step_s for flop, step_s, _ in speeds.values()] or [1e10])
    new_steps = _new_steps(planned)
    measure = {config.hash: _measure_time(config, tasks[config.hash], known) for config in rest}
    return {
        config.hash: Expected(*_train_time(config, new_steps[config.hash], speeds, flop_s), *measure[config.hash])
        for config in rest
    }


def _train_time(config: RunConfig, steps: int, speeds: Speeds, flop_s: float) -> tuple[float, str]:
    """Seconds of so many steps of a run and of its history, and what they are known from."""
    evaluations = len(history_steps(config)) * _evaluation_flop(config) / flop_s
    if not config.steps:
        return evaluations, ""
    _, step_s, source = speeds[key_of(config, SHAPE)]
    return steps * step_s + (evaluations if source == TIMED else 0.0), source  # recorded times hold them


def _step_times(
    configs: Sequence[RunConfig], known: Sequence[RunRecord], time_now: Callable[[RunConfig], float]
) -> Speeds:
    recorded: dict[tuple, list[float]] = {}
    for record in known:
        if record.config.steps and record.status == "ok":
            step_s = record.provenance.train_s / record.config.steps
            recorded.setdefault(key_of(record.config, SHAPE), []).append(step_s)
    times = {}
    for config in configs:
        key = key_of(config, SHAPE)
        if config.steps and key not in times:
            found = recorded.get(key)
            step_s = statistics.median(found) if found else time_now(config)
            times[key] = (budget(config).train_flop / config.steps, step_s, "records" if found else TIMED)
    return times


def key_of(config: RunConfig, fields: Iterable[str]) -> tuple:
    """Some fields of a run, folders by name only: runs that agree in them share what depends on nothing else."""
    portable = config.portable()
    return tuple(getattr(portable, name) for name in fields)


def _evaluation_flop(config: RunConfig) -> float:
    """FLOP of the held-out loss and RankMe at one point of a run's history."""
    cost = budget(config.replace(steps=1, batch=1))
    clips = min(config.rank_clips, HISTORY_CLIPS)
    return clips * cost.embed_flop + min(config.rank_clips, LOSS_CLIPS) * cost.train_flop / 3


def _new_steps(planned: Sequence[Planned]) -> dict[str, int]:
    """Steps that a run really takes: one of schedule "branch" goes on where an earlier one began its decay."""
    trunks: dict[str, set[int]] = {}
    steps = {}
    for config in (each.config for each in planned):
        steps[config.hash] = config.steps
        if config.schedule == "branch" and config.steps:
            ends = trunks.setdefault(trunk_hash(config), {0})
            steps[config.hash] -= max(end for end in ends | {0} if end <= trunk_end(config))
            ends.add(trunk_end(config))
    return steps


def _measure_time(config: RunConfig, n_task: int, known: Sequence[RunRecord]) -> tuple[float, str]:
    """Seconds to rank and probe a finished encoder, and what they are known from."""
    alike = [
        record for record in known
        if (record.config.steps == 0) == (config.steps == 0) and set(record.scores) == set(PROBES)
    ]  # fmt: skip
    for fields, source in ((MEASURE, "records"), (MEASURE[1:], "records of other encoders")):
        found = [r.provenance.measure_s for r in alike if key_of(r.config, fields) == key_of(config, fields)]
        if found:
            return statistics.median(found), source
    dimensions = config.width * (2 if config.pool == "meanstd" else 1)
    size = (config.task_clips or SIZES["train"]) / SIZES["train"]
    return PROBE_S * n_task * size * max(0.5, dimensions / 64), ASSUMED


def _count_tasks(config: RunConfig) -> int:
    folders = [entry for entry in config.tasks if not entry.startswith("synth")]
    n_synthetic = sum(len(FROZEN) if entry == "synth" else 1 for entry in config.tasks if entry.startswith("synth"))
    return n_synthetic + sum(len(find_tasks(folder)) for folder in folders)


def time_step(config: RunConfig, device: str) -> float:
    """Seconds of one training step of this shape on noise: the median of a few after two others."""
    device = pick_device(device)
    torch.manual_seed(0)
    model = MAE.from_config(config).to(device)
    optimizer = torch.optim.AdamW(decay_groups(model, config.weight_decay), lr=config.lr, fused=True)
    state, corpus = TrainState(), _Noise(torch.randn(config.batch, BANDS, config.frames))
    train_step(config, corpus, model, optimizer, state)
    train_step(config, corpus, model, optimizer, state)
    times, end = [], time.monotonic() + TIMING_S
    while not times or (len(times) < TIMING_STEPS and time.monotonic() < end):
        started = time.monotonic()
        train_step(config, corpus, model, optimizer, state)  # reads the loss back, which waits for the device
        times.append(time.monotonic() - started)
    return statistics.median(times)


@dataclass(frozen=True)
class _Noise:
    """Stands in for a corpus where only time counts."""

    mel: torch.Tensor

    def batch(self, step: int, size: int, seed: int) -> torch.Tensor:
        return self.mel


def missing_audio_s(configs: Iterable[RunConfig], cache: Path) -> float:
    """Seconds of synthetic audio that the corpora of these runs still need (those of tasks not counted)."""
    shards: dict[tuple[Path, float], tuple[int, int]] = {}
    for config in configs:
        if "synth" in config.corpus:
            share = 1.0 if len(config.corpus) == 1 else 1 - config.real_share
            key = (synth_folder(config, cache), config.clip_s)
            train, heldout = shards.get(key, (0, 0))
            n_train, n_heldout = (math.ceil(share * n / SHARD) for n in (config.clips, config.rank_clips))
            shards[key] = (max(train, n_train), max(heldout, n_heldout))
    missing = {key: max(0, sum(n) - len(list(key[0].glob("*.npy")))) for key, n in shards.items()}
    return sum(n * SHARD * clip_s for (_, clip_s), n in missing.items())
