"""Work through a plan: start what can start, note what ended, say how it stands."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from rankscale.config import RunConfig
from rankscale.experiment import Places, prepare
from rankscale.pretrain import pick_device
from rankscale.records import RunRecord, publish, write_record
from rankscale.storage import hold_lock, is_locked
from rankscale.sweep.estimate import Estimate, Expected, key_of, measure_rates
from rankscale.sweep.executors import Crew, Executor, InProcess, Job, Processes, RayCluster, visible_gpus
from rankscale.sweep.limit import OutOfTime, TimeLimit, prune
from rankscale.sweep.shelves import Shelves
from rankscale.sweep.spec import Planned, plan, read_spec
from rankscale.sweep.text import count, describe, describe_pruned, describe_whole, duration, labels

CALM_S = 60.0  # as if so many seconds of runs had ended as expected: the first few seconds say little about the rest
MAKERS_PER_GPU = 8  # processes that synthesise on one: they take turns at drawing on CPUs and sounding on the GPU
RESULTS = ("ok", "diverged", "collapsed")  # a run that ended in one of these has told us something


@dataclass
class Sweep:
    """A plan being worked through. `outcomes`: hash -> how it stands with the runs that are not waiting or running.

    Outcomes are the status of a record; "interrupted" for a run whose process died, which the next sweep goes on
    with; "blocked" for one whose untrained encoder failed or was interrupted; "out of time" for one that would not have
    ended before the limit, and was not begun.
    """

    planned: Sequence[Planned]
    shelves: Shelves
    job: Job
    expected: Mapping[str, Expected]
    limit: TimeLimit = field(default_factory=TimeLimit)
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

    def finish(self, make_executor: Callable[[], Executor], makers: int) -> bool:
        """Prepare and work until all is done or the time is up; False if Ctrl-C came before that."""
        try:
            with self.limit.enforced():
                configs = [each.config for each in self.waiting]
                prepare_all(configs, self.shelves.places.cache, makers, pick_device(self.job.device))
                if self.waiting:
                    self.work(make_executor())
        except OutOfTime:
            self.say("The time is up. What is done is kept, and the same command goes on from the last checkpoints.")
        except KeyboardInterrupt:
            self.say("Stopped. What is done is kept, and the same command goes on from the last checkpoints.")
            return False
        return True

    @property
    def complete(self) -> bool:
        """Whether every run has a result."""
        return not self.waiting and not self.running and all(each in RESULTS for each in self.outcomes.values())

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
            if floor in ("failed", "interrupted", "blocked", "out of time"):
                self.waiting.remove(each)
                self._end(each, "blocked", f"its untrained encoder {floor}")
            elif record := self.shelves.find(config):
                self.waiting.remove(each)
                self._end(each, record.status, "made by another sweep", record)
            elif self._foreseen_s(config) > self.limit.left_s():
                self.waiting.remove(each)
                self._end(each, "out of time", f"would take {duration(self._foreseen_s(config))}")
            elif floor and not is_locked(self.job.places.lock(config)):
                self.waiting.remove(each)
                self.running[config.hash] = (each, time.monotonic())
                executor.start(config)

    def _foreseen_s(self, config: RunConfig) -> float:
        """Seconds that a run will take, at the pace of those that have ended against what was expected of them."""
        return self.expected[config.hash].total_s * self._pace

    @property
    def _pace(self) -> float:
        return (self.worked_s + CALM_S) / (self.foreseen_s + CALM_S)

    def _note_end(self, key: str, how: str) -> None:
        each, started = self.running.pop(key)
        seconds = time.monotonic() - started
        took = f"in {duration(seconds)}"
        self.worked_s += seconds
        self.foreseen_s += self.expected[key].total_s
        if record := self.shelves.find(each.config):
            self._end(each, record.status, took + _speed(record), record)
        elif is_locked(self.job.places.lock(each.config)):
            self.waiting.append(each)  # another sweep was faster
        else:
            self._end(each, "interrupted", f"{how}, {took}; see {_short(self.job.log(each.config))}")

    def _end(self, each: Planned, outcome: str, remark: str, record: RunRecord | None = None) -> None:
        self.outcomes[each.config.hash] = outcome
        total = str(len(self.planned))
        place = f"[{len(self.outcomes):>{len(total)}}/{total}]"
        left = f"{duration(self.left_s())} left" if self.waiting or self.running else ""
        parts = (place, self.labels[each.config.hash], outcome, _findings(record), remark, left)
        self.say("  ".join(part for part in parts if part))

    @cached_property
    def labels(self) -> dict[str, str]:
        return labels(self.planned)

    def left_s(self) -> float:
        """Seconds that are left, at the pace so far."""
        now = time.monotonic()
        rest = sum(self.expected[each.config.hash].total_s for each in self.waiting)
        rest += sum(max(0.0, self.expected[key].total_s - now + start) for key, (_, start) in self.running.items())
        return rest / self.slots * self._pace

    def summary(self, left_out: int = 0) -> str:
        """How many runs stand how, and what to do about those without a result. left_out: runs of the spec."""
        counts = Counter(self.outcomes.values())
        counts += Counter({"not started": len(self.waiting) + len(self.running), "left out": left_out})
        lines = [f"{status:12}{n:>5}  {ADVICE.get(status, '')}".rstrip() for status, n in counts.most_common()]
        return "\n".join(lines)


ADVICE = {
    "failed": "kept with their reason; raise `attempt` in the sweep to try them again",
    "interrupted": "the same command goes on with them",
    "not started": "the same command goes on with them",
    "blocked": "their untrained encoder comes first",
    "out of time": "the same command begins them, in good time",
    "left out": "to fit the time limit; with more time the same command makes them",
}


def _findings(record: RunRecord | None) -> str:
    """The numbers of a record that a progress line has room for."""
    if record is None:
        return ""
    if record.reason:
        return record.reason
    rank = [f"RankMe {record.rank.rankme:.1f}"] if record.rank else []
    return "  ".join(rank + [f"Q {suite} {q:.3f}" for suite, q in record.quality.get("linear", {}).items()])


def _speed(record: RunRecord) -> str:
    """How much of its device a run used in training, if that is known."""
    used = record.provenance.utilisation
    return f", {used:.0%} of the device's FLOP/s" if used else ""


def prepare_all(configs: Sequence[RunConfig], cache: Path, workers: int, device: str = "cpu") -> None:
    """Make the clips that the runs share, once, before any of them starts: see `experiment.prepare`.

    Sweeps side by side wait for each other here, rather than make the same clips twice.
    """
    fields = ("corpus", "corpus_seed", "clips", "real_share", "clip_s", "patch_frames", "rank_clips", "rank_on",
              "tasks", "task_clips", "test_folds")  # fmt: skip
    with hold_lock(cache / "prepare.lock"):
        for config in {key_of(config, fields): config for config in configs}.values():
            prepare(config, cache, workers, device=device)


def carry_out(
    spec: Path,
    out: Path = Path("runs"),
    device: str = "auto",
    workers: int | None = None,
    executor: Literal["processes", "in-process", "ray"] = "processes",
    address: str | None = None,
    save_every_s: float = 60.0,
    compiled: bool = False,
    time_limit_s: float = math.inf,
    changes: Mapping[str, Any] | None = None,
    without: Collection[str] = (),
    dry_run: bool = False,
    publish_to: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """The command `rankscale sweep`; returns its exit status: 0, 1 where a run has no result, 130 after Ctrl-C.

    changes: of settings that all runs of the spec share. without: blocks of it to leave out. With a time limit, what
    does not fit is left out by `prune`, nothing is begun that would not end in time, and what is then still at work is
    stopped and can be gone on with.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("start a sweep once, not with torchrun or accelerate: those share out a single run")
    limit = TimeLimit(time_limit_s)
    shelves = Shelves(Places(out.resolve()))
    wanted = plan(read_spec(spec, changes, without), shelves.failed)
    gpus = visible_gpus(device)
    crew = _make_crew(executor, workers, len(gpus))
    rates = measure_rates(wanted, shelves, device, compiled)
    cost = partial(Estimate.of, rates=rates, cache=shelves.places.cache, crew=crew)
    pruned = prune(wanted, rates.expect(wanted), limit.left_s(), lambda kept: cost(kept).total_s)
    planned = [each for each in wanted if each not in pruned]
    estimate = cost(planned)
    if dry_run:
        say(describe(planned, shelves, estimate.runs) + "\n")
    say(describe_whole(planned, shelves, estimate))
    if pruned:
        say(describe_pruned(pruned, labels(wanted), time_limit_s))
    if dry_run:
        return 0
    sweep = Sweep(planned, shelves, Job(shelves.places, device, save_every_s, compiled), estimate.runs, limit, say)
    stopped = not sweep.finish(lambda: _make_executor(executor, sweep.job, crew.slots, gpus, address), crew.makers)
    say(
        f"\n{sweep.summary(len(pruned))}\n{duration(time.monotonic() - limit.started)}; "
        f"records are in {_short(shelves.places.records)}"
    )
    if publish_to:
        paths = publish((each.config for each in planned), shelves.places.records, publish_to)
        say(f"published: {count(len(paths), 'record')} in {publish_to}")
    return 130 if stopped else int(bool(pruned) or not sweep.complete)


def _make_crew(executor: str, workers: int | None, gpus: int) -> Crew:
    """One run at a time to a GPU or a core, unless it is said how many; clips are prepared by cores that are free."""
    cores = os.cpu_count() or 1
    slots = 1 if executor == "in-process" else workers or gpus or cores
    return Crew(slots, max(slots, min(cores, MAKERS_PER_GPU * gpus)), gpus)


def _make_executor(kind: str, job: Job, slots: int, gpus: Sequence[str], address: str | None) -> Executor:
    if kind == "in-process":
        return InProcess(job)
    if kind == "ray":
        return RayCluster(job, slots, address)
    return Processes(job, slots, gpus)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
