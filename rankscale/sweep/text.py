"""A sweep in words: names of runs, durations, tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from rankscale.budget import budget
from rankscale.config import RunConfig
from rankscale.sweep.estimate import ASSUMED, PROBE_S, Estimate, Expected
from rankscale.sweep.limit import KEPT
from rankscale.sweep.shelves import Shelves
from rankscale.sweep.spec import Planned


def labels(planned: Sequence[Planned]) -> dict[str, str]:
    """Hash -> a name that tells the runs of a sweep apart: encoder, seed, and what is not as in most of the runs.

    A setting without a value that more than half of the runs have is always told.
    """
    names = {}
    for is_floor in (True, False):
        group = [each.config.portable() for each in planned if (each.floor is None) == is_floor]
        counts = {name: Counter(getattr(c, name) for c in group) for name in RunConfig.model_fields}
        for config in group:
            unusual = {name: value for name, value in config if 2 * counts[name][value] <= len(group)}
            unusual |= {"seed": config.seed}
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


def seconds(text: str) -> float:
    """What `duration` undoes: "540", "540s", "9m" and "1.5h". Raises ValueError on anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?) *(s|m|min|h)?", text.strip())
    if not match:
        raise ValueError(f"{text!r}: write seconds, or a number with s, m or h, for example 9m")
    return float(match[1]) * {"m": 60, "min": 60, "h": 3600}.get(match[2], 1)


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


def describe_whole(planned: Sequence[Planned], shelves: Shelves, estimate: Estimate) -> str:
    """The sweep as a whole: runs by state, cost of what is to do, expected time and what it is known from."""
    states = Counter(shelves.state(each.config) for each in planned)
    expected, crew = estimate.runs, estimate.crew
    rest = [each.config for each in planned if each.config.hash in expected]
    counts = ", ".join(f"{n} {state}" for state, n in states.most_common())
    floors = sum(each.floor is None for each in planned)
    lines = [f"{len(planned)} runs, {floors} of them untrained encoders: {counts}."]
    if not rest:
        return lines[0]
    flop, heard = (sum(getattr(budget(config), name) for config in rest) for name in ("train_flop", "seen_audio_h"))
    lines.append(f"To do: {flop:.2g} FLOP of training on {heard:.3g} h of audio.")
    until = datetime.now() + timedelta(seconds=estimate.total_s)
    lines.append(f"Expected: {duration(estimate.work_s)} with {count(crew.slots, 'worker')} (until {until:%a %H:%M}).")
    steps = Counter(each.train_from for each in expected.values() if each.train_from)
    probes = Counter(each.measure_from for each in expected.values())
    lines.append(f"  speed of training: {_sources(steps)}; ranking and probing: {_sources(probes)}.")
    if probes[ASSUMED]:
        lines.append(f"  Assumed is {PROBE_S:g} s a task up to 512 dimensions, then in proportion to them.")
    if estimate.prepare_s:
        audio = f"{estimate.audio_s / 3600:.3g} h of synthetic audio"
        rate = f" at {estimate.rates.synth_rate:.3g} x real time a process" if estimate.audio_s else ""
        lines.append(
            f"  Before that: {audio}{rate} and {count(estimate.rates.task_clips, 'clip')} of tasks, "
            f"{duration(estimate.prepare_s)} with {count(crew.makers, 'process', 'es')}."
        )
    return "\n".join(lines)


def describe_pruned(pruned: Sequence[Planned], names: Mapping[str, str], limit_s: float) -> str:
    """What a time limit leaves out, by name."""
    lines = [
        f"Left out, so that the others fit into {duration(limit_s)}: {count(len(pruned), 'run')}. First those that "
        f"would take longer by themselves, then from the end of the plan; never those of a block named {KEPT!r}."
    ]
    return "\n".join(lines + [f"  {names[each.config.hash]}  ({', '.join(each.blocks)})" for each in pruned])


def _sources(counts: Counter) -> str:
    return ", ".join(f"{source} ({count(n, 'run')})" for source, n in counts.most_common())


def count(n: int, thing: str, plural: str = "s") -> str:
    """ "1 run", "2 runs"."""
    return f"{n} {thing}{plural if n != 1 else ''}"
