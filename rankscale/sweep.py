"""Many runs from one short text: what to run, what is there already, what it will cost; then run it.

A sweep keeps nothing in its head. A record says that a run is done, a lock that some process is at it, a checkpoint
where it goes on. So a sweep can be killed at any moment and started again, and two can work on one folder. Each run
has a process of its own: memory is given back, and one that dies takes nothing with it.
"""

from __future__ import annotations

import difflib
import itertools
import math
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from threadpoolctl import threadpool_limits

from rankscale.budget import budget
from rankscale.config import BANDS, RunConfig, profile
from rankscale.corpus import SHARD, synth_folder
from rankscale.experiment import Places, prepare, run, write_failure
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
from rankscale.process import environment
from rankscale.records import RunRecord, device_name, publish, read_record, read_records, record_path, write_record
from rankscale.sound.synthetic_tasks import FROZEN, SIZES
from rankscale.sound.tasks import find_tasks
from rankscale.storage import hold_lock, is_locked

PUBLISHED = Path("data/runs")
# Of a worker: one thread, and progress bars that leave a line in the log every ten seconds.
WORKER = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")} | {"TQDM_MININTERVAL": "10"}
RESULTS = ("ok", "diverged", "collapsed")  # a run that ended in one of these has told us something
POLITE_S = 10.0  # a worker that is asked to stop has so long
TIMING_S, TIMING_STEPS = 2.0, 20  # at most so many steps for each shape that no record tells the speed of
SYNTH_RATE = 250.0  # seconds of sound that one core makes in a second, log-Mel included (LOG.md): an assumption
PROBE_S = 8.0  # a task with 1500 training clips at 64 dimensions, all probes: an assumption

# --- what to run ------------------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Axis = Annotated[list[Any], Field(min_length=1)]


