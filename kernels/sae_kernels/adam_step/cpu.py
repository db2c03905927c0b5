"""Adam step on the CPU: one pass that reads and writes param, m and v once."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sae_kernels.adam_step.naive import Adam
from sae_kernels.formats.cpu import expand, store
from sae_kernels.formats.naive import STRIDE
from sae_kernels.jit import jit, prange, sync_threads

CHUNK = 4096
ROWS = 256  # expanded to fp32 at a time, where the state is stored in fewer bits


def adam_step(
    param: Tensor, grad: Tensor, m: Tensor, v: Tensor, adam: Adam, scale: Tensor | None, unit_rows: bool
) -> None:
    """param, m, v <- one step of Adam, with a projected gradient and unit norm if `unit_rows`."""
    factor = 1.0 if scale is None else float(scale)
    if not math.isfinite(factor):
        return
    constants = adam_constants(adam)
    if param.dtype == m.dtype == torch.float32:
        sync_threads(param.numel())
        views = [_rows(t, unit_rows) for t in (param, grad, m, v)]
        (_adam_unit_rows if unit_rows else adam_flat)(*views, constants, np.float32(factor))
        return
    rows = [t.detach().view(-1, t.shape[-1]) for t in (param, grad.float().contiguous(), m, v)]
    width = param.shape[-1]
    for first in range(0, rows[0].shape[0], ROWS):
        p, g, *moments = (t[first : first + ROWS] for t in rows)
        stored = list(zip((p, *moments), ("w", "m", "v"), strict=True))
        new, *state = (expand(t, kind, kind) for t, kind in stored)
        arrays = new, g.numpy(), *state
        sync_threads(p.numel())
        if unit_rows:
            _adam_unit_rows(*arrays, constants, np.float32(factor))
        else:
            adam_flat(*(array.reshape(-1) for array in arrays), constants, np.float32(factor))
        place = np.uint32((int(seed_of(adam)) + first * width) & 0xFFFFFFFF)
        for (t, kind), array in zip(stored, (new, *state), strict=True):
            store(array, t, kind, place)


def adam_constants(adam: Adam) -> np.ndarray:
    """beta1, 1-beta1, beta2, 1-beta2, lr/(1-beta1^t), 1/sqrt(1-beta2^t), eps, in fp32."""
    step, lr, beta1, beta2, eps, _ = adam
    return np.array(
        [beta1, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step), eps], np.float32
    )


def seed_of(adam: Adam) -> np.uint32:
    """Where the places of this step start, in `noise` of formats/naive.py."""
    return np.uint32(adam.step * STRIDE & 0xFFFFFFFF)


def _rows(tensor: Tensor, unit_rows: bool) -> np.ndarray:
    array = tensor.detach().numpy()
    return array if unit_rows else array.reshape(-1)


@jit(parallel=True)
def adam_flat(param, grad, m, v, constants, scale):
    """Adam in place on flat fp32 arrays."""
    b1, c1, b2, c2, rate, root, eps = constants
    size = param.shape[0]
    for chunk in prange((size + CHUNK - 1) // CHUNK):
        for i in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, size)):
            g = grad[i] * scale
            m[i] = b1 * m[i] + c1 * g
            v[i] = b2 * v[i] + c2 * g * g
            param[i] -= rate * m[i] / (np.sqrt(v[i]) * root + eps)


# exact order: under fastmath the code compiled in this process and its cached copy multiplied in different orders
@jit(fastmath=False)
def _second_moment(v, gradient, beta, rest):
    return beta * v + rest * gradient * gradient


@jit(parallel=True)
def _adam_unit_rows(param, grad, m, v, constants, scale):
    """Adam in place on fp32 rows [F, d] of unit norm."""
    b1, c1, b2, c2, rate, root, eps = constants
    width = param.shape[1]
    for f in prange(param.shape[0]):
        p, g, m_row, v_row = param[f], grad[f], m[f], v[f]
        along = np.float32(0)
        for j in range(width):
            along += g[j] * p[j]
        along *= scale
        square = np.float32(0)
        for j in range(width):
            part = g[j] * scale - along * p[j]
            first = b1 * m_row[j] + c1 * part
            second = _second_moment(v_row[j], part, b2, c2)
            m_row[j], v_row[j] = first, second
            new = p[j] - rate * first / (np.sqrt(second) * root + eps)
            p[j] = new
            square += new * new
        shrink = np.float32(1) / max(np.sqrt(square), np.float32(1.1754944e-38))
        for j in range(width):
            p[j] *= shrink
