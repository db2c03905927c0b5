"""Correlation of latents' activations on the same tokens, from sparse codes.

    first, second = Activations.of([codes...]), Activations.of([codes...])     # the same tokens in the same order
    correlation(first, second).block(slice(0, 4))                              # [4, F2]

Codes are kept as their entries: 8 bytes for each, so that 32,768 tokens at L0 32 take 8 MB a run. No matrix of tokens
times latents is made, and correlations exist for a block of latents at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sae.evaluation.matching.assignment import Similarity
from sae_kernels import SparseCodes


class Activations(NamedTuple):
    """What F latents did on N tokens."""

    tokens: int
    """N."""
    codes: sparse.csc_array
    """[N, F], float32."""
    mean: np.ndarray
    """Over all tokens, zeros included, float64 [F]."""
    deviation: np.ndarray
    """Standard deviation over all tokens, float64 [F]; 0 for a latent that never fired, or always alike."""

    @classmethod
    def of(cls, parts: Sequence[sparse.csr_array]) -> Activations:
        """From the codes of batches of tokens, in their order."""
        codes = sparse.csc_array(sparse.vstack(parts, format="csc"))
        n = sum(len(part.indptr) - 1 for part in parts)
        mean = np.asarray(codes.sum(0, dtype=np.float64)).ravel() / n
        square = np.asarray(codes.multiply(codes).sum(0, dtype=np.float64)).ravel() / n
        return cls(n, codes, mean, np.sqrt(np.maximum(square - mean * mean, 0)))

    @property
    def l0(self) -> float:
        """Mean number of latents that fire in a token."""
        return self.codes.nnz / self.tokens

    @property
    def fired(self) -> Tensor:
        """How many tokens each latent fired in, int64 [F]."""
        return torch.from_numpy(np.bincount(self.codes.nonzero()[1], minlength=len(self.mean)))

    def permuted(self, seed: int) -> Activations:
        """The same activations with the tokens in a random order: what is alike by chance and by density alone."""
        order = np.random.default_rng(seed).permutation(self.tokens)
        return self._replace(codes=sparse.csc_array(self.codes.tocsr()[order].tocsc()))

    def select(self, latents: Tensor) -> Activations:
        """Those of some latents, int64 [n]."""
        places = latents.numpy()
        return Activations(self.tokens, self.codes[:, places], self.mean[places], self.deviation[places])


def entries(codes: SparseCodes) -> sparse.csr_array:
    """Codes of N tokens as a scipy matrix [N, F] without zeros, float32."""
    kept = codes.values != 0
    values, columns = (t[kept].detach().cpu().numpy() for t in (codes.values.float(), codes.indices))
    rows = codes.rows().expand_as(codes.values)[kept].cpu().numpy()
    return sparse.csr_array((values, (rows, columns)), shape=(codes.tokens, codes.width))


def correlation(first: Activations, second: Activations) -> Similarity:
    """Pearson correlation of every latent of one run with every latent of another, over all tokens.

    0 with a latent whose activation does not vary.

    Raises:
        ValueError: they are of different numbers of tokens.
    """
    if first.tokens != second.tokens:
        raise ValueError(f"expected the same tokens, got {first.tokens:,} and {second.tokens:,}")
    return Similarity(
        lambda part: _block(first, second, part),
        lambda part: _block(second, first, part),
        len(first.mean),
        len(second.mean),
    )


def _block(first: Activations, second: Activations, part: slice) -> Tensor:
    n = first.tokens
    both = (first.codes[:, part].T.astype(np.float64) @ second.codes.astype(np.float64)).toarray() / n
    both -= np.outer(first.mean[part], second.mean)
    scale = np.outer(first.deviation[part], second.deviation)
    # float32 codes summed in float64: a deviation below this is rounding
    varies = scale > 1e-12
    return torch.from_numpy(np.divide(both, scale, out=np.zeros_like(both), where=varies).clip(-1, 1)).float()