class Block(_Part):
    """The runs of one question: each of `runs`, at every combination of `grid`, with every seed."""

    seeds: Annotated[list[int], Field(min_length=1)] | None = None
    grid: dict[str, Axis] = {}
    runs: Annotated[list[dict[str, Any]], Field(min_length=1)] = [{}]

    @model_validator(mode="after")
    def _each_field_is_set_once(self) -> Block:
        listed = {name for run in self.runs for name in run}
        for name in self.grid.keys() & listed:
            raise ValueError(f"{name} is set in grid and in runs")
        for where, names in (("grid", self.grid.keys()), ("runs", listed)):
            if self.seeds and "seed" in names:
                raise ValueError(f"seed is set in {where} and in seeds")
        return self

    def settings(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The place of the seed in `seeds`, and the fields that a run of this block sets."""
        axes = [[(name, value) for value in values] for name, values in self.grid.items()]
        for k, seed in enumerate(self.seeds or [None]):
            for changes, point in itertools.product(self.runs, itertools.product(*axes)):
                yield k, changes | dict(point) | ({} if seed is None else {"seed": seed})


class Spec(_Part):
    """A sweep as it is written: a profile, settings that all runs share, and named blocks.

    attempt: runs that failed are tried again, under a hash of their own, up to this number.
    """

    profile: Literal["smoke", "small", "full"] = "small"
    attempt: Annotated[int, Field(ge=0)] = 0
    shared: dict[str, Any] = {}
    blocks: Annotated[dict[str, Block], Field(min_length=1)]


@dataclass(frozen=True)
class Planned:
    """A run and the blocks that want it. An untrained encoder is a run too, wanted wherever it is a floor."""

    config: RunConfig
    blocks: tuple[str, ...]

    @property
    def floor(self) -> RunConfig | None:
        """The run that must be there first, if any."""
        untrained = self.config.untrained()
        return None if untrained == self.config else untrained


def read_spec(path: Path) -> Spec:
    """Read a sweep from YAML. Raises ValueError that names the file and the line, or the block and the field."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
        return Spec.model_validate(content)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{path}, line {line}: {error.problem}") from None
    except ValidationError as error:
        raise ValueError("\n".join(f"{path}: {_explain(each)}" for each in error.errors())) from None


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is a mistake: the plain loader drops the first one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for k, (key, _) in enumerate(node.value):
            if key.value in keys[:k]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands here twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _explain(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors in plain words: where, and what is allowed there."""
    *place, last = [str(part) for part in error["loc"]] or [""]
    if error["type"] == "extra_forbidden":
        model = Block if place else Spec
        return f"{_place(place)}unknown entry {last!r}; there are {', '.join(model.model_fields)}"
    if error["type"] == "missing":
        return f"{_place(place)}{last!r} is missing"
    if error["type"] == "value_error":
        return _place([*place, last]) + error["msg"].removeprefix("Value error, ")
    return f"{_place([*place, last])}{error['msg']} (here: {error['input']!r})"


def _place(loc: Sequence[str]) -> str:
    """("blocks", "width", "grid", "lr") -> "block width, grid, lr: "."""
    names = [f"block {loc[1]}", *loc[2:]] if len(loc) > 1 and loc[0] == "blocks" else list(loc)
    return ", ".join(name for name in names if name) + ": " if any(names) else ""


def plan(spec: Spec, failed: Callable[[RunConfig], bool] = lambda config: False) -> list[Planned]:
    """The runs of a sweep, each once, in the order in which they are started.

    First seeds of all blocks come first, then second seeds: a sweep that is cut short has every block, with fewer
    seeds. Within that, blocks as they are written, and in a block the cheapest runs first: mistakes show after
    seconds, and runs of schedule "branch" go on from the shorter ones. An untrained encoder comes before the first
    run that needs it as its floor. failed: whether a configuration has a record of failure, see `Spec.attempt`.
    Raises ValueError that names block and field.
    """
    wanted = [
        (k, position, name, configure(spec, name, settings))
        for position, (name, block) in enumerate(spec.blocks.items())
        for k, settings in block.settings()
    ]
    wanted.sort(key=lambda each: (*each[:2], budget(each[3]).train_flop))
    configs: dict[str, RunConfig] = {}
    blocks: dict[str, list[str]] = {}
    for *_, name, config in wanted:
        current = _next_attempt(config, spec.attempt, failed)
        for each in (current.untrained(), current):
            configs.setdefault(each.hash, each)
            blocks.setdefault(each.hash, []).append(name)
    return [Planned(config, tuple(dict.fromkeys(blocks[key]))) for key, config in configs.items()]


def configure(spec: Spec, block: str, settings: Mapping[str, Any]) -> RunConfig:
    """One run of a block; of no steps, it is the floor of others. Raises ValueError that names block and field."""
    _check_names("shared", spec.shared)
    _check_names(f"block {block}", settings)
    try:
        config = profile(spec.profile, **(spec.shared | dict(settings)))
        return config if config.steps else config.untrained()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"][:1]))
        where = f"block {block}" if name in settings or not name else "shared"
        message = first["msg"].removeprefix("Value error, ")
        described = f"{name} = {first['input']!r}" if name else f"the run with {dict(settings)}"
        raise ValueError(f"{where}: {described}: {message}") from None


def _check_names(where: str, settings: Mapping[str, Any]) -> None:
    known = list(RunConfig.model_fields)
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (do you mean {close[0]}?)" if close else ""
            raise ValueError(f"{where}: unknown field {name!r}{hint}; the fields of a run are {', '.join(known)}")


def _next_attempt(config: RunConfig, limit: int, failed: Callable[[RunConfig], bool]) -> RunConfig:
    """The first attempt at a run that has not failed, nor its floor; the last one that is allowed, if all have."""
    while config.attempt < limit and (failed(config) or failed(config.untrained())):
        config = config.replace(attempt=config.attempt + 1)
    return config


# --- what is there already --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shelves:
    """Where records of a sweep may be: among those of this folder, and among the published ones."""

    places: Places
    published: Path = PUBLISHED

    def find(self, config: RunConfig) -> RunRecord | None:
        """The record of a configuration. Raises ValueError where it is damaged."""
        paths = (record_path(folder, config) for folder in (self.places.records, self.published))
        found = next((path for path in paths if path.exists()), None)
        return read_record(found) if found else None

    def failed(self, config: RunConfig) -> bool:
        record = self.find(config)
        return record is not None and record.status == "failed"

    def state(self, config: RunConfig) -> str:
        """ "ok", "diverged", "collapsed", "failed" by its record; "running", "interrupted" or "to do" without one."""
        if record := self.find(config):
            return record.status
        if is_locked(self.places.lock(config)):
            return "running"
        return "interrupted" if (self.places.work(config) / "checkpoint.pt").exists() else "to do"

    def all(self) -> list[RunRecord]:
        return [record for folder in (self.places.records, self.published) for record in read_records(folder)]


# --- what it will cost ------------------------------------------------------------------------------------


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
    with _helper(device) as helper:
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
    _, step_s, source = speeds[_key(config, SHAPE)]
    return steps * step_s + (evaluations if source == TIMED else 0.0), source  # recorded times hold them


def _step_times(
    configs: Sequence[RunConfig], known: Sequence[RunRecord], time_now: Callable[[RunConfig], float]
) -> Speeds:
    recorded: dict[tuple, list[float]] = {}
    for record in known:
        if record.config.steps and record.status == "ok":
            step_s = record.provenance.train_s / record.config.steps
            recorded.setdefault(_key(record.config, SHAPE), []).append(step_s)
    times = {}
    for config in configs:
        key = _key(config, SHAPE)
        if config.steps and key not in times:
            found = recorded.get(key)
            step_s = statistics.median(found) if found else time_now(config)
            times[key] = (budget(config).train_flop / config.steps, step_s, "records" if found else TIMED)
    return times


def _key(config: RunConfig, fields: Iterable[str]) -> tuple:
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
        found = [r.provenance.measure_s for r in alike if _key(r.config, fields) == _key(config, fields)]
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


# --- running them -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What every run of a sweep is made with."""

    places: Places
    device: str = "auto"
    save_every_s: float = 60.0
    folder: Path = field(default_factory=Path.cwd)  # that folders of audio are named from

    def log(self, config: RunConfig) -> Path:
        return self.places.work(config) / "log.txt"

    def make(self, config: RunConfig) -> None:
        """Make a run; what it raises becomes a record of failure."""
        started = time.monotonic()
        os.chdir(self.folder)
        try:
            run(config, self.places, self.device, 1, progress=True, save_every_s=self.save_every_s)
        except Exception as error:
            traceback.print_exc()
            write_failure(config, self.places, self.device, error, time.monotonic() - started)


class Executor(Protocol):
    """Where runs are made. `slots`: how many at once."""

    slots: int

    def start(self, config: RunConfig) -> None:
        """Begin a run; called only while a slot is free."""

    def ended(self, timeout_s: float) -> list[tuple[str, str]]:
        """Hash of each run that ended since the last call, and how, in words; waits for one at most so long."""

    def stop(self) -> None:
        """Stop what is running."""


class InProcess:
    """Runs made one after another in this process: for debuggers, and to compare with."""

    slots = 1

    def __init__(self, job: Job):
        self._job, self._done = job, []

    def start(self, config: RunConfig) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with threadpool_limits(1):
                self._job.make(config)
        finally:
            torch.set_num_threads(threads)
        self._done.append((config.hash, "ended"))

    def ended(self, timeout_s: float) -> list[tuple[str, str]]:
        done, self._done = self._done, []
        return done

    def stop(self) -> None:
        pass


class Processes:
    """A process of one thread for each run, `slots` at once, with a GPU each where there are any.

    gpus: as CUDA_VISIBLE_DEVICES names them; none on a CPU.
    """

    def __init__(self, job: Job, slots: int, gpus: Sequence[str] = ()):
        self.slots = slots
        self._job = job
        self._free = [gpus[k % len(gpus)] if gpus else None for k in range(slots)][::-1]
        self._running: dict[multiprocessing.process.BaseProcess, str | None] = {}

    def start(self, config: RunConfig) -> None:
        gpu = self._free.pop()
        context = _context(self._job.device)
        process = context.Process(target=_work, args=(config, self._job), name=config.hash, daemon=True)
        with environment(WORKER | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})):
            process.start()
        self._running[process] = gpu

    def ended(self, timeout_s: float) -> list[tuple[str, str]]:
        wait_for_any([process.sentinel for process in self._running], timeout_s)
        done = [process for process in self._running if process.exitcode is not None]
        for process in done:
            self._free.append(self._running.pop(process))
        return [(process.name, _how_it_ended(process.exitcode)) for process in done]

    def stop(self) -> None:
        for process in self._running:
            process.terminate()
        deadline = time.monotonic() + POLITE_S
        for process in self._running:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()


