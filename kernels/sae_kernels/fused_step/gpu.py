"""The fused step on the GPU: one token-major pass forward; back, one sweep for all gradients, then Adam.

Whether a step may be taken at all, and how far it is scaled, depends on the norm of the whole gradient, and waiting for
it with nothing written takes either a second sweep over the gathered rows or the gradients in memory. The rows are the
larger of the two (N k d against F d), so the gradients are kept; nothing travels to the host.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.adam_step.gpu import adam_step
from sae_kernels.adam_step.naive import Adam
from sae_kernels.adam_step.op import clip_scale
from sae_kernels.codes import SparseCodes
from sae_kernels.gpu_product import rows_contiguous
from sae_kernels.latent_sweep.gpu import latent_sweep
from sae_kernels.launch import launch
from sae_kernels.tuning import sweep_config


@triton.jit(do_not_specialize=["K"])
def _compare(
    values, indices, offsets, W_dec, b_dec, target, residual, squared_error, d, stride_w, stride_t, K,
    CSR: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Token i_n: residual = target - f W_dec - b_dec [d] and the sum of its squares."""
    i_n = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < d
    if CSR:
        start = tl.load(offsets + i_n)
        stop = tl.load(offsets + i_n + 1)
    else:
        start = i_n * K
        stop = start + K
    b_row = tl.load(target + i_n * stride_t + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_row -= tl.load(b_dec + o_d, mask=m_d, other=0.0).to(tl.float32)
    for i_e in range(start, stop, BLOCK_E):
        o_e = i_e + tl.arange(0, BLOCK_E)
        b_value = tl.load(values + o_e, mask=o_e < stop, other=0.0).to(tl.float32)
        b_index = tl.load(indices + o_e, mask=o_e < stop, other=0)
        m_w = (o_e < stop)[:, None] & m_d[None, :]
        b_w = tl.load(W_dec + b_index[:, None] * stride_w + o_d[None, :], mask=m_w, other=0.0).to(tl.float32)
        b_row -= tl.sum(b_value[:, None] * b_w, 0)
    tl.store(residual + i_n * d + o_d, b_row, mask=m_d)
    tl.store(squared_error + i_n, tl.sum(b_row * b_row, 0))


def forward(params: Any, codes: SparseCodes, target: Tensor, workspace: Any) -> tuple[Tensor, Tensor, Tensor]:
    """residual [N, d] and squared_error [N] in fp32, and an empty tensor for the dots; see op.py.

    The dots come with `update`: the sweep reads every atom once, while making them here would gather N k of them a
    second time. `workspace` holds the CPU's memory; on a GPU torch's own allocator keeps it.
    """
    del workspace
    target = rows_contiguous(target)
    N, d = target.shape
    residual, squared_error = torch.empty(N, d, device=target.device), torch.empty(N, device=target.device)
    config = sweep_config(d, torch.float32)
    indices = codes.indices.contiguous()
    launch(
        _compare,
        (N,),
        {"values": codes.values.contiguous(), "indices": indices, "W_dec": params.W_dec, "b_dec": params.b_dec}
        | {"offsets": indices if codes.offsets is None else codes.offsets.contiguous(), "target": target}
        | {"residual": residual, "squared_error": squared_error, "d": d}
        | {"stride_w": params.W_dec.stride(0), "stride_t": target.stride(0)}
        | {"K": codes.values.shape[1] if codes.offsets is None else 0},
        {"CSR": codes.offsets is not None, "BLOCK_E": config.block_e, "BLOCK_D": config.block_d},
        warps=config.warps,
    )
    return residual, squared_error, residual.new_empty(0)


def update(
    params: Any,
    m: Any,
    v: Any,
    forward: Any,
    adam: Adam,
    max_norm: float | None,
    extra: Any,
    through: Tensor | None,
    more: float,
) -> tuple[Tensor, Tensor]:
    """grad_norm, applied: one Adam step in place on params, m and v; see op.py, which calls it without the last two."""
    assert through is None
    assert not more
    codes, grad_out = forward.codes, forward.residual * forward.factor
    W_dec, _, W_enc, b_enc = latent_sweep(
        codes.values, codes.indices, codes.offsets, codes.width, grad_out, params.W_dec, forward.centred, None
    )
    assert W_dec is not None
    assert W_enc is not None
    assert b_enc is not None
    if extra is not None:
        W_enc.index_add_(0, extra.rows, extra.W_enc.float())
        b_enc.index_add_(0, extra.rows, extra.b_enc.float())
        W_dec.index_add_(0, extra.rows, extra.W_dec.float())
    b_dec = grad_out.sum(0)
    if forward.tied:
        b_dec -= b_enc @ params.W_enc
    grads = (W_enc, b_enc, W_dec, b_dec)
    norm = torch.stack([torch.linalg.vector_norm(grad) for grad in grads]).norm()
    scale = clip_scale(norm, max_norm)
    for param, grad, first, second in zip(params, grads, m, v, strict=True):
        adam_step(param, grad, first, second, adam, scale, param is params.W_dec)
    return norm, torch.isfinite(scale)
