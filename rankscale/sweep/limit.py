"""A sweep that has to end by a given time: what is left out beforehand, what is not begun, and when it stops."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rankscale.sweep.estimate import Expected
from rankscale.sweep.executors import POLITE_S
from rankscale.sweep.spec import Planned

ENDING_S = POLITE_S + 5.0  # at the end: workers stop, records are published, the summary is written
KEPT = "test"  # the block that is never pruned: its runs judge the others


class OutOfTime(BaseException):
    """The time is up. Not an Exception, as Ctrl-C is not: it is nobody's failure, and no run may catch it."""


@dataclass(frozen=True)
class TimeLimit:
    """So many seconds for a whole command, counted from `started`. Raises ValueError where there is no time to work."""

    seconds: float = math.inf
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.seconds < 2 * ENDING_S:
            raise ValueError(f"a time limit of {self.seconds:g} s: give at least {2 * ENDING_S:g} s")

    def left_s(self) -> float:
        """For work: the last seconds are kept to end cleanly in."""
        return self.seconds - ENDING_S - (time.monotonic() - self.started)

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """OutOfTime is raised in this `with` block when no time to work is left."""
        if math.isinf(self.seconds):
            yield
            return
        before = signal.signal(signal.SIGALRM, _raise_out_of_time)
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, self.left_s()))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _raise_out_of_time(*_: object) -> None:
    raise OutOfTime


def prune(
    planned: Sequence[Planned],
    expected: Mapping[str, Expected],
    left_s: float,
    cost: Callable[[Sequence[Planned]], float],
) -> list[Planned]:
    """The runs that are left out, by rule: first those that would not end in time by themselves; then, until the others
    fit, from the end of the plan on.

    expected: by hash, of runs that have no record; the others cost nothing and stay. cost: wall seconds of a plan. Runs
    of the block "test" stay, whatever the time, and so does what they need. An untrained encoder goes with the last run
    that needs it as its floor.
    """
    endless = {key for key, each in expected.items() if each.total_s > left_s}
    kept = list(planned)

    def drop(each: Planned) -> None:
        if each.floor and each.config.hash in expected and KEPT not in each.blocks and each in kept:
            kept.remove(each)
            if not any(other.floor == each.floor for other in kept):
                kept[:] = [other for other in kept if other.config != each.floor]

    for each in planned:
        if each.config.hash in endless:
            drop(each)
    for each in reversed(planned):
        if cost([other for other in kept if other.config.hash not in endless]) <= left_s:
            break
        drop(each)
    return [each for each in planned if each not in kept]