class RayCluster:
    """Runs on a Ray cluster, one a CPU, or one a GPU where it has some; its machines share the folders of the runs.

    address: of the cluster; without one, a cluster of `slots` workers on this machine. Needs the extra `ray`.
    """

    def __init__(self, job: Job, slots: int, address: str | None = None):
        try:
            import ray
        except ImportError:
            raise ValueError('--executor ray needs Ray: pip install "rankscale[ray]"') from None
        self._ray, self._job = ray, job
        ray.init(
            address or "local", num_cpus=None if address else slots, include_dashboard=None if address else False,
            log_to_driver=False, logging_level="error", runtime_env={"env_vars": WORKER},
        )  # fmt: skip
        has = ray.cluster_resources()
        n_gpu = 0 if job.device == "cpu" else int(has.get("GPU", 0))
        self.slots = (n_gpu or int(has["CPU"])) if address else slots
        # A process a run, as without Ray; one that dies is reported, and gone on with by the next sweep.
        self._make = ray.remote(num_cpus=1, num_gpus=int(n_gpu > 0), max_calls=1, max_retries=0)(_make_alone)
        self._running: dict[Any, str] = {}

    def start(self, config: RunConfig) -> None:
        self._running[self._make.remote(config, self._job)] = config.hash

    def ended(self, timeout_s: float) -> list[tuple[str, str]]:
        done, _ = self._ray.wait(list(self._running), timeout=timeout_s)
        return [(self._running.pop(each), self._how_it_ended(each)) for each in done]

    def _how_it_ended(self, task: Any) -> str:
        try:
            self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            return f"its Ray worker died ({type(error).__name__})"
        return "its Ray worker ended"

    def stop(self) -> None:
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._ray.shutdown()


