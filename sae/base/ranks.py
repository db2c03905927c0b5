"""The processes that share one job under torchrun: what they exchange beside a step.

    with Ranks.of_process() as ranks:
        if ranks.stopping(stop): ...            # a signal has come to any of them
        if ranks.first: ...                     # writes

One process group serves the whole job, opened and closed here: gloo for tensors on the CPU, with NCCL beside it for
those on GPUs. A watchdog ends every rank where one is lost. Without torchrun there is one rank, and every exchange
returns at once. torch is imported late, so that the command line can ask who it is.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from sae.base.launcher import world_size
from sae.base.process_group import meet, open_group, pick_backend
from sae.base.progress import Interrupted, StopSignal

if TYPE_CHECKING:
    from torch import Tensor

    from sae.base.watchdog import Watchdog

AFTER_EXCHANGE = 20.0
"""Seconds that a rank waits for a verdict when an exchange failed: a rank on another machine is silent that long."""
AFTER_SIGNAL = 3.0
"""The same after SIGTERM."""


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
        backend = pick_backend(device)
        watchdog = meet(world)
        with _terminating(), _explained(watchdog):
            open_group(backend, world)
            yield cls(distributed.get_rank(), distributed.get_world_size())
        distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def takes(self, number: int) -> bool:
        """Whether this process computes the batch of that number; each of a round of `world` goes to another one."""
        return number % self.world == self.rank

    def ends_round(self, number: int) -> bool:
        """Whether every process has had a batch by now, so that an exchange keeps none of them from its own."""
        return (number + 1) % self.world == 0

    def stopping(self, stop: StopSignal) -> bool:
        """Whether a signal has come to any process; then `stop` has it in all of them. All processes must call this."""
        stop.requested = self.largest(stop.requested or 0) or None
        return stop.requested is not None

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

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of ranks; all processes must call this."""
        if self.world == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

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


ALONE = Ranks(0, 1)
"""A process by itself."""


@contextlib.contextmanager
def _explained(watchdog: Watchdog) -> Iterator[None]:
    """Leave the job in good order, or say which rank was lost.

    torchrun sends SIGTERM to the ranks that remain, at any moment of their own way out: none may end before it has
    spoken, as the others would take it for the one that was lost.
    """
    try:
        try:
            yield
        except (Interrupted, KeyboardInterrupt):
            raise
        except BaseException as error:
            with _deaf():
                if _in_exchange(error):
                    watchdog.check(AFTER_EXCHANGE)
                watchdog.fail(error)
            raise
    except (Interrupted, KeyboardInterrupt):
        with _deaf():
            watchdog.check(AFTER_SIGNAL)
            watchdog.leave()
        raise
    with _deaf():
        watchdog.leave()


def _in_exchange(error: BaseException) -> bool:
    """Whether torch.distributed raised it, as it does where another rank is gone."""
    files = {frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)}
    return isinstance(error, RuntimeError) and any("/torch/distributed/" in file for file in files)


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM raises Interrupted where no `StopSignal` takes it, so that a rank can say why it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum, "nothing was written")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """SIGTERM is ignored: torchrun sends it to ranks that are about to say which one was lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
