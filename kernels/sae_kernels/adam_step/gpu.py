"""Adam step in Triton: one pass that reads param, grad, m and v and writes param, m and v; unit norm included."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.adam_step.naive import STRIDE, Adam
from sae_kernels.launch import device_of, launch

# the largest finite fp32: abs(x) <= it is false for NaN and infinity
_LARGEST = tl.constexpr(3.4028234663852886e38)
_TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def adam_update(b_param, b_grad, b_m, b_v, beta1, rest1, beta2, rest2, rate, root, eps):
    """(param, m, v) after one step; rest = 1 - beta, rate = lr/(1-beta1^t), root = 1/sqrt(1-beta2^t)."""
    b_m = beta1 * b_m + rest1 * b_grad
    b_v = beta2 * b_v + rest2 * b_grad * b_grad
    return b_param - rate * b_m / (tl.sqrt_rn(b_v) * root + eps), b_m, b_v


@triton.jit
def store_moments(p_m, p_v, b_m, b_v, place, mask):
    """Store both moments; in bf16 rounded at random as in naive.py, where `place` counts the elements, uint32."""
    if p_m.dtype.element_ty == tl.bfloat16:
        b_h = place
        b_h = (b_h ^ (b_h >> 16)) * 0x7FEB352D
        b_h = (b_h ^ (b_h >> 15)) * 0x846CA68B
        b_h = b_h ^ (b_h >> 16)
        b_m = (b_m.to(tl.uint32, bitcast=True) + (b_h & 0xFFFF)) >> 16
        b_v = (b_v.to(tl.uint32, bitcast=True) + (b_h >> 16)) >> 16
        tl.store(p_m, b_m.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=mask)
        tl.store(p_v, b_v.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=mask)
    else:
        tl.store(p_m, b_m, mask=mask)
        tl.store(p_v, b_v, mask=mask)


@triton.jit
def adam_unit_rows(b_param, b_grad, b_m, b_v, beta1, rest1, beta2, rest2, rate, root, eps):
    """The same on rows [R, d] of unit norm: the gradient is projected orthogonally to the row, the norm restored."""
    b_grad = b_grad - tl.sum(b_grad * b_param, 1)[:, None] * b_param
    b_param, b_m, b_v = adam_update(b_param, b_grad, b_m, b_v, beta1, rest1, beta2, rest2, rate, root, eps)
    b_norm = tl.maximum(tl.sqrt_rn(tl.sum(b_param * b_param, 1)), _TINY)
    return b_param / b_norm[:, None], b_m, b_v


@triton.jit(do_not_specialize=["seed"])
def _adam(
    param, grad, m, v, scale, size, d, seed, beta1, rest1, beta2, rest2, rate, root, eps,
    HAS_SCALE: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One step on ROWS rows of arrays of `size` elements, d a row; writes nothing if the scale is not finite."""
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_d = tl.arange(0, BLOCK_D)
    o = o_row[:, None].to(tl.int64) * d + o_d[None, :]
    limit = size
    if HAS_SCALE:
        factor = tl.load(scale).to(tl.float32)
        limit = tl.where(tl.abs(factor) <= _LARGEST, size, 0)
    mask = (o < limit) & (o_d < d)[None, :]
    b_param = tl.load(param + o, mask=mask, other=0.0)
    b_grad = tl.load(grad + o, mask=mask, other=0.0).to(tl.float32)
    if HAS_SCALE:
        b_grad *= factor
    b_m = tl.load(m + o, mask=mask, other=0.0).to(tl.float32)
    b_v = tl.load(v + o, mask=mask, other=0.0).to(tl.float32)
    if UNIT:
        b_param, b_m, b_v = adam_unit_rows(b_param, b_grad, b_m, b_v, beta1, rest1, beta2, rest2, rate, root, eps)
    else:
        b_param, b_m, b_v = adam_update(b_param, b_grad, b_m, b_v, beta1, rest1, beta2, rest2, rate, root, eps)
    tl.store(param + o, b_param, mask=mask)
    store_moments(m + o, v + o, b_m, b_v, (o + seed).to(tl.uint32), mask)


def adam_constants(adam: Adam) -> dict[str, float]:
    """The last arguments of `adam_update`, by name."""
    step, lr, beta1, beta2, eps = adam
    return {
        "beta1": float(beta1),
        "rest1": 1.0 - beta1,
        "beta2": float(beta2),
        "rest2": 1.0 - beta2,
        "rate": lr / (1 - beta1**step),
        "root": 1 / math.sqrt(1 - beta2**step),
        "eps": float(eps),
    }


def seed_of(adam: Adam) -> int:
    """Where the places of this step start, in `noise` of naive.py, as int32: Triton compiles anew for another type."""
    return (adam.step * STRIDE + 2**31) % 2**32 - 2**31


def adam_step(
    param: Tensor, grad: Tensor, m: Tensor, v: Tensor, adam: Adam, scale: Tensor | None, unit_rows: bool
) -> None:
    """param, m, v <- one step of Adam, with a projected gradient and unit norm if `unit_rows`.

    It moves 28 bytes a parameter with an fp32 gradient.

    Raises:
        ValueError: param, m or v is not contiguous fp32.
    """
    for name, tensor in (("param", param), ("m", m), ("v", v)):
        exact = tensor.dtype == torch.float32 or (tensor.dtype == torch.bfloat16 and tensor is not param)
        if not exact or not tensor.is_contiguous():
            raise ValueError(f"{name}: expected contiguous float32; got {tensor.dtype}, strides {tensor.stride()}")
    if param.numel() == 0:
        return
    # without rows to normalise: blocks of 1024 elements, the last one masked
    d = param.shape[1] if unit_rows else 1024
    block = triton.next_power_of_2(d)
    rows = triton.cdiv(param.numel(), d)
    height = max(1, 1024 // block)
    arrays = {"param": param, "grad": grad.contiguous(), "m": m, "v": v}
    lanes = 64 if device_of(param).name.startswith("gfx") else 32
    # normalised rows keep twice as many values in registers, which spill with eight a lane
    per_lane = 4 if unit_rows or lanes == 64 else 8
    launch(
        _adam,
        (triton.cdiv(rows, height),),
        arrays
        | {"scale": param if scale is None else scale.to(param.device), "size": param.numel(), "d": d}
        | {"seed": seed_of(adam)}
        | adam_constants(adam),
        {"HAS_SCALE": scale is not None, "UNIT": unit_rows, "ROWS": height, "BLOCK_D": block},
        warps=max(1, min(16, block * height // (lanes * per_lane))),
    )