def _context(device: str) -> multiprocessing.context.BaseContext:
    """How workers are started: forked from a clean server that has imported the package, in milliseconds.

    Where there is CUDA, from nothing: a fork of a process that has so much as asked for it cannot use it.
    """
    if pick_device(device) != "cpu":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rankscale.sweep", "torch._dynamo"])  # the first optimiser imports the latter
    return context


@contextmanager
def _helper(device: str) -> Iterator[ProcessPoolExecutor]:
    """One process like a run's, for what this one should not do: start CUDA, or time a step with many threads."""
    with environment(WORKER), ProcessPoolExecutor(1, _context(device), torch.set_num_threads, (1,)) as pool:
        yield pool


def _work(config: RunConfig, job: Job) -> None:
    """The life of a process: one run, and an end when the sweep ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the sweep decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    _make_alone(config, job)


def _make_alone(config: RunConfig, job: Job) -> None:
    """One run in a process that has nothing else to do: one thread, its output in the run's log."""
    torch.set_num_threads(1)
    _write_output_to(job.log(config))
    if is_locked(job.places.lock(config)):
        print("another process is at this run")
        return
    job.make(config)


def _end_with_the_sweep() -> None:
    """A worker without a sweep would hold its lock and its GPU, and nobody would see it."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _write_output_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    print(f"--- {datetime.now():%Y-%m-%d %H:%M:%S}, process {os.getpid()}", flush=True)


def _how_it_ended(exitcode: int) -> str:
    if exitcode >= 0:
        return f"its process ended with code {exitcode}"
    killed = " (out of memory?)" if exitcode == -signal.SIGKILL else ""
    return f"its process was ended by {signal.Signals(-exitcode).name}{killed}"


def visible_gpus(device: str) -> list[str]:
    """The GPUs that runs may use, as CUDA_VISIBLE_DEVICES names them; none on a CPU."""
    if not pick_device(device).startswith("cuda"):
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(k) for k in range(torch.cuda.device_count())]


@dataclass
class Sweep:
    """A plan being worked through. `outcomes`: hash -> how it stands with the runs that are not waiting or running.

    Outcomes are the status of a record; "interrupted" for a run whose process died, which the next sweep goes on
    with; "blocked" for one whose untrained encoder failed or was interrupted.
    """

    planned: Sequence[Planned]
    shelves: Shelves
    job: Job
    expected: Mapping[str, Expected]
    say: Callable[[str], None] = print
    outcomes: dict[str, str] = field(default_factory=dict)
    waiting: list[Planned] = field(default_factory=list)
    running: dict[str, tuple[Planned, float]] = field(default_factory=dict)  # with the time of its start
    slots: int = 1
    worked_s: float = 0.0  # by runs that have ended
    foreseen_s: float = 0.0  # of these runs

    def __post_init__(self) -> None:
        for each in self.planned:
            if record := self.shelves.find(each.config):
                self.outcomes[each.config.hash] = record.status
            else:
                self.waiting.append(each)

    def finish(self, make_executor: Callable[[], Executor], workers: int) -> bool:
        """Prepare and work; False if Ctrl-C came before the end."""
        try:
            prepare_all([each.config for each in self.waiting], self.shelves.places.cache, workers)
            if self.waiting:
                self.work(make_executor())
        except KeyboardInterrupt:
            self.say("Stopped. What is done is kept, and the same command goes on from the last checkpoints.")
            return False
        return True

    def work(self, executor: Executor) -> None:
        """Make every run that has no record. KeyboardInterrupt stops the workers and is raised again."""
        self.slots = executor.slots
        self._fetch_floors()
        try:
            while self.waiting or self.running:
                self._start_ready(executor)
                for key, how in executor.ended(1.0) if self.running else []:
                    self._note_end(key, how)
                if self.waiting and not self.running:
                    time.sleep(0.5)  # all that is left is being made by another sweep
        finally:
            executor.stop()

    def _fetch_floors(self) -> None:
        """Floors that have been published are put where `experiment.run` looks for them."""
        for floor in (each.floor for each in self.waiting if each.floor):
            record = self.shelves.find(floor)
            if record:
                write_record(record, self.shelves.places.records)

    def _start_ready(self, executor: Executor) -> None:
        for each in list(self.waiting):
            if len(self.running) == executor.slots:
                return
            config = each.config
            floor = self.outcomes.get(each.floor.hash) if each.floor else "ok"
            if floor in ("failed", "interrupted", "blocked"):
                self.waiting.remove(each)
                self._end(each, "blocked", f"its untrained encoder {floor}")
            elif record := self.shelves.find(config):
                self.waiting.remove(each)
                self._end(each, record.status, "made by another sweep", record)
            elif floor and not is_locked(self.job.places.lock(config)):
                self.waiting.remove(each)
                self.running[config.hash] = (each, time.monotonic())
                executor.start(config)

    def _note_end(self, key: str, how: str) -> None:
        each, started = self.running.pop(key)
        seconds = time.monotonic() - started
        took = f"in {duration(seconds)}"
        self.worked_s += seconds
        self.foreseen_s += self.expected[key].total_s
        if record := self.shelves.find(each.config):
            self._end(each, record.status, took, record)
        elif is_locked(self.job.places.lock(each.config)):
            self.waiting.append(each)  # another sweep was faster
        else:
            self._end(each, "interrupted", f"{how}, {took}; see {_short(self.job.log(each.config))}")

    def _end(self, each: Planned, outcome: str, remark: str, record: RunRecord | None = None) -> None:
        self.outcomes[each.config.hash] = outcome
        total = str(len(self.planned))
        count = f"[{len(self.outcomes):>{len(total)}}/{total}]"
        left = f"{duration(self.left_s())} left" if self.waiting or self.running else ""
        parts = (count, self.labels[each.config.hash], outcome, _findings(record), remark, left)
        self.say("  ".join(part for part in parts if part))

    @cached_property
    def labels(self) -> dict[str, str]:
        return labels(self.planned)

    def left_s(self) -> float:
        """Seconds that are left, at the pace of the runs that have ended against what was expected of them."""
        now = time.monotonic()
        rest = sum(self.expected[each.config.hash].total_s for each in self.waiting)
        rest += sum(max(0.0, self.expected[key].total_s - now + start) for key, (_, start) in self.running.items())
        return rest / self.slots * (self.worked_s / self.foreseen_s if self.foreseen_s else 1.0)

    def summary(self) -> str:
        """How many runs stand how, and what to do about those without a result."""
        counts = Counter(self.outcomes.values()) + Counter({"not started": len(self.waiting) + len(self.running)})
        lines = [f"{status:12}{n:>5}  {ADVICE.get(status, '')}".rstrip() for status, n in counts.most_common()]
        return "\n".join(lines)


ADVICE = {
    "failed": "kept with their reason; raise `attempt` in the sweep to try them again",
    "interrupted": "the same command goes on with them",
    "not started": "the same command goes on with them",
    "blocked": "their untrained encoder comes first",
}


def _findings(record: RunRecord | None) -> str:
    """The numbers of a record that a progress line has room for."""
    if record is None:
        return ""
    if record.reason:
        return record.reason
    rank = [f"RankMe {record.rank.rankme:.1f}"] if record.rank else []
    return "  ".join(rank + [f"Q {suite} {q:.3f}" for suite, q in record.quality.get("linear", {}).items()])


def prepare_all(configs: Sequence[RunConfig], cache: Path, workers: int) -> None:
    """Make the clips that the runs share, once, before any of them starts: see `experiment.prepare`.

    Sweeps side by side wait for each other here, rather than make the same clips twice.
    """
    fields = ("corpus", "corpus_seed", "clips", "real_share", "clip_s", "patch_frames", "rank_clips", "tasks",
              "task_clips", "test_folds")  # fmt: skip
    with hold_lock(cache / "prepare.lock"):
        for config in {_key(config, fields): config for config in configs}.values():
            prepare(config, cache, workers)


def carry_out(
    spec: Path,
    out: Path = Path("runs"),
    device: str = "auto",
    workers: int | None = None,
    executor: Literal["processes", "in-process", "ray"] = "processes",
    address: str | None = None,
    save_every_s: float = 60.0,
    dry_run: bool = False,
    publish_to: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """The command `rankscale sweep`; returns its exit status: 0, 1 where a run has no result, 130 after Ctrl-C."""
    started = time.monotonic()
    shelves = Shelves(Places(out.resolve()))
    planned = plan(read_spec(spec), shelves.failed)
    expected = expect(planned, shelves, device)
    gpus = visible_gpus(device)
    slots = 1 if executor == "in-process" else workers or len(gpus) or os.cpu_count() or 1
    if dry_run:
        say(describe(planned, shelves, expected) + "\n")
    say(describe_whole(planned, shelves, expected, slots))
    if dry_run:
        return 0
    sweep = Sweep(planned, shelves, Job(shelves.places, device, save_every_s), expected, say)
    stopped = not sweep.finish(lambda: _make_executor(executor, sweep.job, slots, gpus, address), slots)
    say(f"\n{sweep.summary()}\n{duration(time.monotonic() - started)}; records are in {_short(shelves.places.records)}")
    if publish_to:
        paths = publish((each.config for each in planned), shelves.places.records, publish_to)
        say(f"published: {_count(len(paths), 'record')} in {publish_to}")
    return 130 if stopped else int(any(outcome not in RESULTS for outcome in sweep.outcomes.values()))


def _make_executor(kind: str, job: Job, slots: int, gpus: Sequence[str], address: str | None) -> Executor:
    if kind == "in-process":
        return InProcess(job)
    if kind == "ray":
        return RayCluster(job, slots, address)
    return Processes(job, slots, gpus)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


# --- in words ---------------------------------------------------------------------------------------------


def labels(planned: Sequence[Planned]) -> dict[str, str]:
    """Hash -> a name that tells the runs of a sweep apart: encoder, seed, and what is not as in most of the runs."""
    names = {}
    for is_floor in (True, False):
        group = [each.config.portable() for each in planned if (each.floor is None) == is_floor]
        usual = {name: Counter(getattr(c, name) for c in group).most_common(1) for name in RunConfig.model_fields}
        for config in group:
            unusual = {name: value for name, value in config if value != usual[name][0][0]} | {"seed": config.seed}
            unusual.pop("encoder", None)
            parts = [config.encoder] + ["untrained"] * (not config.steps)
            names[config.hash] = " ".join(parts + [f"{name}={_shown(value)}" for name, value in unusual.items()])
    return names


def _shown(value: Any) -> str:
    return "+".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Seconds for a reader: "8 s", "3 min 10 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def describe(planned: Sequence[Planned], shelves: Shelves, expected: Mapping[str, Expected]) -> str:
    """A line a run: blocks, how it stands, parameters, FLOP, hours of audio (unique, seen), expected time."""
    names = labels(planned)
    wide = max(map(len, names.values()))
    lines = [f"{'run':{wide}}  {'state':11}  {'params':>7}  {'FLOP':>7}  {'audio h':>13}  {'expected':>11}  blocks"]
    for each in planned:
        key, cost = each.config.hash, budget(each.config)
        heard = f"{cost.unique_audio_h:.3g} / {cost.seen_audio_h:.3g}"
        time_s = duration(expected[key].total_s) if key in expected else "-"
        lines.append(
            f"{names[key]:{wide}}  {shelves.state(each.config):11}  {_si(cost.encoder_params):>7}  "
            f"{cost.train_flop:7.1e}  {heard:>13}  {time_s:>11}  {', '.join(each.blocks)}"
        )
    return "\n".join(lines)


def _si(n: float) -> str:
    return f"{n / 1e6:.2f} M" if n >= 1e5 else f"{n / 1e3:.1f} k"


def describe_whole(planned: Sequence[Planned], shelves: Shelves, expected: Mapping[str, Expected], workers: int) -> str:
    """The sweep as a whole: runs by state, cost of what is to do, expected time and what it is known from."""
    states = Counter(shelves.state(each.config) for each in planned)
    rest = [each.config for each in planned if each.config.hash in expected]
    counts = ", ".join(f"{n} {state}" for state, n in states.most_common())
    floors = sum(each.floor is None for each in planned)
    lines = [f"{len(planned)} runs, {floors} of them untrained encoders: {counts}."]
    if not rest:
        return lines[0]
    flop, heard = (sum(getattr(budget(config), name) for config in rest) for name in ("train_flop", "seen_audio_h"))
    total = sum(each.total_s for each in expected.values()) / workers
    lines.append(f"To do: {flop:.2g} FLOP of training on {heard:.3g} h of audio.")
    until = datetime.now() + timedelta(seconds=total)
    lines.append(f"Expected: {duration(total)} with {_count(workers, 'worker')} (until {until:%a %H:%M}).")
    steps = Counter(each.train_from for each in expected.values() if each.train_from)
    probes = Counter(each.measure_from for each in expected.values())
    lines.append(f"  speed of training: {_sources(steps)}; ranking and probing: {_sources(probes)}.")
    if probes[ASSUMED]:
        lines.append(f"  Assumed is {PROBE_S:g} s a task at 64 dimensions, in proportion to dimensions and clips.")
    if missing := missing_audio_s(rest, shelves.places.cache):
        took = duration(missing / SYNTH_RATE / workers)
        lines.append(
            f"  Before that: {missing / 3600:.3g} h of synthetic audio, {took} at {SYNTH_RATE:g} x real time a core."
        )
    return "\n".join(lines)


def _sources(counts: Counter) -> str:
    return ", ".join(f"{source} ({_count(n, 'run')})" for source, n in counts.most_common())


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'s' * (n != 1)}"
