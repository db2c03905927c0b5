"""Inputs of the measures: arrays and tensors as finite float64 arrays, named in refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sae.config import ConfigError
from sae_kernels import SparseCodes

Matrix = Any  # np.ndarray or sparse.csr_matrix, which has no types
SPARSE_BELOW = 0.1  # share of non-zero values below which codes become a sparse matrix


def to_numpy(values: Any) -> np.ndarray:
    """An array, a list, or a tensor of any device and layout, with or without gradient, as an array on the CPU."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    here = values.detach().cpu()
    dense = here if here.layout == torch.strided else here.to_dense()
    # numpy has no bfloat16
    return (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()


def table(values: Any, name: str, *, ndim: int = 2) -> np.ndarray:
    """An array or tensor (of any device, with or without gradient) as float64 on the CPU.

    Args:
        values: [n, d], or any shape with `ndim` axes, and at least one row.
        name: its name in a refusal.

    Raises:
        ConfigError: another number of axes, no row, or a value that is not finite.
    """
    array = np.asarray(to_numpy(values), dtype=np.float64)
    if array.ndim != ndim or array.shape[0] == 0:
        raise ConfigError(f"{name}: expected {ndim} axes and at least one row, got shape {array.shape}")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ConfigError(
            f"{name}: {bad} of {array.size} values are not finite; leave those rows out or repair the model"
        )
    return array


def labels(values: Any, rows: int, name: str = "labels") -> np.ndarray:
    """Class labels [n], of any type, one for each of `rows` rows.

    Raises:
        ConfigError: another shape.
    """
    array = to_numpy(values)
    if array.shape != (rows,):
        raise ConfigError(f"{name}: expected one for each of the {rows} rows, got shape {array.shape}")
    return array


def matrix(codes: Any, name: str) -> Matrix:
    """Codes [n, F] as float64: a sparse.csr_matrix where few are non-zero, so that wide dictionaries stay cheap.

    Args:
        codes: SparseCodes, a scipy sparse matrix, a tensor of any layout, or an array.
        name: its name in a refusal.

    Raises:
        ConfigError: not two axes, no row, or a value that is not finite.
    """
    if isinstance(codes, SparseCodes):
        places = (codes.rows().reshape(-1).cpu().numpy(), codes.indices.reshape(-1).cpu().numpy())
        values = codes.values.detach().reshape(-1).cpu().double().numpy()
        codes = sparse.csr_matrix((values, places), shape=(codes.tokens, codes.width))
    if not sparse.issparse(codes):
        dense = to_numpy(codes)
        if dense.ndim != 2 or np.count_nonzero(dense) >= SPARSE_BELOW * dense.size:
            return table(dense, name)
        codes = dense
    result: Matrix = sparse.csr_matrix(codes, dtype=np.float64)
    result.eliminate_zeros()
    if result.shape[0] == 0:
        raise ConfigError(f"{name}: expected at least one sample, got none")
    if result.nnz:
        table(result.data, name, ndim=1)
    return result


def entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy of counts over the last axis, nats."""
    share = counts / counts.sum(-1, keepdims=True)
    return -np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0).sum(-1)
