"""latent_sweep: every gradient of a sparse autoencoder's encode and decode in one latent-major pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_kernels.codes import SparseCodes
from sae_kernels.dispatch import choose, density_of, no_autocast
from sae_kernels.latent_sweep import naive

# A backend takes (codes, grad_out, W_dec, x, grad_values), the last four each optional, and returns (grad_W_dec,
# grad_values, grad_W_enc, grad_b_enc) in fp32, None for those not computed:
#   grad_out and W_dec          -> grad_W_dec, grad_values         the backward of decode
#   x and grad_values           -> grad_W_enc, grad_b_enc          the backward of encode
#   grad_out, W_dec and x       -> all four                        both at once
#   grad_out alone              -> grad_W_dec
# An entry whose value is <= 0 adds nothing to the gradients of W_enc and b_enc (the relu); NaN does.
IMPLEMENTATIONS = {
    "naive": naive.latent_sweep,
    "cpu": "sae_kernels.latent_sweep.cpu:latent_sweep",
    "gpu": "sae_kernels.latent_sweep.gpu:latent_sweep",
}


class SweepGradients(NamedTuple):
    """Gradients of one batch, fp32 (fp64 for fp64 inputs)."""

    W_dec: Tensor
    """[F, d]: Σ_n f_nj g_n."""
    values: Tensor
    """Of the shape of the codes' values: g_n · w_j."""
    W_enc: Tensor
    """[F, d]: Σ_n [f_nj > 0] (g_n · w_j) x_n."""
    b_enc: Tensor
    """[F]: Σ_n [f_nj > 0] (g_n · w_j)."""


def latent_sweep(codes: SparseCodes, grad_out: Tensor, x: Tensor, W_dec: Tensor) -> SweepGradients:
    """The backward of x̂ = Σ_j f_j w_j with f = relu(select(W_enc x + b_enc)), given the gradient g of x̂.

    The dense expressions, with f [N, F] the dense codes: W_dec: f.T @ g; values: (g @ W_dec.T) at the codes' entries;
    W_enc: (those where f > 0).T @ x; b_enc: their sum over tokens. The entries are sorted by latent (a stable counting
    sort), and one thread adds up each latent's rows in the order of tokens: there are no atomics, and results do not
    depend on the number of threads. Not differentiable itself.

    Args:
        codes: of N tokens, rectangular or CSR.
        grad_out: g, gradient of the loss with respect to the reconstruction [N, d].
        x: input of the encoder's product, the pre-bias already subtracted [N, d].
        W_dec: atoms [F, d].

    Raises:
        ValueError: shapes that do not fit.
    """
    if grad_out.shape != x.shape or grad_out.shape[0] != codes.tokens:
        raise ValueError(
            f"expected grad_out and x [{codes.tokens}, d]; got {tuple(grad_out.shape)} and {tuple(x.shape)}"
        )
    if W_dec.shape != (codes.width, x.shape[1]):
        raise ValueError(f"expected W_dec [{codes.width}, {x.shape[1]}]; got {tuple(W_dec.shape)}")
    return SweepGradients(*_latent_sweep(codes.values, codes.indices, codes.offsets, grad_out, x, W_dec))


@torch.library.custom_op(
    "sae_kernels::latent_sweep",
    mutates_args=(),
    schema="(Tensor values, Tensor indices, Tensor? offsets, Tensor grad_out, Tensor x, Tensor W_dec)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _latent_sweep(
    values: Tensor, indices: Tensor, offsets: Tensor | None, grad_out: Tensor, x: Tensor, W_dec: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _sweep(x, SparseCodes(values, indices, W_dec.shape[0], offsets), grad_out, W_dec, x, None)


@_latent_sweep.register_fake
def _(values: Tensor, indices: Tensor, offsets: Tensor | None, grad_out: Tensor, x: Tensor, W_dec: Tensor):
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows = W_dec.new_empty(W_dec.shape, dtype=dtype)
    return (
        rows,
        values.new_empty(values.shape, dtype=dtype),
        torch.empty_like(rows),
        rows.new_empty(W_dec.shape[0]),
    )


@torch.library.custom_op(
    "sae_kernels::decode_backward",
    mutates_args=(),
    schema="(Tensor values, Tensor indices, Tensor? offsets, Tensor grad_out, Tensor W_dec) -> (Tensor, Tensor)",
)
def decode_backward(
    values: Tensor, indices: Tensor, offsets: Tensor | None, grad_out: Tensor, W_dec: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the codes' values and of W_dec, in their dtypes, given the gradient of the reconstruction [N, d]."""
    codes = SparseCodes(values, indices, W_dec.shape[0], offsets)
    grad_W, grad_values, _, _ = _sweep(W_dec, codes, grad_out, W_dec, None, None)
    return grad_values.to(values.dtype), grad_W.to(W_dec.dtype)


@decode_backward.register_fake
def _(values: Tensor, indices: Tensor, offsets: Tensor | None, grad_out: Tensor, W_dec: Tensor):
    return torch.empty_like(values, memory_format=torch.contiguous_format), W_dec.new_empty(W_dec.shape)


@torch.library.custom_op(
    "sae_kernels::encode_weight_backward",
    mutates_args=(),
    schema="(Tensor grad_values, Tensor values, Tensor indices, Tensor? offsets, Tensor centred, SymInt width)"
    " -> (Tensor, Tensor)",
)
def encode_weight_backward(
    grad_values: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, centred: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Gradients of W_enc and b_enc, fp32 or fp64, given that of the values; `centred` [N, d] is x - b_pre."""
    codes = SparseCodes(values, indices, width, offsets)
    return _sweep(centred, codes, None, None, centred, grad_values)[2:]


@encode_weight_backward.register_fake
def _(grad_values: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, centred: Tensor, width: int):
    dtype = torch.promote_types(centred.dtype, torch.float32)
    return centred.new_empty((width, centred.shape[1]), dtype=dtype), centred.new_empty(width, dtype=dtype)


def _sweep(tensor: Tensor, codes: SparseCodes, *arguments: Tensor | None) -> Any:
    """Run the backend for `tensor` on `codes` and the four optional arguments."""
    with no_autocast(tensor.device.type):
        sweep = choose("latent_sweep", tensor, IMPLEMENTATIONS, density_of(codes.values, codes.offsets, codes.width))
        return sweep(codes, *_same(*arguments))


def _same(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in fp32 (fp64 if one is fp64); unchanged on a GPU, whose kernel converts what it loads."""
    if any(tensor is not None and tensor.is_cuda for tensor in tensors):
        return tensors
    dtype = torch.float32
    for tensor in tensors:
        dtype = dtype if tensor is None else torch.promote_types(dtype, tensor.dtype)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)
