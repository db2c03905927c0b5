"""The one place that picks a backend: by the device of the tensor at hand, when the op is called.

Every op keeps a dict of its implementations, `{"naive": ..., "cpu": ..., "gpu": ...}`; `choose` returns the one to run
and remembers it, so that a log can name it and a test can assert it:

    with use_backend("naive"):
        codes = topk_encode(x, W_enc, b_enc, k=32)
    assert last_backend("topk_encode") == "naive"
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

BACKENDS = ("naive", "cpu", "gpu")
_BY_DEVICE = {"cpu": "cpu", "cuda": "gpu"}
_forced: list[str] = []
_last: dict[str, str] = {}


def choose(op: str, tensor: Tensor, implementations: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The implementation of `op` for `tensor`: the forced backend, else the device's own, else the reference.

    Raises:
        ValueError: a backend was forced that this op does not have.
    """
    if _forced:
        backend = _forced[-1]
        if backend not in implementations:
            raise ValueError(f"{op} has no {backend!r} implementation; it has {', '.join(implementations)}")
    else:
        backend = _BY_DEVICE.get(tensor.device.type, "naive")
        if backend not in implementations:
            backend = "naive"
    _last[op] = backend
    return implementations[backend]


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
