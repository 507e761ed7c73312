"""Many runs from one short text: what to run, what is there already, what it will cost; then run it.

A sweep keeps nothing in its head. A record says that a run is done, a lock that some process is at it, a checkpoint
where it goes on. So a sweep can be killed at any moment and started again, and two can work on one folder. Each run
has a process of its own: memory is given back, and one that dies takes nothing with it.

`spec` what to run; `shelves` what is there already; `executors` where runs are made; `estimate` what they will cost;
`limit` what fits into a time; `text` all of it in words; `engine` works through the plan.
"""

from rankscale.sweep.engine import RESULTS, Sweep, carry_out, prepare_all
from rankscale.sweep.estimate import Estimate, Expected, Rates, measure_rates, missing_audio_s, time_step, time_synth
from rankscale.sweep.executors import Crew, Executor, InProcess, Job, Processes, RayCluster, visible_gpus
from rankscale.sweep.limit import TimeLimit, prune
from rankscale.sweep.shelves import PUBLISHED, Shelves
from rankscale.sweep.spec import Block, Planned, Spec, configure, plan, read_spec
from rankscale.sweep.text import describe, describe_pruned, describe_whole, duration, labels, seconds

__all__ = [
    "PUBLISHED",
    "RESULTS",
    "Block",
    "Crew",
    "Estimate",
    "Executor",
    "Expected",
    "InProcess",
    "Job",
    "Planned",
    "Processes",
    "Rates",
    "RayCluster",
    "Shelves",
    "Spec",
    "Sweep",
    "TimeLimit",
    "carry_out",
    "configure",
    "describe",
    "describe_pruned",
    "describe_whole",
    "duration",
    "labels",
    "measure_rates",
    "missing_audio_s",
    "plan",
    "prepare_all",
    "prune",
    "read_spec",
    "seconds",
    "time_step",
    "time_synth",
    "visible_gpus",
]
