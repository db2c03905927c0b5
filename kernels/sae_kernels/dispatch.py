"""The one place that picks a backend, at every call of an op, by the device and dtype of its tensors.

Every op keeps a dict of its implementations, `{"naive": function, "cpu": "package.module:function", ...}`. A string is
imported at its first use, so that numba and triton load late. `choose` returns the function to run and records the
backend's name, so that a log can print it and a test can assert it:

    with use_backend("naive"):
        codes = topk_encode(x, W_enc, b_enc, k=32)
    assert last_backend("topk_encode") == "naive"

The fast backends compute in fp32 and take fp32, bf16 and fp16; any other dtype (fp64) runs the reference. So do codes
that list more than `DENSE_ABOVE` of the N x F entries, for which the dense products of the reference are faster.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("naive", "cpu", "gpu")
FAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Measured on a 2-core CPU: a listed entry costs what ten entries cost in a dense product
DENSE_ABOVE = 0.1
_BY_DEVICE = {"cpu": "cpu", "cuda": "gpu"}
_forced: list[str] = []
_last: dict[str, str] = {}

Implementations = Mapping[str, Callable[..., Any] | str]


def backend_for(op: str, tensor: Tensor, implementations: Implementations, density: float = 0.0) -> str:
    """The forced backend; else the device's, if the op has one that takes the dtype; else "naive".

    `density` is the share of the N x F entries that the op's codes list.

    Raises:
        ValueError: the forced backend is one that this op does not have, or does not take the tensor's dtype.
    """
    if _forced:
        backend = _forced[-1]
        if backend not in implementations:
            raise ValueError(f"{op} has no {backend!r} implementation; it has {', '.join(implementations)}")
        if backend != "naive" and tensor.dtype not in FAST_DTYPES:
            raise ValueError(f"{op}: backend {backend!r} takes float32, bfloat16 and float16, not {tensor.dtype}")
        return backend
    backend = _BY_DEVICE.get(tensor.device.type, "naive")
    fast = backend in implementations and tensor.dtype in FAST_DTYPES and density <= DENSE_ABOVE
    return backend if fast else "naive"


def density_of(values: Tensor, offsets: Tensor | None, width: int) -> float:
    """Share of the N x F entries that rectangular or CSR codes list."""
    tokens = values.shape[0] if offsets is None else offsets.shape[0] - 1
    return values.numel() / max(tokens * width, 1)


def choose(op: str, tensor: Tensor, implementations: Implementations, density: float = 0.0) -> Callable[..., Any]:
    """The implementation of `op` for `tensor`; `last_backend` then returns the name of its backend."""
    backend = backend_for(op, tensor, implementations, density)
    note(op, backend)
    implementation = implementations[backend]
    return _load(implementation) if isinstance(implementation, str) else implementation


def note(op: str, backend: str) -> None:
    """Record that `backend` ran `op`."""
    _last[op] = backend


@functools.cache
def _load(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Force every op to one backend inside the block (for tests and comparisons)."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown; known: {', '.join(BACKENDS)}")
    _forced.append(backend)
    try:
        yield
    finally:
        _forced.pop()


def last_backend(op: str) -> str | None:
    """The backend that ran the last call of `op` in this process, or None if it was never called."""
    return _last.get(op)


def backends_used() -> dict[str, str]:
    """Op name -> backend of its last call, for the training log."""
    return dict(_last)


def no_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Turn autocast off: the ops accumulate in fp32 whatever the context, and inputs of two dtypes promote."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
