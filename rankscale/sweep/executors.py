"""Where runs are made: in this process, in processes of their own, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Any, Protocol

import torch
from threadpoolctl import threadpool_limits

from rankscale.config import RunConfig
from rankscale.experiment import Places, run, write_failure
from rankscale.pretrain import pick_device
from rankscale.process import environment
from rankscale.storage import is_locked

# Of a worker: one thread, and progress bars that leave a line in the log every ten seconds.
WORKER = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")} | {"TQDM_MININTERVAL": "10"}
POLITE_S = 10.0  # a worker that is asked to stop has so long


@dataclass(frozen=True)
class Crew:
    """Who works: runs at once, processes that prepare clips, and the GPUs that they share (0: all is done on CPUs)."""

    slots: int
    makers: int
    gpus: int = 0


@dataclass(frozen=True)
class Job:
    """What every run of a sweep is made with."""

    places: Places
    device: str = "auto"
    save_every_s: float = 60.0
    compiled: bool = False
    folder: Path = field(default_factory=Path.cwd)  # that folders of audio are named from

    def log(self, config: RunConfig) -> Path:
        return self.places.work(config) / "log.txt"

    def make(self, config: RunConfig) -> None:
        """Make a run; what it raises becomes a record of failure."""
        started = time.monotonic()
        os.chdir(self.folder)
        try:
            run(config, self.places, self.device, 1, True, self.save_every_s, compiled=self.compiled)
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
def one_worker(device: str) -> Iterator[ProcessPoolExecutor]:
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
