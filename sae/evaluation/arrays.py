"""What the measures take in: arrays and tensors as finite float64 arrays, named where they are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from sae.fields import ConfigError


def table(values: Any, name: str, *, ndim: int = 2) -> np.ndarray:
    """An array or tensor (of any device, with or without gradient) as float64 on the CPU.

    Args:
        values: [n, d] or whatever `ndim` axes there should be, at least one row.
        name: what a refusal calls it.

    Raises:
        ConfigError: another number of axes, no row, or a value that is not finite.
    """
    given = values.detach().cpu() if isinstance(values, Tensor) else values
    array = np.asarray(given, dtype=np.float64)
    if array.ndim != ndim or array.shape[0] == 0:
        raise ConfigError(f"{name}: expected {ndim} axes and at least one row, got shape {array.shape}")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ConfigError(
            f"{name}: {bad} of {array.size} values are not finite; leave those rows out or mend the model"
        )
    return array


def labels(values: Any, rows: int, name: str = "labels") -> np.ndarray:
    """Class labels [n], of any type, one for each of `rows` rows.

    Raises:
        ConfigError: another shape.
    """
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    if array.shape != (rows,):
        raise ConfigError(f"{name}: expected one for each of the {rows} rows, got shape {array.shape}")
    return array
