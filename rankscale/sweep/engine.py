"""Work through a plan: start what can start, note what ended, say how it stands."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from rankscale.config import RunConfig
from rankscale.experiment import Places, prepare
from rankscale.records import RunRecord, publish, write_record
from rankscale.storage import hold_lock, is_locked
from rankscale.sweep.estimate import Expected, expect, key_of
from rankscale.sweep.executors import Executor, InProcess, Job, Processes, RayCluster, visible_gpus
from rankscale.sweep.shelves import Shelves
from rankscale.sweep.spec import Planned, plan, read_spec
from rankscale.sweep.text import count, describe, describe_whole, duration, labels

RESULTS = ("ok", "diverged", "collapsed")  # a run that ended in one of these has told us something


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
        for config in {key_of(config, fields): config for config in configs}.values():
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
    slots = 1 if executor == "in-process" else workers or len(gpus) or os.cpucount() or 1
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
        say(f"published: {count(len(paths), 'record')} in {publish_to}")
    return 130 if stopped else int(any(outcome not in RESULTS for outcome in sweep.outcomes.values()))


def _make_executor(kind: str, job: Job, slots: int, gpus: Sequence[str], address: str | None) -> Executor:
    if kind == "in-process":
        return InProcess(job)
    if kind == "ray":
        return RayCluster(job, slots, address)
    return Processes(job, slots, gpus)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
