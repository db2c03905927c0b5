"""Shared by the tests of the ops: inputs, and the one tolerance rule."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sae_kernels import SparseCodes, sparse_decode, use_backend


class Case(NamedTuple):
    """Inputs of an autoencoder step."""

    x: Tensor
    W_enc: Tensor
    b_enc: Tensor
    b_pre: Tensor
    W_dec: Tensor
    b_dec: Tensor


def make_case(N: int, d: int, F: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Case:
    """Random inputs of this dtype, leaves that require gradients; rows of the matrices of about unit norm."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(N, d), (F, d), (F,), (d,), (F, d), (d,)]
    scales = [1.0, d**-0.5, 1.0, 1.0, d**-0.5, 1.0]
    tensors = [torch.randn(shape, generator=draw) * scale for shape, scale in zip(shapes, scales, strict=True)]
    return Case(*(tensor.to(dtype).requires_grad_() for tensor in tensors))


def twin(case: Case, dtype: torch.dtype) -> Case:
    """The same numbers in another dtype, as leaves of their own."""
    return Case(*(tensor.detach().to(dtype).clone().requires_grad_() for tensor in case))


def outputs_and_gradients(case: Case, encode, backend: str) -> tuple[SparseCodes, list[Tensor]]:
    """Codes of `encode(case)` and [values, reconstruction, every gradient] under a backend.

    The loss weighs the reconstruction and the values themselves, as sparsity terms do.
    """
    with use_backend(backend):
        codes = encode(case).validate()
        out = sparse_decode(codes, case.W_dec, case.b_dec)
        weight = torch.linspace(0.5, 1.5, out.numel(), dtype=torch.float64).reshape(out.shape)
        loss = ((out - case.x).double() ** 2 * weight).sum() + (codes.values.double() * 0.3).sum()
        loss.backward()
    return codes, [codes.values.detach(), out.detach(), *(t.grad for t in case if t.grad is not None)]


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """RMS of the difference over the RMS of the exact tensor (over 1 where that is zero)."""
    if exact.numel() == 0:
        return 0.0
    scale = exact.double().square().mean().sqrt()
    error = (actual.double() - exact.double()).square().mean().sqrt()
    return float(error / scale) if scale > 0 else float(error)


CEILING = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float64: 1e-12}


def assert_as_good(actual: Tensor, peer: Tensor, exact: Tensor, name: str = "") -> None:
    """At most twice the error that plain PyTorch makes in the same dtype, and under a ceiling."""
    assert actual.shape == exact.shape, name
    assert actual.dtype == peer.dtype, name
    error, allowed = relative_error(actual, exact), relative_error(peer, exact)
    # a few last bits more: on small sums the peer's rounding errors may happen to cancel
    assert error <= 2 * allowed + 4 * torch.finfo(actual.dtype).eps, f"{name}: {error:.2e} against {allowed:.2e}"
    assert error <= CEILING[actual.dtype], f"{name}: {error:.2e}"
