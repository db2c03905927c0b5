"""Adam step on the CPU: one pass that reads and writes param, m and v once."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from sae_kernels.adam_step.naive import Adam
from sae_kernels.jit import jit, prange, sync_threads

CHUNK = 4096


def adam_step(
    param: Tensor, grad: Tensor, m: Tensor, v: Tensor, adam: Adam, scale: Tensor | None, unit_rows: bool
) -> None:
    """param, m, v <- one step of Adam, with a projected gradient and unit norm if `unit_rows`."""
    factor = 1.0 if scale is None else float(scale)
    if not math.isfinite(factor):
        return
    sync_threads(param.numel())
    views = [_rows(t, unit_rows) for t in (param, grad, m, v)]
    constants = adam_constants(adam)
    (_adam_unit_rows if unit_rows else adam_flat)(*views, constants, np.float32(factor))


def adam_constants(adam: Adam) -> np.ndarray:
    """beta1, 1-beta1, beta2, 1-beta2, lr/(1-beta1^t), 1/sqrt(1-beta2^t), eps, in fp32."""
    step, lr, beta1, beta2, eps = adam
    return np.array(
        [beta1, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step), eps], np.float32
    )


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
