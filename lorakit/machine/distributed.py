"""The processes of one run: started by torchrun (or accelerate, or deepspeed), found by their environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from lorakit.common.errors import LorakitError

LOST, UNMET = "another process of this run is gone", "the processes do not meet"


@dataclass(frozen=True)
class World:
    """Rank of this process and number of processes. With one process nothing is communicated."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its host: the number of its card

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes the files of the run."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in the order of their ranks (all-gather). All must call it."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast_from_rank0(self, find: Callable[[], Any]) -> Any:
        """What `find` returns on rank 0, on all processes; the others do not call it. All must call this."""
        if self.size == 1:
            return find()
        import torch.distributed as dist

        values = [find() if self.first else None]
        dist.broadcast_object_list(values, src=0)
        return values[0]


ALONE = World()


def started() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


@cache
def join() -> World:
    """Joins the process group that torchrun has described in the environment: gloo between CPUs, nccl between cards.

    Raises:
        LorakitError: the environment names no rendezvous, or the other processes do not come.
    """
    if not started():
        return ALONE
    import torch
    import torch.distributed as dist

    try:
        world = World(
            int(os.environ["RANK"]),
            int(os.environ["WORLD_SIZE"]),
            int(os.environ.get("LOCAL_RANK", 0)),
        )
        cards = torch.cuda.is_available()
        if cards:
            torch.cuda.set_device(world.local_rank)
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if cards else "gloo")
    except (KeyError, ValueError, RuntimeError) as error:
        raise LorakitError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}, and {UNMET}: "
            f"{type(error).__name__}: {str(error).splitlines()[0]}. Start them by torchrun, or unset "
            "WORLD_SIZE"
        ) from error
    return world


def lost(error: BaseException) -> bool:
    """Whether this error says that another process of the group is gone."""
    if not started():
        return False
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def leave() -> None:
    """Leaves the process group."""
    if started():
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def place() -> str:
    """host:process, for the record."""
    return f"{socket.gethostname()}:{os.getpid()}"
