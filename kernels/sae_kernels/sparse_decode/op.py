"""sparse_decode: the reconstruction from sparse codes."""

from __future__ import annotations

from torch import Tensor

from sae_kernels.codes import SparseCodes
from sae_kernels.dispatch import choose
from sae_kernels.sparse_decode import naive

IMPLEMENTATIONS = {"naive": naive.sparse_decode}


def sparse_decode(codes: SparseCodes, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """x̂ = Σ_j f_j w_j + b_dec for every token.

    Args:
        codes: of N tokens, rectangular or CSR.
        W_dec: atoms, one row a latent [F, d].
        b_dec: added to every token [d].

    Returns:
        [N, d].

    Raises:
        ValueError: the dictionary's number of rows is not the codes' width.
    """
    if W_dec.shape[0] != codes.width:
        raise ValueError(f"codes are over {codes.width} latents, W_dec has {W_dec.shape[0]} rows")
    return choose("sparse_decode", W_dec, IMPLEMENTATIONS)(codes, W_dec, b_dec)
