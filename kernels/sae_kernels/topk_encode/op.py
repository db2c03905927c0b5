"""topk_encode: the codes of a TopK sparse autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels.codes import SparseCodes
from sae_kernels.dispatch import choose, no_autocast
from sae_kernels.encode import check_encode, register_gradients, run_encode
from sae_kernels.topk_encode import naive

IMPLEMENTATIONS = {
    "naive": naive.topk_encode,
    "cpu": "sae_kernels.topk_encode.cpu:topk_encode",
    "gpu": "sae_kernels.topk_encode.gpu:topk_encode",
}


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None = None) -> SparseCodes:
    """f = relu(topk(W_enc (x - b_pre) + b_enc)), exact; the lowest index wins ties (Gao et al. 2024, eq. 3).

    The dense expression: `relu(sort(linear(x - b_pre, W_enc, b_enc), descending=True, stable=True)[:, :k])`. Only the
    reference stores the N x F pre-activations. Differentiable in x, W_enc, b_enc and b_pre; the gradient of x is
    computed only if x requires one. Products and comparisons are in fp32 for fp32, bf16 and fp16 inputs, with or
    without autocast; fp64 runs the reference.

    Args:
        x: inputs [N, d].
        W_enc: encoder, one row a latent [F, d].
        b_enc: encoder bias [F].
        k: latents kept a token, 1 <= k <= F.
        b_pre: subtracted from x first [d], or None.

    Returns:
        Rectangular codes [N, k] of the dtype that x and W_enc promote to, in descending order before the relu. A row
        with fewer than k positive pre-activations is filled up with zeros, at the latents of the largest of the rest;
        no gradient flows through them. NaN counts as larger than +Inf, as in torch.sort: the NaN latents of a token
        are listed first, with the value NaN.

    Raises:
        ValueError: k out of range or shapes that do not fit.
    """
    check_encode(x, W_enc, b_enc, b_pre, k)
    values, indices = run_encode("topk_encode", IMPLEMENTATIONS, _topk_encode, x, W_enc, b_enc, k, b_pre)
    return SparseCodes(values, indices, W_enc.shape[0])


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


register_gradients(_topk_encode, b_pre_at=4)
