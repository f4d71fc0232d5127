"""The processes that train one student together; torchrun starts them, and its environment says who they are.

One process is a world of one, and takes the same path: what there is to sum, share or collect is its own.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from predistill.errors import PredistillError, Stopped

__all__ = ["World", "joined", "world_size"]

ANSWER_SECONDS = 0.01

Value = TypeVar("Value")


def world_size() -> int:
    """How many processes torchrun has started, over all machines; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


@dataclass(frozen=True)
class World:
    """The processes of a run: this one's number, how many there are, and where this one computes.

    What takes part in a sum, a share or a gather must be called by all of them, in the same order.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`, in place the sum over all processes: the same bits in each."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def meet(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            distributed.barrier()

    def share(self, value: Value) -> Value:
        """What the first process gave."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def of_first(self, action: Callable[[], Value]) -> Value:
        """What `action` gave the first process, which alone does it. What it refuses ends all of them, and is said by
        the first one."""
        value, refused = None, None
        if self.first:
            try:
                value = action()
            except PredistillError as error:
                refused = error
        value, refused = self.share((value, refused))
        if refused is not None:
            raise refused if self.first else SystemExit(2)
        return value  # type: ignore[return-value]  # the action's own, where it was not refused

    def collect(self, value: Value) -> list[Value]:
        """What every process gave, by number, on the first process; nothing on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.gather_object(value, values if self.first else None, dst=0)
        return values if self.first else []

    def seed(self, seed: int, step: int) -> None:
        """Seed torch for a step, so that what draws numbers (dropout) draws the same after a resume, and other ones on
        every process."""
        torch.manual_seed(((seed << 32) + step * self.size + self.rank) % 2**63)

    def slice_of(self, rows: int) -> slice:
        """This process's part of a batch of `rows` (a multiple of the size)."""
        each = rows // self.size
        return slice(self.rank * each, (self.rank + 1) * each)


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world that torchrun's environment describes, joined: left when all went well or was stopped, and with the
    process when something failed, since the others may wait in a sum."""
    if world_size() == 1:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, rank, size = next(rendezvous("env://"))
    distributed.init_process_group(backend, store=_unused(store, rank, size), rank=rank, world_size=size)
    world = World(rank, size, device)
    try:
        yield world
    except Stopped:
        distributed.destroy_process_group()
        raise
    distributed.destroy_process_group()


def _unused(store: Store, rank: int, size: int) -> Store:
    """A part of torchrun's store that these processes agree on, and that none before them has written to.

    torchrun 2.13 keeps one store over its restarts: processes started again would find the addresses of those that have
    died, and wait for them. How often it has restarted does not tell: that is counted machine by machine.
    """
    mine, key = uuid.uuid4().hex, "predistill"
    if rank > 0:
        store.set(f"{key}/here/{rank}", mine)
        agreed = store.get(f"{key}/answer/{mine}").decode()  # waits
        store.set(f"{key}/heard/{agreed}/{rank}", "")
        return PrefixStore(agreed, store)
    others = range(1, size)
    while not store.check([f"{key}/heard/{mine}/{other}" for other in others]):
        for here in (f"{key}/here/{other}" for other in others):
            if store.check([here]):  # perhaps of one that has died: then nobody hears the answer
                store.set(f"{key}/answer/{store.get(here).decode()}", mine)
        time.sleep(ANSWER_SECONDS)
    return PrefixStore(mine, store)
