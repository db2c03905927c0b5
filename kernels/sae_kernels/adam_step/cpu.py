"""Adam step on the CPU: one pass that reads and writes param, m and v once."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sae_kernels.adam_step.naive import STRIDE, Adam
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
    constants = adam_constants(adam)
    if m.dtype == torch.bfloat16:
        rows = param.detach().view(-1, param.shape[-1]).numpy(), grad.detach().float().view(-1, param.shape[-1]).numpy()
        _adam_short(*rows, short_view(m), short_view(v), constants, np.float32(factor), unit_rows, seed_of(adam))
        return
    views = [_rows(t, unit_rows) for t in (param, grad, m, v)]
    (_adam_unit_rows if unit_rows else adam_flat)(*views, constants, np.float32(factor))


def adam_constants(adam: Adam) -> np.ndarray:
    """beta1, 1-beta1, beta2, 1-beta2, lr/(1-beta1^t), 1/sqrt(1-beta2^t), eps, in fp32."""
    step, lr, beta1, beta2, eps = adam
    return np.array(
        [beta1, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step), eps], np.float32
    )


def short_view(moment: Tensor) -> np.ndarray:
    """The bits of a bf16 moment as rows, uint16."""
    return moment.detach().view(torch.int16).view(-1, moment.shape[-1]).numpy().view(np.uint16)


def seed_of(adam: Adam) -> np.uint32:
    """Where the places of this step start, in `noise` of naive.py."""
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


@jit()
def _expand(short, bits):
    """The fp32 bits of bf16 numbers."""
    for j in range(bits.shape[0]):
        bits[j] = np.uint32(short[j]) << np.uint32(16)


@jit()
def _round(m_bits, v_bits, m_short, v_short, place):
    """fp32 bits of both moments to bf16 at random, as `rounded` in adam_step/naive.py; `place` of the first, uint32."""
    for j in range(m_bits.shape[0]):
        h = np.uint32(place + np.uint32(j))
        h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
        h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
        h = h ^ (h >> np.uint32(16))
        m_short[j] = np.uint16(np.uint32(m_bits[j] + (h & np.uint32(0xFFFF))) >> np.uint32(16))
        v_short[j] = np.uint16(np.uint32(v_bits[j] + (h >> np.uint32(16))) >> np.uint32(16))


@jit(parallel=True)
def _adam_short(param, grad, m, v, constants, scale, unit_rows, seed):
    """Adam in place on rows with moments in bf16, uint16 [rows, d]."""
    b1, c1, b2, c2, rate, root, eps = constants
    width = param.shape[1]
    for f in prange(param.shape[0]):
        p, g = param[f], grad[f]
        m_row, v_row = np.empty(width, np.float32), np.empty(width, np.float32)
        _expand(m[f], m_row.view(np.uint32))
        _expand(v[f], v_row.view(np.uint32))
        along = np.float32(0)
        if unit_rows:
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
        if unit_rows:
            shrink = np.float32(1) / max(np.sqrt(square), np.float32(1.1754944e-38))
            for j in range(width):
                p[j] *= shrink
        _round(m_row.view(np.uint32), v_row.view(np.uint32), m[f], v[f], np.uint32(seed + np.uint32(f * width)))
