"""One run made by several processes together: a GPU each, on one machine or on many.

`torchrun` and `accelerate launch` start a command several times, and tell each process in environment variables which
one it is. These processes are a team. They take the same steps, each with its part of one batch under one set of masks,
so that losses and weights are those of a single process. What is made once, the leader makes, and the others wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

Made = TypeVar("Made")
PATIENCE = timedelta(
    days=1
)  # the others wait while the leader prepares clips and probes; who launched them sees deaths


@dataclass(frozen=True)
class Team:
    """The processes that make a run together, seen from one of them. A process alone is a team too: the default.

    rank: of this process, 0 to size - 1; the leader is 0, and is the only one that writes and speaks.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def part(self, n: int) -> slice:
        """This process's clips of a batch of n: neighbours, in the order of ranks, as many as the others' or one more.

        Raises ValueError where there is no clip for some of the processes.
        """
        if n < self.size:
            raise ValueError(f"a batch of {n} for {self.size} processes: give each a clip, or start fewer processes")
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def weigh(self, mean: Tensor, n: int) -> Tensor:
        """Scale a mean over this process's part of n clips so that the mean over processes is that over all clips."""
        part = self.part(n)
        return mean * ((part.stop - part.start) * self.size / n)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over processes, the same on all; without a gradient."""
        total = value.detach().clone()
        if self.size > 1:
            distributed.all_reduce(total)
        return total / self.size

    def share(self, model: nn.Module) -> nn.Module:
        """The model, its weights the leader's, with gradients that are means over the processes."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, broadcast_buffers=False)  # buffers are statistics that never change

    def on_leader(self, make: Callable[[], Made]) -> Made:
        """What `make` gives on the leader, in every process; what it raises there is raised in all of them."""
        if self.size == 1:
            return make()
        made: list[Any] = [None, None]
        if self.leads:
            try:
                made = [make(), None]
            except Exception as error:  # raised again below, here and elsewhere: nobody is left waiting
                made = [None, error]
        distributed.broadcast_object_list(made, device=torch.device("cpu"))
        value, error = made
        if error is not None:
            raise error
        return value

    def leader_first(self, make: Callable[[], Made]) -> Made:
        """`make` on the leader, and then in the other processes, which find on disk what the leader has prepared."""
        kept: list[Made] = []
        self.on_leader(lambda: kept.append(make()))
        return kept[0] if self.leads else make()


ALONE = Team()


@contextmanager
def join_team(device: str) -> Iterator[Team]:
    """The team that this process was started in, for the time of a `with` block.

    device: "cpu", which talks through gloo, or "cuda", which talks through NCCL; then each process of a machine has
    the GPU of its number, and the current device is set to it.
    Raises ValueError where there are more processes than GPUs on a machine.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield ALONE
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        _take_gpu(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def _take_gpu(number: int) -> None:
    if number >= torch.cuda.device_count():
        raise ValueError(f"process {number} of this machine has no GPU: start {torch.cuda.device_count()} processes")
    torch.cuda.set_device(number)
