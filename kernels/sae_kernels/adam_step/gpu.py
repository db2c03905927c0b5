"""Adam step in Triton: one pass that reads param, grad, m and v and writes param, m and v; unit norm included."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.adam_step.naive import Adam, fill_numbers
from sae_kernels.formats.gpu import load_moment, store_moments, store_weight
from sae_kernels.formats.naive import MOMENTS
from sae_kernels.launch import device_of, launch

# the largest finite fp32: abs(x) <= it is false for NaN and infinity
_LARGEST = tl.constexpr(3.4028234663852886e38)
_TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def adam_update(b_param, b_grad, b_m, b_v, beta1, rest1, beta2, rest2, rate, root, eps):
    """(param, m, v) after one step; rest = 1 - beta, rate and root are from `step_numbers`."""
    b_m = beta1 * b_m + rest1 * b_grad
    b_v = beta2 * b_v + rest2 * b_grad * b_grad
    return b_param - rate * b_m / (tl.sqrt_rn(b_v) * root + eps), b_m, b_v


@triton.jit
def adam_unit_rows(b_param, b_grad, b_m, b_v, beta1, rest1, beta2, rest2, rate, root, eps):
    """The same on rows [R, d] of unit norm: the gradient is projected orthogonally to the row, the norm restored."""
    b_grad = b_grad - tl.sum(b_grad * b_param, 1)[:, None] * b_param
    b_param, b_m, b_v = adam_update(b_param, b_grad, b_m, b_v, beta1, rest1, beta2, rest2, rate, root, eps)
    b_norm = tl.maximum(tl.sqrt_rn(tl.sum(b_param * b_param, 1)), _TINY)
    return b_param / b_norm[:, None], b_m, b_v


@triton.jit
def step_numbers(numbers):
    """rate = lr/(1-beta1^t), root = 1/sqrt(1-beta2^t) and the seed of a step, from `fill_numbers`."""
    rate = tl.load(numbers).to(tl.float32, bitcast=True)
    return rate, tl.load(numbers + 1).to(tl.float32, bitcast=True), tl.load(numbers + 2)


@triton.jit
def _adam(
    param, grad, m, v, scale, size, d, numbers, beta1, rest1, beta2, rest2, eps,
    HAS_SCALE: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One step on ROWS rows of arrays of `size` elements, d a row; writes nothing if the scale is not finite."""
    rate, root, seed = step_numbers(numbers)
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_d = tl.arange(0, BLOCK_D)
    o = o_row[:, None].to(tl.int64) * d + o_d[None, :]
    limit = size
    if HAS_SCALE:
        factor = tl.load(scale).to(tl.float32)
        limit = tl.where(tl.abs(factor) <= _LARGEST, size, 0)
    mask = (o < limit) & (o_d < d)[None, :]
    b_param = tl.load(param + o, mask=mask, other=0.0).to(tl.float32)
    b_grad = tl.load(grad + o, mask=mask, other=0.0).to(tl.float32)
    if HAS_SCALE:
        b_grad *= factor
    o_rows = o_row[:, None].to(tl.int64)
    m_rows = o_rows * d < limit
    b_m = load_moment(m, o_rows, o_d[None, :], d, m_rows, mask, False)
    b_v = load_moment(v, o_rows, o_d[None, :], d, m_rows, mask, True)
    if UNIT:
        b_param, b_m, b_v = adam_unit_rows(b_param, b_grad, b_m, b_v, beta1, rest1, beta2, rest2, rate, root, eps)
    else:
        b_param, b_m, b_v = adam_update(b_param, b_grad, b_m, b_v, beta1, rest1, beta2, rest2, rate, root, eps)
    place = (o + seed).to(tl.uint32)
    store_weight(param + o, b_param, place, mask)
    store_moments(m, v, b_m, b_v, o_rows, o_d[None, :], d, place, m_rows, mask, 1)


def adam_constants(adam: Adam, device: torch.device) -> dict[str, Any]:
    """The arguments of a step in both kernels, by name: decay and epsilon, and in memory what changes with the step."""
    numbers = adam.numbers
    if numbers is None:
        numbers = fill_numbers(torch.empty(3, dtype=torch.int32, device=device), adam)
    betas = {"beta1": float(adam.beta1), "rest1": 1.0 - adam.beta1, "beta2": float(adam.beta2)}
    return betas | {"rest2": 1.0 - adam.beta2, "eps": float(adam.eps), "numbers": numbers}


def adam_step(
    param: Tensor, grad: Tensor, m: Tensor, v: Tensor, adam: Adam, scale: Tensor | None, unit_rows: bool
) -> None:
    """param, m, v <- one step of Adam, with a projected gradient and unit norm if `unit_rows`.

    It moves 28 bytes a parameter with an fp32 gradient.

    Raises:
        ValueError: param, m or v is not contiguous, or in no format that is offered.
    """
    for name, tensor, formats in (("param", param, MOMENTS[:2]), ("m", m, MOMENTS), ("v", v, MOMENTS)):
        if tensor.dtype not in formats or not tensor.is_contiguous():
            known = ", ".join(str(dtype) for dtype in formats)
            raise ValueError(f"{name}: expected contiguous {known}; got {tensor.dtype}, strides {tensor.stride()}")
    if param.numel() == 0:
        return
    # without rows to normalise, or that share an exponent: blocks of 1024 elements, the last one masked
    by_rows = unit_rows or m.dtype == torch.uint8
    d = param.shape[1] if by_rows else 1024
    block = triton.next_power_of_2(d)
    rows = triton.cdiv(param.numel(), d)
    height = max(1, 1024 // block)
    arrays = {"param": param, "grad": grad.contiguous(), "m": m, "v": v}
    lanes = 64 if device_of(param).name.startswith("gfx") else 32
    # whole rows keep twice as many values in registers, which spill with eight a lane
    per_lane = 4 if by_rows or lanes == 64 else 8
    launch(
        _adam,
        (triton.cdiv(rows, height),),
        arrays
        | {"scale": param if scale is None else scale.to(param.device), "size": param.numel(), "d": d}
        | adam_constants(adam, param.device),
        {"HAS_SCALE": scale is not None, "UNIT": unit_rows, "ROWS": height, "BLOCK_D": block},
        warps=max(1, min(16, block * height // (lanes * per_lane))),
    )
