"""Sparse decode, the reference: codes made dense, then one product."""

from __future__ import annotations

from torch import Tensor

from sae_kernels.codes import SparseCodes


def sparse_decode(codes: SparseCodes, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """f W_dec + b_dec; codes of N tokens, W_dec [F, d], b_dec [d] -> [N, d]."""
    return codes.to_dense() @ W_dec + b_dec
