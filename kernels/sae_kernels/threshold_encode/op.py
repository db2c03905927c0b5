"""threshold_encode: every pre-activation above a threshold, as CSR codes."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels.codes import SparseCodes
from sae_kernels.dispatch import choose, no_autocast
from sae_kernels.encode import check_encode, register_gradients, run_encode
from sae_kernels.threshold_encode import naive

IMPLEMENTATIONS = {
    "naive": naive.threshold_encode,
    "cpu": "sae_kernels.threshold_encode.cpu:threshold_encode",
    "gpu": "sae_kernels.threshold_encode.gpu:threshold_encode",
}


def threshold_encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    theta: Tensor | float,
    margin: float = 0.0,
    b_pre: Tensor | None = None,
) -> SparseCodes:
    """The pre-activations W_enc (x - b_pre) + b_enc that exceed theta - margin, with their latents.

    With margin 0 these are the codes of a JumpReLU autoencoder, pre · 1[pre > theta] (Rajamanoharan et al. 2024,
    eq. 3), and of a BatchTopK one at inference. A margin keeps the entries of the window below theta too, which the
    straight-through gradient of theta needs; the caller zeroes them: `where(values > theta[indices], values, 0)`.
    Differentiable in x, W_enc, b_enc and b_pre through every entry kept, whatever its sign; not in theta.

    The dense expression: `pre[pre > theta - margin]`. An entry kept takes 12 bytes (twice that while the codes are put
    together), which early in training may be more than the dense N x F. Above a density of a tenth, `sparse_decode` and
    the gradients use dense products instead (see dispatch.py).

    Args:
        x: inputs [N, d].
        W_enc: encoder [F, d].
        b_enc: encoder bias [F].
        theta: threshold a latent [F], or one for all.
        margin: how far below theta entries are kept, >= 0.
        b_pre: subtracted from x first [d], or None.

    Returns:
        CSR codes, every token's latents in ascending order. A NaN pre-activation is kept.

    Raises:
        ValueError: shapes that do not fit, or a negative margin.
    """
    check_encode(x, W_enc, b_enc, b_pre)
    if margin < 0:
        raise ValueError(f"expected margin >= 0, the width of the window below theta; got {margin}")
    if not isinstance(theta, Tensor) or theta.ndim == 0:
        theta = torch.as_tensor(theta, device=W_enc.device, dtype=torch.float32).expand(W_enc.shape[0])
    if theta.shape != b_enc.shape:
        raise ValueError(f"expected theta [{b_enc.shape[0]}], one a row of W_enc; got {tuple(theta.shape)}")
    values, indices, offsets = run_encode(
        "threshold_encode", IMPLEMENTATIONS, _threshold_encode, x, W_enc, b_enc, theta.detach(), margin, b_pre
    )
    return SparseCodes(values, indices, W_enc.shape[0], offsets)


@torch.library.custom_op(
    "sae_kernels::threshold_encode",
    mutates_args=(),
    schema="(Tensor x, Tensor W_enc, Tensor b_enc, Tensor theta, float margin, Tensor? b_pre)"
    " -> (Tensor, Tensor, Tensor)",
)
def _threshold_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, theta: Tensor, margin: float, b_pre: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    with no_autocast(x.device.type):
        return choose("threshold_encode", x, IMPLEMENTATIONS)(x, W_enc, b_enc, theta, margin, b_pre)


@_threshold_encode.register_fake
def _(x: Tensor, W_enc: Tensor, b_enc: Tensor, theta: Tensor, margin: float, b_pre: Tensor | None):
    kept = torch.library.get_ctx().new_dynamic_size()
    dtype = torch.promote_types(x.dtype, W_enc.dtype)
    indices = x.new_empty(kept, dtype=torch.int64)
    return x.new_empty(kept, dtype=dtype), indices, x.new_empty(x.shape[0] + 1, dtype=torch.int64)


register_gradients(_threshold_encode, b_pre_at=5, relu=False)
