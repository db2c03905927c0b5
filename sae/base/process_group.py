"""How the ranks of a job meet: the launcher's store, the watchdog over all of them, and the process group.

The store is the one that torchrun keeps; where ranks were started without it (`srun python -m sae`), the first rank
keeps it.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import os
import socket
import time
from typing import Any

from sae.base.guard import UNANSWERED, Guard
from sae.base.launcher import rank_number
from sae.base.pulse import seconds_from
from sae.base.watchdog import RankError, Watchdog, key_of
from sae.config import ConfigError

EXCHANGE_SECONDS = 1800.0
"""How long an exchange waits for its last rank; it has to outlast the longest that one rank does alone."""

TO_LAUNCHER = 15.0
"""How long a rank tries to reach the launcher's store: where it does not answer, the launcher has gone."""


def pick_backend(device: str) -> str:
    """The process group's backend; on a machine with GPUs also takes this rank's."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return "gloo"
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= gpus:
        raise ConfigError(
            f"--nproc-per-node: rank {os.environ['RANK']} is number {local} of its machine, which has {gpus} GPUs; "
            f"start at most {gpus} a machine, or compute with --device cpu"
        )
    torch.cuda.set_device(local)
    return "cpu:gloo,cuda:nccl"


_joins = itertools.count()
"""A process may join several times, one after the other; each time has keys of its own in the store."""
_group_number = 0


@functools.cache
def _server() -> Any:
    """The store's server, where this process keeps it: rank 0 of a job that was started without torchrun's agent."""
    return _client(serve=True)


def _client(*, serve: bool = False) -> Any:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] - a documented name

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        if _launcher_serves():
            _reach(address, port)
        return TCPStore(
            address, port, is_master=serve, wait_for_workers=False, multi_tenant=serve,
            timeout=datetime.timedelta(seconds=seconds_from("SAE_RANKS_WAIT", 600.0)),
        )  # fmt: skip
    except (RuntimeError, OSError) as error:
        where = f"{address}:{port}"
        raise RankError(f"rank {rank_number()}: the job's store at {where} cannot be reached: {error}") from None


def _reach(address: str, port: int) -> None:
    """Wait until a connection is possible; TCPStore itself tries for far longer than its time limit.

    Raises:
        OSError: it is not within `TO_LAUNCHER` seconds.
    """
    deadline = time.monotonic() + TO_LAUNCHER
    while True:
        try:
            socket.create_connection((address, port), timeout=max(deadline - time.monotonic(), 0.1)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _launcher_serves() -> bool:
    """Whether torchrun's agent keeps the store, which is then there before any rank starts."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _store(name: str) -> Any:
    """A client of the job's store, with keys of its own."""
    from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage] - a documented name

    if rank_number() == 0 and not _launcher_serves():
        _server()
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"sae/{restarts}/{name}", _client())


def meet(world: int) -> Watchdog:
    """Wait until every rank has come, then watch over them.

    Raises:
        RankError: a rank has not come within `SAE_RANKS_WAIT` seconds, or the launcher has gone.
    """
    global _group_number
    _group_number = next(_joins)
    rank, guard = rank_number(), Guard()
    try:
        if _launcher_serves():
            guard.expect_answer(TO_LAUNCHER + UNANSWERED)
        watchdog = _gathered(rank, world, _store(f"watch/{_group_number}"), guard)
    except RuntimeError as error:
        guard.stop()
        if isinstance(error, RankError):
            raise
        # the store's own errors
        raise RankError(f"rank {rank} ends, because the launcher's store was lost while ranks came: {error}") from error
    watchdog.start()
    return watchdog


def _gathered(rank: int, world: int, store: Any, guard: Guard) -> Watchdog:
    """Wait until every rank has written its first record."""
    guard.expect_answer()
    watchdog = Watchdog(store, rank, world, guard)
    store.add("come", 1)
    limit = seconds_from("SAE_RANKS_WAIT", 600.0)
    deadline = time.monotonic() + limit
    while (come := store.add("come", 0)) < world:
        guard.expect_answer()
        if time.monotonic() > deadline:
            missing = [number for number in range(world) if not store.check([key_of(number)])]
            shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise RankError(
                f"rank {rank} ends, because only {come} of {world} ranks have come within {limit:.0f} s; missing: "
                f"{shown}. See what those printed, or set SAE_RANKS_WAIT to more seconds"
            )
        time.sleep(0.1)
    return watchdog


def open_group(backend: str, world: int) -> None:
    """Open the process group."""
    from torch import distributed

    distributed.init_process_group(
        backend, store=_store(f"group/{_group_number}"), rank=rank_number(), world_size=world,
        timeout=datetime.timedelta(seconds=EXCHANGE_SECONDS),
    )  # fmt: skip
