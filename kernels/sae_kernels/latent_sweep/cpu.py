"""Latent sweep on the CPU: a counting sort by latent; then one thread sums a latent's rows in the order of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae_kernels.codes import SparseCodes
from sae_kernels.jit import jit, prange, sync_threads
from sae_kernels.sparse_decode.cpu import as_numpy, token_starts


def latent_sweep(
    codes: SparseCodes, grad_out: Tensor | None, W_dec: Tensor | None, x: Tensor | None, grad_values: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """grad_W_dec = f^T g; grad_values = (g W_dec^T) at the codes' entries; grad_W_enc = δ^T x; grad_b_enc = Σ_n δ_n.

    All in fp32; δ are the gradients of the pre-activations, grad_values where f is not <= 0.
    """
    rows = next(tensor for tensor in (grad_out, x) if tensor is not None)
    values, width = codes.values, codes.width
    sync_threads((values.numel() + width) * rows.shape[1])
    starts = token_starts(codes)
    order = LatentOrder(codes.indices, starts, width)
    flat_values = as_numpy(values).reshape(-1)
    grad_W_dec = grad_W_enc = grad_b_enc = None
    if grad_out is not None:
        rows = as_numpy(grad_out)
        if W_dec is not None:
            grad_values = torch.empty(values.shape)
            _dots(starts, order.indices, rows, as_numpy(W_dec), grad_values.numpy().reshape(-1))
        grad_W_dec = torch.empty(width, rows.shape[1])
        _sum_rows(order.bounds, order.parts, order.tokens, order.entries, flat_values, rows, grad_W_dec.numpy())
    if x is not None and grad_values is not None:
        through = torch.where(values <= 0, 0, grad_values.to(torch.float32))
        flat = through.contiguous().numpy().reshape(-1)
        rows = as_numpy(x)
        grad_W_enc, grad_b_enc = torch.empty(width, rows.shape[1]), torch.empty(width)
        _sum_rows(order.bounds, order.parts, order.tokens, order.entries, flat, rows, grad_W_enc.numpy())
        _sum_entries(order.bounds, order.entries, flat, grad_b_enc.numpy())
    return grad_W_dec, grad_values, grad_W_enc, grad_b_enc


class LatentOrder:
    """The entries of a batch's codes sorted by latent, in the order of their tokens within a latent."""

    def __init__(self, indices: Tensor, starts: Any, width: int) -> None:
        """`indices` int64 of rectangular or CSR codes, `starts` their CSR offsets [N+1] as an array."""
        self.indices = indices.contiguous().numpy().reshape(-1)
        """Latent of every entry, in the order of the codes [nnz]."""
        entries = self.indices.shape[0]
        self.bounds = torch.empty(width + 1, dtype=torch.int64).numpy()
        """The sorted entries of latent j are bounds[j]:bounds[j+1]."""
        self.tokens = torch.empty(entries, dtype=torch.int64).numpy()
        """Token of every sorted entry [nnz]."""
        self.entries = torch.empty(entries, dtype=torch.int64).numpy()
        """Place of every sorted entry in the codes [nnz]."""
        _counting_sort(self.indices, starts, self.bounds, self.tokens, self.entries)
        self.parts = torch.empty(PARTS + 1, dtype=torch.int64).numpy()
        """Part p are the latents parts[p]:parts[p+1]; all parts take about the same time."""
        _split(self.bounds, self.parts)


# number of parts of the latents, the units of work of a thread: fixed, so that sums over parts do not depend on threads
PARTS = 64


@jit()
def _counting_sort(indices, starts, bounds, tokens, entries):
    """Fill bounds, tokens and entries of a LatentOrder."""
    bounds[:] = 0
    for i in range(indices.shape[0]):
        bounds[indices[i] + 1] += 1
    for j in range(1, bounds.shape[0]):
        bounds[j] += bounds[j - 1]
    # this moves bounds[j] from the start of latent j to its end, which is the start of latent j + 1
    for n in range(starts.shape[0] - 1):
        for i in range(starts[n], starts[n + 1]):
            place = bounds[indices[i]]
            tokens[place] = n
            entries[place] = i
            bounds[indices[i]] = place + 1
    for j in range(bounds.shape[0] - 1, 0, -1):
        bounds[j] = bounds[j - 1]
    bounds[0] = 0


@jit()
def _split(bounds, parts):
    """Divide the latents into parts of about equal work."""
    width, count = bounds.shape[0] - 1, parts.shape[0] - 1
    # a latent costs its entries plus four: its weights and moments are read and written
    total = bounds[width] + 4 * width
    part = 1
    parts[0] = 0
    for j in range(width):
        while part < count and (bounds[j] + 4 * j) * count >= total * part:
            parts[part] = j
            part += 1
    for p in range(part, count + 1):
        parts[p] = width


@jit(parallel=True)
def _dots(starts, indices, rows, W, out):
    """out[i] = rows[n] · W[indices[i]] for every entry i of token n."""
    width = W.shape[1]
    for n in prange(starts.shape[0] - 1):
        row = rows[n]
        for i in range(starts[n], starts[n + 1]):
            w = W[indices[i]]
            total = row.dtype.type(0)
            for j in range(width):
                total += row[j] * w[j]
            out[i] = total


@jit(parallel=True)
def _sum_rows(bounds, parts, tokens, entries, values, rows, out):
    """out[f] = Σ values[i] rows[n] over the entries i of latent f, n being their tokens."""
    width = out.shape[1]
    for p in prange(parts.shape[0] - 1):
        for f in range(parts[p], parts[p + 1]):
            total = out[f]
            total[:] = 0
            for i in range(bounds[f], bounds[f + 1]):
                row, value = rows[tokens[i]], values[entries[i]]
                for j in range(width):
                    total[j] += value * row[j]


@jit(parallel=True)
def _sum_entries(bounds, entries, values, out):
    """out[f] = Σ values[i] over the entries i of latent f."""
    for f in prange(out.shape[0]):
        total = values.dtype.type(0)
        for i in range(bounds[f], bounds[f + 1]):
            total += values[entries[i]]
        out[f] = total
