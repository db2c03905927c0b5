"""Latent sweep, the reference: dense codes and dense products."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels.codes import SparseCodes


def latent_sweep(
    codes: SparseCodes, grad_out: Tensor | None, W_dec: Tensor | None, x: Tensor | None, grad_values: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """grad_W_dec = f^T g; grad_values = (g W_dec^T) at the codes' entries; grad_W_enc = δ^T x; grad_b_enc = Σ_n δ_n.

    δ [N, F] are the gradients of the pre-activations: grad_values where f is not <= 0.
    """
    # the last four inputs share a dtype; half-precision values are exact in it
    dtype = next(tensor.dtype for tensor in (grad_out, x) if tensor is not None)
    codes = codes.with_values(codes.values.to(dtype))
    grad_W_dec = grad_W_enc = grad_b_enc = None
    if grad_out is not None:
        grad_W_dec = codes.to_dense().T @ grad_out
    if W_dec is not None and grad_out is not None:
        grad_values = (grad_out @ W_dec.T)[codes.rows(), codes.indices]
    if x is not None and grad_values is not None:
        dense = codes.with_values(torch.where(codes.values <= 0, 0, grad_values)).to_dense()
        grad_W_enc, grad_b_enc = dense.T @ x, dense.sum(0)
    return grad_W_dec, grad_values, grad_W_enc, grad_b_enc
