"""Sparse decode, the reference: codes made dense, then one product."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels.codes import SparseCodes


def sparse_decode(values: Tensor, indices: Tensor, offsets: Tensor | None, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """out [N, d] = f W_dec + b_dec."""
    dtype = torch.promote_types(values.dtype, W_dec.dtype)
    dense = SparseCodes(values.to(dtype), indices, W_dec.shape[0], offsets).to_dense()
    return dense @ W_dec.to(dtype) + b_dec.to(dtype)
