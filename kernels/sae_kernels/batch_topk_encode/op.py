"""batch_topk_encode: the codes of a BatchTopK sparse autoencoder in training."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels.batch_topk_encode import naive
from sae_kernels.codes import SparseCodes
from sae_kernels.dispatch import choose, no_autocast
from sae_kernels.encode import check_encode, register_gradients, run_encode

IMPLEMENTATIONS = {
    "naive": naive.batch_topk_encode,
    "cpu": "sae_kernels.batch_topk_encode.cpu:batch_topk_encode",
    "gpu": "sae_kernels.batch_topk_encode.gpu:batch_topk_encode",
}


def batch_topk_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None = None, guess: float | None = None
) -> SparseCodes:
    """f = relu of the N·k largest entries of W_enc (x - b_pre) + b_enc over the whole batch (Bussmann et al. 2024).

    The dense expression: `relu(pre.flatten().sort(descending=True, stable=True)[: N * k])`, as codes of each token.
    Exact for any `guess`; the lowest token wins ties, then the lowest latent; NaN counts as larger than +Inf.
    Differentiable in x, W_enc, b_enc and b_pre.

    Args:
        x: inputs [N, d].
        W_enc: encoder [F, d].
        b_enc: encoder bias [F].
        k: latents kept a token on average, 1 <= k <= F.
        b_pre: subtracted from x first [d], or None.
        guess: about the smallest value that will be kept, such as the last batch's `codes.values.min()`. It replaces an
            estimate from a sample of tokens. A bad guess only costs time; one that is too high costs a second product.

    Returns:
        CSR codes with exactly N·k entries, every token's latents in ascending order. Entries that are not positive
        are listed as zeros, through which no gradient flows.

    Raises:
        ValueError: k out of range or shapes that do not fit.
    """
    check_encode(x, W_enc, b_enc, b_pre, k)
    values, indices, offsets = run_encode(
        "batch_topk_encode", IMPLEMENTATIONS, _batch_topk_encode, x, W_enc, b_enc, k, b_pre, guess
    )
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


register_gradients(_batch_topk_encode, b_pre_at=4)
