"""Matching pursuit on the CPU: inner products are updated from the atoms' Gram matrix.

After a step r <- r - f w_j every inner product changes by -f (w_j · w_i): one row of the Gram matrix instead of a
product with all atoms. A token's F inner products stay in the L1 or L2 cache through all its steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sae_kernels.dispatch import note
from sae_kernels.jit import jit, prange, sync_threads
from sae_kernels.pursue import naive
from sae_kernels.tiles import TILE_TOKENS

GRAM_BYTES = 2 << 30  # for a larger Gram matrix the reference runs
BLOCK = 64


def pursue(x: Tensor, W: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """values, indices [N, k] of k greedy steps: j = argmax w_j·r among atoms left, f = relu(w_j·r), r -= f w_j."""
    width = W.shape[0]
    if 4 * width * width > GRAM_BYTES:
        note("pursue", "naive")
        return naive.pursue(x, W, k)
    sync_threads(x.shape[0] * width)
    atoms = W.detach().float()
    gram = atoms @ atoms.T
    values, indices = torch.empty(x.shape[0], k), torch.empty(x.shape[0], k, dtype=torch.int64)
    for start in range(0, x.shape[0], TILE_TOKENS):
        tile = slice(start, start + TILE_TOKENS)
        products = x[tile].detach().float() @ atoms.T
        _steps(products.numpy(), gram.numpy(), values[tile].numpy(), indices[tile].numpy())
    return values.to(x.dtype), indices


@jit(parallel=True)
def _steps(products, gram, values, indices):
    """values, indices [n, k] from the inner products [n, F] of the tokens and all atoms, which are overwritten."""
    width = gram.shape[0]
    blocks = (width + BLOCK - 1) // BLOCK
    for n in prange(products.shape[0]):
        row = products[n]
        maxima = np.empty(blocks, np.float32)
        for b in range(blocks):
            maxima[b] = _block_max(row, b * BLOCK, min(width, (b + 1) * BLOCK))
        for t in range(values.shape[1]):
            best = 0
            for b in range(blocks):
                if maxima[b] > maxima[best]:
                    best = b
            j = best * BLOCK
            while row[j] != maxima[best] and j < width - 1:
                j += 1
            value = max(row[j], np.float32(0))
            values[n, t], indices[n, t] = value, j
            # -inf stays -inf, so no atom is selected twice
            row[j] = -np.inf
            for b in range(blocks):
                low, high = b * BLOCK, min(width, (b + 1) * BLOCK)
                for i in range(low, high):
                    row[i] -= value * gram[j, i]
                maxima[b] = _block_max(row, low, high)


@jit()
def _block_max(row, low, high):
    largest = row[low]
    for i in range(low + 1, high):
        largest = max(largest, row[i])
    return largest
