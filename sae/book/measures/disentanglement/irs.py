"""Interventional robustness score (Suter et al. 2019, arXiv:1811.00007): is a latent still while other factors move?

    irs(codes, factors)

With factor k held at a value, latent j strays from its mean by at most some amount as the others vary; averaged over
the values and divided by how far the latent ever strays, that is its deviation d_jk, and 1 - d_jk how robust it is once
k is set. A latent's score is that of its best factor; the whole is the mean weighted by how far latents stray.
"""

from __future__ import annotations

import numpy as np

from sae.book.measures.disentanglement.arrays import Array, checked


def irs(codes: Array, factors: Array, *, quantile: float = 0.99) -> float:
    """The score of codes [n, L] and factors int64 [n, K].

    Args:
        codes: [n, L].
        factors: int64 [n, K].
        quantile: of the deviations within a value, in place of their maximum: the authors' code and Locatello et al.
            take .99; 1 is the paper's. A latent that fires in fewer than one of a hundred samples has a deviation of
            about 0 under .99 whatever it means, so judge very sparse codes by 1.

    Raises:
        ValueError: as `checked`, or a quantile outside (0, 1].
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile {quantile}: expected more than 0 and at most 1")
    z, v = checked(codes, factors)
    z = z.astype(np.float64)
    deviations = np.zeros((z.shape[1], v.shape[1]))
    for k, factor in enumerate(v.T):
        values = int(factor.max()) + 1
        for value in range(values):
            rows = z[factor == value]
            deviations[:, k] += np.quantile(np.abs(rows - rows.mean(0)), quantile, axis=0) / values
    return irs_of(deviations, np.abs(z - z.mean(0)).max(0))


def irs_of(deviations: np.ndarray, largest: np.ndarray) -> float:
    """Mean of max_k(1 - deviation_jk / largest_j), weighted by `largest`.

    Args:
        deviations: of every latent under every factor held, [L, K].
        largest: how far each latent ever strays from its mean [L]; one that never does has no weight.
    """
    live = largest > 0
    if not live.any():
        return 0.0
    robust = (1 - deviations[live] / largest[live, None]).max(1)
    return float(np.average(robust, weights=largest[live]))
