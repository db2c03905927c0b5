"""What the measures share: codes [n, L] and factors [n, K] as checked arrays, which latents live, held-out samples."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from torch import Tensor

from sae.evaluation.arrays import to_numpy

Array: TypeAlias = np.ndarray | Tensor


def checked(codes: Array, factors: Array) -> tuple[np.ndarray, np.ndarray]:
    """Codes as floating point [n, L], and factors with their values numbered from 0 as int64 [n, K].

    Raises:
        ValueError: other shapes or kinds, no samples, codes that aren't finite, fewer than two factors, or a factor
            with one value.
    """
    z, v = to_numpy(codes), to_numpy(factors)
    if z.ndim != 2 or v.ndim != 2 or len(z) != len(v) or len(z) == 0:
        raise ValueError(
            f"expected codes [n, L] and factors [n, K] of the same n > 0 samples, got {z.shape}, {v.shape}"
        )
    if not np.issubdtype(v.dtype, np.integer):
        raise ValueError(f"factors: expected integers, the index of every factor's value, got {v.dtype}")
    if v.shape[1] < 2:
        raise ValueError(f"factors {v.shape}: expected at least two columns; one factor can't be confused with another")
    z = z if np.issubdtype(z.dtype, np.floating) else z.astype(np.float64)
    if not np.isfinite(z).all():
        raise ValueError(f"codes: expected finite numbers, got {np.count_nonzero(~np.isfinite(z))} that are not")
    numbered = np.stack([np.unique(column, return_inverse=True)[1] for column in v.T], axis=1).astype(np.int64)
    if (numbered.max(0) == 0).any():
        constant = np.flatnonzero(numbered.max(0) == 0).tolist()
        raise ValueError(f"factors: columns {constant} have one value only in these samples; leave them out")
    return z, numbered


def live_latents(codes: Array) -> np.ndarray:
    """Which latents ever vary over the samples, bool [L]; a latent that is zero throughout is dead."""
    z = to_numpy(codes)
    return z.max(0) > z.min(0)


def split(n: int, train: int, test: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint seeded draws of at most `train` and `test` of n samples, in proportion where n is less than both.

    Raises:
        ValueError: n, `train` or `test` leave a side empty.
    """
    fitted = min(train, n * train // max(train + test, 1))
    held = min(test, n - fitted)
    if fitted < 1 or held < 1:
        raise ValueError(f"train={train}, test={test}: {n} samples leave nothing to fit or nothing to hold out")
    order = np.random.default_rng(seed).permutation(n)
    return order[:fitted], order[fitted : fitted + held]
