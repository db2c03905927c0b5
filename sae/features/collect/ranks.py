"""Processes that share one pass (torchrun): which chunks each of them reads, and how their results are merged."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed

from sae.features.store.collection import Collection


class Ranks:
    """This process among all those of the pass, of which there may be just one."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    @classmethod
    @contextlib.contextmanager
    def of_process(cls) -> Iterator[Ranks]:
        """Join the processes that torchrun started, where it did."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not distributed.is_available():
            yield cls(0, 1)
            return
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        joined = distributed.is_initialized()
        if not joined:
            distributed.init_process_group("gloo")
        try:
            yield cls(distributed.get_rank(), distributed.get_world_size())
        finally:
            if not joined:
                distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def any(self, value: bool) -> bool:
        """Whether `value` is true in any process; all processes must call this."""
        if self.world == 1:
            return value
        flag = torch.tensor([int(value)])
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return bool(flag.item())

    def share(self, value: Any) -> Any:
        """The first process's value; all processes must call this."""
        if self.world == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, collection: Collection, open_document: int | None) -> Collection:
        """The finished collection of all processes in the first one, an empty one elsewhere; all must call this."""
        collection.finish(open_document)
        if self.world == 1:
            return collection
        for source in range(1, self.world):
            if self.rank == source:
                distributed.send_object_list([collection.to("cpu")], dst=0)
            elif self.first:
                box: list[Any] = [None]
                distributed.recv_object_list(box, src=source)
                collection.merge(box[0])
        if self.first:
            collection.finish(open_document)
            return collection
        return Collection(collection.width, collection.seed, collection.device)
