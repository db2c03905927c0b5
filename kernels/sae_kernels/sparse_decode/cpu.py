"""Sparse decode on the CPU: one thread a token sums the token's atoms."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sae_kernels.codes import SparseCodes
from sae_kernels.jit import jit, prange, sync_threads


def sparse_decode(values: Tensor, indices: Tensor, offsets: Tensor | None, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """out [N, d] = f W_dec + b_dec."""
    sync_threads(values.numel() * W_dec.shape[1])
    dtype = torch.promote_types(values.dtype, W_dec.dtype)
    codes = SparseCodes(values, indices, W_dec.shape[0], offsets)
    out = torch.empty(codes.tokens, W_dec.shape[1], dtype=torch.float32)
    _decode(
        as_numpy(values).reshape(-1),
        indices.contiguous().numpy().reshape(-1),
        token_starts(codes),
        as_numpy(W_dec),
        as_numpy(b_dec),
        out.numpy(),
    )
    return out.to(dtype)


def token_starts(codes: SparseCodes) -> np.ndarray:
    """The first entry of every token, and the number of entries, int64 [N+1]: the offsets of CSR codes."""
    if codes.offsets is None:
        return np.arange(codes.tokens + 1) * codes.values.shape[1]
    return codes.offsets.contiguous().numpy()


def as_numpy(tensor: Tensor):
    """The tensor as a contiguous fp32 array, without a copy if it is one already."""
    return tensor.detach().to(torch.float32).contiguous().numpy()


@jit(parallel=True)
def _decode(values, indices, starts, W, b, out):
    """out[n] = b + Σ_i values[i] W[indices[i]] over the entries i of token n."""
    width = W.shape[1]
    for n in prange(out.shape[0]):
        row = out[n]
        row[:] = b
        i, stop = starts[n], starts[n + 1]
        # four atoms at a time, so that the row is read and written once for all four
        while i + 4 <= stop:
            w0, w1, w2, w3 = W[indices[i]], W[indices[i + 1]], W[indices[i + 2]], W[indices[i + 3]]
            f0, f1, f2, f3 = values[i], values[i + 1], values[i + 2], values[i + 3]
            for j in range(width):
                row[j] += (f0 * w0[j] + f1 * w1[j]) + (f2 * w2[j] + f3 * w3[j])
            i += 4
        while i < stop:
            w0, f0 = W[indices[i]], values[i]
            for j in range(width):
                row[j] += f0 * w0[j]
            i += 1
