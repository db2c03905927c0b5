"""The fused step on the GPU: a token-major forward pass; then one sweep for all gradients, and Adam.

The norm of the whole gradient decides whether the step is taken and how far it is clipped. Until it is known nothing
may be written, which takes either a second sweep over the gathered rows (N k d) or the gradients in memory (F d). The
latter is less, so the gradients are stored. Nothing is copied to the host.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.adam_step.gpu import adam_step
from sae_kernels.adam_step.op import clip_scale
from sae_kernels.codes import SparseCodes
from sae_kernels.fused_step.naive import Options
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
    """residual = target - f W_dec - b_dec [N, d] and squared_error = Σ_d residual² [N], fp32; the dots stay empty.

    `update` computes the dots, in a sweep that reads every atom once; here N k atoms would be gathered a second time.
    `workspace` is for the CPU; on a GPU torch's allocator reuses memory.
    """
    del workspace
    target = rows_contiguous(target)
    N, d = target.shape
    residual, squared_error = torch.empty(N, d, device=target.device), torch.empty(N, device=target.device)
    config = sweep_config(d)
    indices = codes.indices.contiguous()
    launch(
        _compare,
        (N,),
        {"values": codes.values.contiguous(), "indices": indices, "W_dec": params.W_dec, "b_dec": params.b_dec}
        | {"offsets": indices if codes.offsets is None else codes.offsets.contiguous(), "target": target}
        | {"residual": residual, "squared_error": squared_error, "d": d}
        | {"stride_w": params.W_dec.stride(0), "stride_t": target.stride(0)}
        | {"K": codes.values.shape[1] if codes.offsets is None else 0},
        {"CSR": codes.offsets is not None, "BLOCK_E": config.rows, "BLOCK_D": config.block_d},
        warps=config.warps,
    )
    return residual, squared_error, residual.new_empty(0)


def update(params: Any, m: Any, v: Any, forward: Any, options: Options) -> tuple[Tensor, Tensor]:
    """params, m, v <- one step of Adam with the gradients of the loss; returns grad_norm and applied.

    op.py never passes `through` or `more` to this backend.
    """
    adam, max_norm, extra, through, more = options
    assert through is None
    assert not more
    codes, grad_out = forward.codes, forward.residual * forward.factor
    W_dec, _, W_enc, b_enc = latent_sweep(codes, grad_out, params.W_dec, forward.centred, None)
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
