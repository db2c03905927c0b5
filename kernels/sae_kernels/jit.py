"""Numba's settings: the threading layer, the number of threads, the compile cache.

Every `cpu.py` takes `jit`, `prange` and `sync_threads` from here. Numba is imported only when a CPU op is called for
the first time, so that `import sae_kernels` is fast.

- Threading layer: OpenMP. When numba binds to GOMP_parallel, torch has already loaded libgomp into the process's global
  scope, so both share one pool of threads, and a thread that spins after a torch product takes up the next numba loop
  at once.
- Threads: at every call numba's number of threads is set to torch's, for the calling thread. `torch.set_num_threads`
  and OMP_NUM_THREADS change it; torch's own number is never changed.
- Compile cache: beside the package, or in the user's cache folder if the package is read-only (NUMBA_CACHE_DIR
  overrides). If neither can be written, every process compiles again. Numba keys the cache by the source file of the
  compiled function alone, so a kernel may call only jitted helpers of its own module.
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

# scalar operations below which one thread is faster; torch has the same threshold
LITTLE_WORK = 1 << 15
# contract: fused multiply-add; reassoc: sums in vector lanes; neither assumes away NaN, Inf or signed zero
_FASTMATH = {"contract", "reassoc"}

if config.THREADING_LAYER == "default":  # an explicit NUMBA_THREADING_LAYER wins
    try:
        from numba.np.ufunc import omppool as _omppool  # noqa: F401  raises where this build of numba has no OpenMP

        config.THREADING_LAYER = "omp"
    except ImportError:
        pass


# when numba starts its threads, it sets the OpenMP thread count of the calling thread, which torch shares: so a thread
# that ends at once makes this call
_thread_start = threading.Thread(target=parallel._launch_threads)
_thread_start.start()
_thread_start.join()
# without libgomp (a bare Debian) numba falls back to its own work queue, which only one thread may enter at a time
_workqueue_lock = threading.RLock()


def jit(*, parallel: bool = False, fastmath: bool = True) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: compile at the first call, release the GIL, and cache the machine code on disk if possible."""

    def decorate(function: Callable[..., Any]) -> Any:
        # numpy's error model: division by zero gives inf, which lets loops that divide be vectorised
        options = {"parallel": parallel, "nogil": True, "error_model": "numpy"}
        options["fastmath"] = _FASTMATH if fastmath else False
        try:
            compiled = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # "cannot cache function: no locator available": no writable folder at all
            compiled = numba.njit(**options)(function)
        return _locked(compiled) if parallel and numba.threading_layer() == "workqueue" else compiled

    return decorate


def _locked(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """A parallel kernel behind a lock: numba's own work queue aborts the process if two threads enter it."""

    @functools.wraps(compiled)
    def run(*arguments: Any) -> Any:
        with _workqueue_lock:
            return compiled(*arguments)

    return run


def sync_threads(work: int | None = None) -> int:
    """Give numba as many threads as torch has (at most as many as numba started with); returns that number.

    It is one if `work`, roughly the number of scalar operations, is small: waking threads then costs more than they
    save, above all on a busy machine.
    """
    threads = min(torch.get_num_threads(), config.NUMBA_NUM_THREADS)
    if work is not None and work < LITTLE_WORK:
        threads = 1
    if threads != numba.get_num_threads():
        numba.set_num_threads(threads)
    return threads
