"""sparse_decode: the reconstruction from sparse codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae_kernels.codes import SparseCodes
from sae_kernels.dispatch import backend_for, choose, density_of, no_autocast
from sae_kernels.latent_sweep.op import decode_backward
from sae_kernels.sparse_decode import naive

IMPLEMENTATIONS = {
    "naive": naive.sparse_decode,
    "cpu": "sae_kernels.sparse_decode.cpu:sparse_decode",
    "gpu": "sae_kernels.sparse_decode.gpu:sparse_decode",
}


def sparse_decode(codes: SparseCodes, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """x̂ = Σ_j f_j w_j + b_dec for every token.

    The dense expression: `codes.to_dense() @ W_dec + b_dec`. Sums are in fp32 (fp64 runs the reference), whatever
    autocast says. Differentiable in the codes' values, W_dec and b_dec. Codes that list more than a tenth of all
    entries are decoded by a dense product. A listed value of zero still reads its atom, so a NaN in an atom makes NaN
    the output of every token that lists it (of every token, if the product is dense).

    Args:
        codes: of N tokens, rectangular or CSR.
        W_dec: atoms, one row a latent [F, d].
        b_dec: added to every token [d].

    Returns:
        [N, d], of the dtype that the codes' values and W_dec promote to.

    Raises:
        ValueError: the dictionary's number of rows is not the codes' width, or b_dec does not fit.
    """
    if W_dec.ndim != 2 or W_dec.shape[0] != codes.width:
        raise ValueError(f"codes are over {codes.width} latents, W_dec has the shape {tuple(W_dec.shape)}")
    if b_dec.shape != W_dec.shape[1:]:
        raise ValueError(f"expected b_dec [{W_dec.shape[1]}], one a column of W_dec; got {tuple(b_dec.shape)}")
    arguments = (codes.values, codes.indices, codes.offsets, W_dec, b_dec)
    if backend_for("sparse_decode", W_dec, IMPLEMENTATIONS) == "naive":
        with no_autocast(W_dec.device.type):
            return choose("sparse_decode", W_dec, IMPLEMENTATIONS)(*arguments)
    return _sparse_decode(*arguments)


@torch.library.custom_op(
    "sae_kernels::sparse_decode",
    mutates_args=(),
    schema="(Tensor values, Tensor indices, Tensor? offsets, Tensor W_dec, Tensor b_dec) -> Tensor",
)
def _sparse_decode(values: Tensor, indices: Tensor, offsets: Tensor | None, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    with no_autocast(W_dec.device.type):
        density = density_of(values, offsets, W_dec.shape[0])
        return choose("sparse_decode", W_dec, IMPLEMENTATIONS, density)(values, indices, offsets, W_dec, b_dec)


@_sparse_decode.register_fake
def _(values: Tensor, indices: Tensor, offsets: Tensor | None, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    tokens = values.shape[0] if offsets is None else offsets.shape[0] - 1
    dtype = torch.promote_types(values.dtype, W_dec.dtype)
    return W_dec.new_empty((tokens, W_dec.shape[1]), dtype=dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, indices, offsets, W_dec, b_dec = inputs
    ctx.save_for_backward(values, indices, offsets, W_dec)
    ctx.bias_dtype = b_dec.dtype


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    values, indices, offsets, W_dec = ctx.saved_tensors
    wants_values, _, _, wants_W, wants_b = ctx.needs_input_grad
    grad_values = grad_W = None
    if wants_values or wants_W:
        grad_values, grad_W = decode_backward(values, indices, offsets, grad_out, W_dec)
    grad_b = grad_out.sum(0, dtype=torch.promote_types(grad_out.dtype, torch.float32)).to(ctx.bias_dtype)
    return (
        grad_values if wants_values else None,
        None,
        None,
        grad_W if wants_W else None,
        grad_b if wants_b else None,
    )


_sparse_decode.register_autograd(_backward, setup_context=_setup)
