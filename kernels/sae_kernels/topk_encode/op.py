"""topk_encode: the codes of a TopK sparse autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae_kernels.codes import SparseCodes
from sae_kernels.dispatch import backend_for, choose, no_autocast
from sae_kernels.latent_sweep.op import encode_backward
from sae_kernels.topk_encode import naive

IMPLEMENTATIONS = {
    "naive": naive.topk_encode,
    "cpu": "sae_kernels.topk_encode.cpu:topk_encode",
    "gpu": "sae_kernels.topk_encode.gpu:topk_encode",
}


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None = None) -> SparseCodes:
    """f = relu(topk(W_enc (x - b_pre) + b_enc)), exactly, ties to the lowest index (Gao et al. 2024, eq. 3).

    The dense expression: `relu(sort(linear(x - b_pre, W_enc, b_enc), descending=True, stable=True)[:, :k])`. No
    backend but the reference holds the N x F pre-activations. Differentiable in x, W_enc, b_enc and b_pre; the
    gradient of x is computed only where x requires one. Products and comparisons are in fp32 for fp32, bf16 and fp16
    inputs, autocast or not; fp64 runs the reference.

    Args:
        x: inputs [N, d].
        W_enc: encoder, one row a latent [F, d].
        b_enc: encoder bias [F].
        k: latents kept a token, 1 <= k <= F.
        b_pre: subtracted from x first [d], or None.

    Returns:
        Rectangular codes [N, k] of the dtype that x and W_enc promote to, in descending order before the relu. A row
        with fewer than k positive pre-activations lists zeros, through which no gradient flows (their indices are
        those of the largest of the rest). NaN counts as larger than +Inf, as in torch.sort: a token with NaN
        pre-activations lists the NaN latents first, with the value NaN.

    Raises:
        ValueError: k out of range or shapes that do not fit.
    """
    check_encode(x, W_enc, b_enc, b_pre)
    if not 1 <= k <= W_enc.shape[0]:
        raise ValueError(f"k = {k} is outside 1..{W_enc.shape[0]}, the number of latents")
    if backend_for("topk_encode", x, IMPLEMENTATIONS) == "naive":
        with no_autocast(x.device.type):
            values, indices = choose("topk_encode", x, IMPLEMENTATIONS)(x, W_enc, b_enc, k, b_pre)
    else:
        values, indices = _topk_encode(x, W_enc, b_enc, k, b_pre)
    return SparseCodes(values, indices, W_enc.shape[0])


def check_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> None:
    """Raise ValueError unless x [N, d], W_enc [F, d], b_enc [F] and b_pre [d] fit each other."""
    if x.ndim != 2 or W_enc.ndim != 2 or x.shape[1] != W_enc.shape[1]:
        raise ValueError(f"expected x [N, d] and W_enc [F, d]; got {tuple(x.shape)} and {tuple(W_enc.shape)}")
    if b_enc.shape != W_enc.shape[:1]:
        raise ValueError(f"expected b_enc [{W_enc.shape[0]}], one a row of W_enc; got {tuple(b_enc.shape)}")
    if b_pre is not None and b_pre.shape != x.shape[1:]:
        raise ValueError(f"expected b_pre [{x.shape[1]}], one a column of x; got {tuple(b_pre.shape)}")


@torch.library.custom_op(
    "sae_kernels::topk_encode",
    mutates_args=(),
    schema="(Tensor x, Tensor W_enc, Tensor b_enc, SymInt k, Tensor? b_pre) -> (Tensor, Tensor)",
)
def _topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None) -> tuple[Tensor, Tensor]:
    with no_autocast(x.device.type):
        return choose("topk_encode", x, IMPLEMENTATIONS)(x, W_enc, b_enc, k, b_pre)


@_topk_encode.register_fake
def _(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, W_enc.dtype)
    shape = (x.shape[0], k)
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=torch.int64)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, W_enc, b_enc, _, b_pre = inputs
    values, indices = output
    ctx.save_for_backward(x, W_enc, b_pre, values, indices)
    ctx.bias_dtype = b_enc.dtype


def _backward(ctx: Any, grad_values: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, W_enc, b_pre, values, indices = ctx.saved_tensors
    wants_x, wants_W, wants_b, _, wants_b_pre = ctx.needs_input_grad
    grads = encode_backward(
        grad_values, values, indices, None, x, W_enc, b_pre, (wants_x, wants_W or wants_b or wants_b_pre, wants_b_pre)
    )
    grad_x, grad_W, grad_b, grad_b_pre = grads
    return (
        grad_x if wants_x else None,
        grad_W if wants_W else None,
        grad_b.to(ctx.bias_dtype) if wants_b and grad_b is not None else None,
        None,
        grad_b_pre if wants_b_pre else None,
    )


_topk_encode.register_autograd(_backward, setup_context=_setup)
