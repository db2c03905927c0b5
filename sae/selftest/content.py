"""What a reader returned, as one hash: two reads gave the same exactly if their hashes are equal."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


def fingerprint(value: Any) -> str:
    """Hex SHA-256 of a value made of tensors, arrays, numbers, text, bytes, None, and containers of such.

    Raises:
        TypeError: it holds something else.
    """
    digest = hashlib.sha256()
    _add(digest, value)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        whole = value.detach().cpu().contiguous()
        digest.update(f"tensor {whole.dtype} {tuple(whole.shape)}:".encode())
        digest.update(whole.reshape(-1).view(torch.uint8).numpy().tobytes() if whole.numel() else b"")
    elif isinstance(value, np.ndarray):
        digest.update(f"array {value.dtype.str} {value.shape}:".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, (type(None), bool, int, float, str, bytes, Path, np.generic)):
        written = f"{type(value).__name__} {value!r}"
        digest.update(f"{len(written)} {written}".encode("utf-8", "surrogatepass"))
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)}:".encode())
        for name in sorted(value, key=repr):
            _add(digest, name)
            _add(digest, value[name])
    elif isinstance(value, (set, frozenset)):
        _add(digest, sorted(value, key=repr))
    elif isinstance(value, (list, tuple)):
        digest.update(f"sequence {len(value)}:".encode())
        for item in value:
            _add(digest, item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _add(digest, {field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    else:
        raise TypeError(f"no fingerprint of a {type(value).__name__}")
