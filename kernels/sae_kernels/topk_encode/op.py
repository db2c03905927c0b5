"""topk_encode: the codes of a TopK sparse autoencoder."""

from __future__ import annotations

from torch import Tensor

from sae_kernels.codes import SparseCodes
from sae_kernels.dispatch import choose
from sae_kernels.topk_encode import naive

IMPLEMENTATIONS = {"naive": naive.topk_encode}


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_pre: Tensor | None = None) -> SparseCodes:
    """f = relu(topk(W_enc (x - b_pre) + b_enc)), exactly, ties to the lowest index (Gao et al. 2024, eq. 3).

    Args:
        x: inputs [N, d].
        W_enc: encoder, one row a latent [F, d].
        b_enc: encoder bias [F].
        k: latents kept a token, 1 <= k <= F.
        b_pre: subtracted from x first [d], or None.

    Returns:
        Rectangular codes [N, k], values in descending order. A row with fewer than k positive pre-activations lists
        zeros, through which no gradient flows.

    Raises:
        ValueError: k out of range or shapes that do not fit.
    """
    if x.ndim != 2 or W_enc.ndim != 2 or x.shape[1] != W_enc.shape[1]:
        raise ValueError(f"expected x [N, d] and W_enc [F, d]; got {tuple(x.shape)} and {tuple(W_enc.shape)}")
    if not 1 <= k <= W_enc.shape[0]:
        raise ValueError(f"k = {k} is outside 1..{W_enc.shape[0]}, the number of latents")
    values, indices = choose("topk_encode", x, IMPLEMENTATIONS)(x, W_enc, b_enc, k, b_pre)
    return SparseCodes(values, indices, W_enc.shape[0])
