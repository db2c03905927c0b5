"""Numba, set up once: the threading layer, the number of threads, the compile cache.

Every `cpu.py` takes `jit`, `prange` and `sync_threads` from here; nothing else imports numba, and nothing imports this
module before a CPU op is called for the first time, so that `import sae_kernels` stays light.

- Threading layer: OpenMP. torch's libgomp is in the process's global scope by the time numba binds to GOMP_parallel,
  so both share one pool of threads, and a worker that spins after a torch product picks up the next numba loop at once.
- Threads: numba's count follows torch's at every call, for the thread that calls (`torch.set_num_threads` and
  OMP_NUM_THREADS are the knobs); torch's own is never touched.
- Compile cache: beside the package, or in the user's cache folder where that is read-only (NUMBA_CACHE_DIR overrides);
  where neither can be written, functions are compiled again in each process. Numba keys the cache by the source file
  of the compiled function alone, so kernels may call jitted helpers of their own module only.
"""

# numba makes the attributes of its config at run time
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import numba
import torch
from numba import config, prange
from numba.np.ufunc import parallel

__all__ = ["jit", "prange", "sync_threads"]

# torch, too, starts threads from 32768 elements on
LITTLE_WORK = 1 << 15
# contract: fused multiply-add; reassoc: sums in vector lanes; neither assumes away NaN, Inf or signed zero
_FASTMATH = {"contract", "reassoc"}

if config.THREADING_LAYER == "default":  # an explicit NUMBA_THREADING_LAYER wins
    try:
        from numba.np.ufunc import omppool as _omppool  # noqa: F401  raises where this build of numba has no OpenMP

        config.THREADING_LAYER = "omp"
    except ImportError:
        pass


# starting its threads, numba sets OpenMP's number of threads, torch's too, for the thread that it is called in: so that
# happens in one that ends at once
_starting = threading.Thread(target=parallel._launch_threads)
_starting.start()
_starting.join()
# where the system has no libgomp (a bare Debian), numba falls back to its own work queue, which is not for two threads
_entered = threading.RLock()


def jit(*, parallel: bool = False, fastmath: bool = True) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: compile at first call, release the GIL, keep the machine code on disk where that is possible."""

    def decorate(function: Callable[..., Any]) -> Any:
        # numpy's error model: division by zero gives inf, and loops that divide can be vectorised
        options = {"parallel": parallel, "nogil": True, "error_model": "numpy"}
        options["fastmath"] = _FASTMATH if fastmath else False
        try:
            compiled = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # "cannot cache function: no locator available": no writable folder at all
            compiled = numba.njit(**options)(function)
        return _alone(compiled) if parallel and numba.threading_layer() == "workqueue" else compiled

    return decorate


def _alone(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """A parallel kernel, one thread in it at a time: numba's own work queue ends the process where two enter it."""

    @functools.wraps(compiled)
    def run(*arguments: Any) -> Any:
        with _entered:
            return compiled(*arguments)

    return run


def sync_threads(work: int | None = None) -> int:
    """Give numba as many threads as torch has (no more than numba started with); returns that number.

    One for little work (`work` in scalar operations, about): waking threads costs more than it brings, and far more on
    a machine that is busy.
    """
    threads = min(torch.get_num_threads(), config.NUMBA_NUM_THREADS)
    if work is not None and work < LITTLE_WORK:
        threads = 1
    if threads != numba.get_num_threads():
        numba.set_num_threads(threads)
    return threads
