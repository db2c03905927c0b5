"""The processes that share one job under torchrun: who they are, and what they exchange beside a step.

    with Ranks.of_process() as ranks:
        stopped = ranks.any(stop.requested is not None)
        if ranks.first: ...                     # writes

One process group serves the whole job, opened and closed here: gloo for tensors on the CPU, with NCCL beside it for
those on GPUs. Without torchrun there is one rank, and every exchange returns at once. torch is imported late, so that
the command line can ask who it is.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sae.config import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

EXCHANGE_SECONDS = 1800.0
"""How long an exchange waits for its last rank; it has to outlast the longest that one rank does alone."""
LAUNCHED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets in the environment beside WORLD_SIZE."""


def world_size() -> int:
    """How many processes the launcher started; 1 without one.

    Raises:
        ConfigError: WORLD_SIZE is no whole number from 1 on, or what torchrun sets with it is missing.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"WORLD_SIZE={text}: expected a whole number from 1 on, as torchrun sets it")
    missing = [name for name in LAUNCHED if name not in os.environ]
    if int(text) > 1 and missing:
        raise ConfigError(
            f"WORLD_SIZE={text} without {', '.join(missing)}: start all ranks with torchrun, or unset WORLD_SIZE"
        )
    return int(text)


def rank_number() -> int:
    """This process's number among those that the launcher started; 0 without one."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


class Ranks:
    """This process among all those of the job, of which there may be just one."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    @classmethod
    @contextlib.contextmanager
    def of_process(cls, device: str = "auto") -> Iterator[Ranks]:
        """Join the processes that torchrun started, where it did; inside another `of_process`, share its group.

        Args:
            device: as --device; unless it is "cpu", each rank takes the GPU of its number on its machine.

        Raises:
            ConfigError: the launcher's environment is incomplete, or a machine has more ranks than GPUs.
        """
        world = world_size()
        if world == 1:
            yield cls(0, 1)
            return
        from torch import distributed

        if distributed.is_initialized():
            yield cls(distributed.get_rank(), distributed.get_world_size())
            return
        _join(device)
        try:
            yield cls(distributed.get_rank(), distributed.get_world_size())
        finally:
            distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def any(self, value: bool) -> bool:
        """Whether `value` is true in any process; all processes must call this."""
        return bool(self.largest(int(value)))

    def largest(self, value: int) -> int:
        """The largest `value` of all processes; all of them must call this."""
        if self.world == 1:
            return value
        import torch
        from torch import distributed

        number = torch.tensor([value])
        distributed.all_reduce(number, distributed.ReduceOp.MAX)
        return int(number.item())

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all processes, a new tensor in each; all processes must call this."""
        total = value.detach().clone()
        if self.world > 1:
            from torch import distributed

            distributed.all_reduce(total)
        return total

    def share(self, value: Any) -> Any:
        """The first process's value; all processes must call this."""
        if self.world == 1:
            return value
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def merge(self, value: Any, merge: Callable[[Any], None]) -> None:
        """In the first process, call `merge` with each other one's `value`, in the order of ranks; all must call this.

        One value travels at a time, so the first process needs the memory of two.
        """
        if self.world == 1:
            return
        from torch import distributed

        for source in range(1, self.world):
            if self.rank == source:
                distributed.send_object_list([value], dst=0)
            elif self.first:
                box: list[Any] = [None]
                distributed.recv_object_list(box, src=source)
                merge(box[0])


def _join(device: str) -> None:
    """Open the process group."""
    import torch
    from torch import distributed

    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ConfigError(
                f"--nproc-per-node: rank {os.environ['RANK']} is number {local} of its machine, which has {gpus} GPUs; "
                f"start at most {gpus} a machine, or compute with --device cpu"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=datetime.timedelta(seconds=EXCHANGE_SECONDS))
