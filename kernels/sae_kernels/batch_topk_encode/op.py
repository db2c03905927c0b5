"""batch_topk_encode: the codes of a BatchTopK sparse autoencoder in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae_kernels.batch_topk_encode import naive
from sae_kernels.codes import SparseCodes
from sae_kernels.dispatch import backend_for, choose, no_autocast
from sae_kernels.latent_sweep.op import encode_backward
from sae_kernels.topk_encode.op import check_encode

IMPLEMENTATIONS = {
    "naive": naive.batch_topk_encode,
    "cpu": "sae_kernels.batch_topk_encode.cpu:batch_topk_encode",
    "gpu": "sae_kernels.batch_topk_encode.gpu:batch_topk_encode",
}


def batch_topk_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None = None, guess: float | None = None
) -> SparseCodes:
    """f = relu of the N·k largest entries of W_enc (x - b_pre) + b_enc over the whole batch (Bussmann et al. 2024).

    The dense expression: `relu(pre.flatten().sort(descending=True, stable=True)[: N * k])`, put back in place. Exact,
    whatever `guess` says; ties to the lowest token, then the lowest latent; NaN counts as larger than +Inf.
    Differentiable in x, W_enc, b_enc and b_pre.

    Args:
        x: inputs [N, d].
        W_enc: encoder [F, d].
        b_enc: encoder bias [F].
        k: latents kept a token on average, 1 <= k <= F.
        b_pre: subtracted from x first [d], or None.
        guess: about the smallest value that will be kept, such as the last batch's `codes.values.min()`; saves the
            estimate from a sample. A bad guess costs time: too high a guess a second product.

    Returns:
        CSR codes with exactly N·k entries, every token's latents in ascending order. Entries that are not positive
        are listed as zeros, through which no gradient flows.

    Raises:
        ValueError: k out of range or shapes that do not fit.
    """
    check_encode(x, W_enc, b_enc, b_pre)
    if not 1 <= k <= W_enc.shape[0]:
        raise ValueError(f"k = {k} is outside 1..{W_enc.shape[0]}, the number of latents")
    if backend_for("batch_topk_encode", x, IMPLEMENTATIONS) == "naive":
        with no_autocast(x.device.type):
            run = choose("batch_topk_encode", x, IMPLEMENTATIONS)
            values, indices, offsets = run(x, W_enc, b_enc, k, b_pre, guess)
    else:
        values, indices, offsets = _batch_topk_encode(x, W_enc, b_enc, k, b_pre, guess)
    return SparseCodes(values, indices, W_enc.shape[0], offsets)


@torch.library.custom_op(
    "sae_kernels::batch_topk_encode",
    mutates_args=(),
    schema="(Tensor x, Tensor W_enc, Tensor b_enc, SymInt k, Tensor? b_pre, float? guess) -> (Tensor, Tensor, Tensor)",
)
def _batch_topk_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None, guess: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    with no_autocast(x.device.type):
        return choose("batch_topk_encode", x, IMPLEMENTATIONS)(x, W_enc, b_enc, k, b_pre, guess)


@_batch_topk_encode.register_fake
def _(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None, guess: float | None):
    entries = x.shape[0] * k
    dtype = torch.promote_types(x.dtype, W_enc.dtype)
    indices = x.new_empty(entries, dtype=torch.int64)
    return x.new_empty(entries, dtype=dtype), indices, x.new_empty(x.shape[0] + 1, dtype=torch.int64)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, W_enc, b_enc, _, b_pre, _ = inputs
    ctx.save_for_backward(x, W_enc, b_pre, *output)
    ctx.bias_dtype = b_enc.dtype


def _backward(ctx: Any, grad_values: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, W_enc, b_pre, values, indices, offsets = ctx.saved_tensors
    wants_x, wants_W, wants_b, _, wants_b_pre, _ = ctx.needs_input_grad
    grad_x, grad_W, grad_b, grad_b_pre = encode_backward(
        grad_values, values, indices, offsets, x, W_enc, b_pre,
        (wants_x, wants_W or wants_b or wants_b_pre, wants_b_pre),
    )  # fmt: skip
    return (
        grad_x if wants_x else None,
        grad_W if wants_W else None,
        grad_b.to(ctx.bias_dtype) if wants_b and grad_b is not None else None,
        None,
        grad_b_pre if wants_b_pre else None,
        None,
    )


_batch_topk_encode.register_autograd(_backward, setup_context=_setup)
