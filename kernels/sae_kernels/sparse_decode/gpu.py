"""Sparse decode in Triton: gathers a token's atoms and sums them in fp32, in the order of the codes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.gpu_product import rows_contiguous
from sae_kernels.launch import launch
from sae_kernels.tuning import decode_config


@triton.jit(do_not_specialize=["K"])
def _decode(
    values, indices, offsets, W_dec, b_dec, out, d, stride_w, K,
    CSR: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out [N, d] = f W_dec + b_dec; a program computes BLOCK_D columns of token i_n."""
    i_n = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < d
    if CSR:
        start = tl.load(offsets + i_n)
        stop = tl.load(offsets + i_n + 1)
    else:
        start = i_n * K
        stop = start + K
    b_sum = tl.load(b_dec + o_d, mask=m_d, other=0.0).to(tl.float32)
    for i_k in range(start, stop, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_k = o_k < stop
        b_value = tl.load(values + o_k, mask=m_k, other=0.0).to(tl.float32)
        b_index = tl.load(indices + o_k, mask=m_k, other=0)
        # int64 indices give int64 addresses: F d exceeds 2^31 at 131k latents of width 16k
        p_w = W_dec + b_index[:, None] * stride_w + o_d[None, :]
        b_w = tl.load(p_w, mask=m_k[:, None] & m_d[None, :], other=0.0).to(tl.float32)
        b_sum += tl.sum(b_value[:, None] * b_w, 0)
    tl.store(out + i_n * d + o_d, b_sum.to(out.dtype.element_ty), mask=m_d)


def sparse_decode(values: Tensor, indices: Tensor, offsets: Tensor | None, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """out [N, d] = f W_dec + b_dec, of the dtype that values and W_dec promote to."""
    W_dec = rows_contiguous(W_dec)
    tokens = values.shape[0] if offsets is None else offsets.shape[0] - 1
    d = W_dec.shape[1]
    out = torch.empty(tokens, d, dtype=torch.promote_types(values.dtype, W_dec.dtype), device=W_dec.device)
    config = decode_config(d, W_dec.dtype)
    indices = indices.contiguous()
    launch(
        _decode,
        (tokens, triton.cdiv(d, config.block_d)),
        {"values": values.contiguous(), "indices": indices, "W_dec": W_dec, "b_dec": b_dec.contiguous(), "out": out}
        | {"offsets": indices if offsets is None else offsets.contiguous(), "d": d, "stride_w": W_dec.stride(0)}
        | {"K": values.shape[1] if offsets is None else 0},
        {"CSR": offsets is not None, "BLOCK_K": config.rows, "BLOCK_D": config.block_d},
        warps=config.warps,
    )
    return out
