"""What it will cost: wall times from records of the same shape, else from a few steps taken now."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from rankscale.budget import budget
from rankscale.config import BANDS, RunConfig, is_synthetic
from rankscale.corpus import SHARD, synth_folder, synth_mels
from rankscale.experiment import missing_tasks
from rankscale.mae import MAE, decay_groups
from rankscale.pretrain import (
    HISTORY_CLIPS,
    LOSS_CLIPS,
    Learner,
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
from rankscale.sweep.executors import Crew, one_worker
from rankscale.sweep.shelves import Shelves
from rankscale.sweep.spec import Planned

TIMING_S, TIMING_STEPS = 2.0, 20  # at most so many steps for each shape that no record tells the speed of
TIMING_CLIPS = 32  # synthetic clips that are made to see how fast that goes (a shard of them on a GPU)
TASK_CLIP_S = 0.0032  # a clip of a synthetic task on one core, log-Mel included: an assumption
PROBE_S = 3.0  # a task with 1500 training clips at up to 512 dimensions, all probes: an assumption
SHAPE = ("encoder", "heads", "mlp_ratio", "patch_frames", "decoder_width", "decoder_depth", "mask_ratio", "mask_group",
         "clip_s", "batch", "precision")  # fmt: skip
MEASURE = ("encoder", "pool", "patch_frames", "clip_s", "rank_clips", "tasks", "task_clips", "test_folds")
TIMED, ASSUMED = "timed now", "assumed"
Speeds = dict[tuple, tuple[float, float, str]]  # shape -> FLOP of a step, its seconds, what they are known from


@dataclass(frozen=True)
class Expected:
    """Wall time of a run on one worker (seconds), and what each part is known from. start_s: until it trains."""

    train_s: float
    train_from: str
    measure_s: float
    measure_from: str
    start_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.start_s + self.train_s + self.measure_s


@dataclass(frozen=True)
class Rates:
    """How fast this device is at the runs of a sweep that have no record.

    speeds: of training, by shape. flop_s: of training, over all shapes. measure: hash -> seconds to rank and probe,
    and what they are known from. synth_rate: seconds of sound that a process makes in a second, log-Mel included.
    task_clips: of synthetic tasks, that are not there yet. start_s: of a worker's process.
    """

    speeds: Speeds
    flop_s: float
    measure: Mapping[str, tuple[float, str]]
    synth_rate: float
    task_clips: int
    start_s: float = 0.0

    def expect(self, planned: Sequence[Planned]) -> dict[str, Expected]:
        """Expected times, by hash, of the runs that have no record.

        Runs of schedule "branch" are charged for what is left of them after the longest shorter one.
        """
        new_steps = _new_steps(planned)
        rest = [each.config for each in planned if each.config.hash in self.measure]
        return {
            config.hash: Expected(
                *self._train_time(config, new_steps[config.hash]), *self.measure[config.hash], self.start_s
            )
            for config in rest
        }

    def _train_time(self, config: RunConfig, steps: int) -> tuple[float, str]:
        """Seconds of so many steps of a run and of its history, and what they are known from."""
        evaluations = len(history_steps(config)) * _evaluation_flop(config) / self.flop_s
        if not config.steps:
            return evaluations, ""
        _, step_s, source = self.speeds[key_of(config, SHAPE)]
        return steps * step_s + (evaluations if source == TIMED else 0.0), source  # recorded times hold them


def measure_rates(planned: Sequence[Planned], shelves: Shelves, device: str = "auto", compiled: bool = False) -> Rates:
    """From records of the same shape on this kind of device, else from a few steps taken now, in a process of its own.

    compiled: whether runs go through torch.compile. Steps that are taken now do not: it would take too long to wait.
    """
    device = pick_device(device)
    rest = [each.config for each in planned if shelves.find(each.config) is None]
    tasks = {config.hash: _count_tasks(config) for config in rest}  # first: a folder that is not there shows at once
    started = time.monotonic()
    with one_worker(device) as helper:
        name = device_name(device) if device == "cpu" else helper.submit(device_name, device).result()
        start_s = 0.0 if device == "cpu" else time.monotonic() - started  # processes on a CPU are forked, in no time
        known = [record for record in shelves.all() if record.provenance.device == name]
        alike = [r for r in known if r.provenance.processes == 1 and r.provenance.compiled == compiled]
        speeds = _step_times(rest, alike, lambda config: helper.submit(time_step, config, device).result())
        silent = next((config for config in rest if missing_audio_s([config], shelves.places.cache)), None)
        synth_rate = helper.submit(time_synth, silent, device).result() if silent else math.inf
    return Rates(
        speeds,
        statistics.median([flop / step_s for flop, step_s, _ in speeds.values()] or [1e10]),
        {config.hash: _measure_time(config, tasks[config.hash], known) for config in rest},
        synth_rate,
        _count_task_clips(rest, shelves.places.cache),
        start_s,
    )


@dataclass(frozen=True)
class Estimate:
    """What is left of a sweep, in wall seconds. runs: by hash; audio_s: synthetic sound that the corpora still need."""

    runs: Mapping[str, Expected]
    audio_s: float
    rates: Rates
    crew: Crew

    @classmethod
    def of(cls, planned: Sequence[Planned], rates: Rates, cache: Path, crew: Crew) -> Estimate:
        runs = rates.expect(planned)
        rest = [each.config for each in planned if each.config.hash in runs]
        return cls(runs, missing_audio_s(rest, cache), rates, crew)

    @property
    def prepare_s(self) -> float:
        """Making the clips that runs share."""
        return (self.audio_s / self.rates.synth_rate + self.rates.task_clips * TASK_CLIP_S) / self.crew.makers

    @property
    def work_s(self) -> float:
        """Making the runs. Several workers to a GPU probe side by side, but do not train faster than one."""
        times = self.runs.values()
        shared = sum(each.total_s for each in times) / self.crew.slots
        trained = sum(each.train_s for each in times) / self.crew.gpus if self.crew.gpus else 0.0
        return max([shared, trained, *(each.total_s for each in times)])

    @property
    def total_s(self) -> float:
        return self.prepare_s + self.work_s


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
    return PROBE_S * n_task * size * max(1.0, dimensions / 512), ASSUMED


def _count_tasks(config: RunConfig) -> int:
    folders = [entry for entry in config.tasks if not is_synthetic(entry)]
    n_synthetic = sum(len(FROZEN) if entry == "synth" else 1 for entry in config.tasks if is_synthetic(entry))
    return n_synthetic + sum(len(find_tasks(folder)) for folder in folders)


def time_step(config: RunConfig, device: str) -> float:
    """Seconds of one training step of this shape on noise: the median of a few after two others."""
    device = pick_device(device)
    torch.manual_seed(0)
    model = MAE.from_config(config).to(device)
    learner = Learner.of(model, torch.optim.AdamW(decay_groups(model, config.weight_decay), lr=config.lr, fused=True))
    state, corpus = TrainState(), _Noise(torch.randn(config.batch, BANDS, config.frames).half())
    train_step(config, corpus, learner, state)
    train_step(config, corpus, learner, state)
    times, end = [], time.monotonic() + TIMING_S
    while not times or (len(times) < TIMING_STEPS and time.monotonic() < end):
        started = time.monotonic()
        train_step(config, corpus, learner, state)  # reads the loss back, which waits for the device
        times.append(time.monotonic() - started)
    return statistics.median(times)


@dataclass(frozen=True)
class _Noise:
    """Stands in for a corpus where only time counts."""

    mel: torch.Tensor

    def batch(self, step: int, size: int, seed: int, part: slice, device: torch.device) -> torch.Tensor:
        return self.mel.to(device).float()


def time_synth(config: RunConfig, device: str) -> float:
    """Seconds of sound that this process makes in a second, log-Mel included, once it has made some."""
    n = TIMING_CLIPS if device == "cpu" else SHARD
    make = partial(synth_mels, 0, n, config.corpus_seed, config.clip_s, config.frames, device)
    make()
    started = time.monotonic()
    make()
    return n * config.clip_s / (time.monotonic() - started)


def _count_task_clips(configs: Iterable[RunConfig], cache: Path) -> int:
    """Clips of synthetic tasks that these runs still need."""
    alike = {(config.tasks, config.task_clips): config for config in configs}.values()
    missing = {(name, config.task_clips) for config in alike for name in missing_tasks(config, cache)}
    return sum(len(SIZES) * size if size else sum(SIZES.values()) for _, size in missing)


def missing_audio_s(configs: Iterable[RunConfig], cache: Path) -> float:
    """Seconds of synthetic audio that the corpora of these runs still need."""
    shards: dict[tuple[Path, float], tuple[int, int]] = {}
    for config in configs:
        share = 1.0 if len(config.corpus) == 1 else 1 - config.real_share
        wanted = [(entry, share * config.clips, share * config.rank_clips) for entry in config.corpus]
        wanted += [(entry, 0, config.rank_clips) for entry in config.rank_on]
        for entry, *counts in filter(lambda each: is_synthetic(each[0]), wanted):
            key = (synth_folder(entry, config, cache), config.clip_s)
            train, heldout = shards.get(key, (0, 0))
            n_train, n_heldout = (math.ceil(n / SHARD) for n in counts)
            shards[key] = (max(train, n_train), max(heldout, n_heldout))
    missing = {key: max(0, sum(n) - len(list(key[0].glob("*.npy")))) for key, n in shards.items()}
    return sum(n * SHARD * clip_s for (_, clip_s), n in missing.items())
