"""What a dictionary has to beat: principal components of the training activations, and their mean."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor


class PCA:
    """x̂_k = mean + Σ_{i<=k} v_i v_i·(x - mean), v_i the leading eigenvectors of the covariance (Pearson 1901).

    mean [d] and components [d, d] (one a row, falling variance) are float64, fitted on training rows.
    """

    def __init__(self, mean: Tensor, components: Tensor) -> None:
        self.mean, self.components = mean, components

    @classmethod
    def fit(cls, batches: Iterable[Tensor]) -> PCA:
        """Fit on batches of rows [n, d], one pass, covariance in float64.

        Raises:
            ValueError: no rows.
        """
        stream = iter(batches)
        first = next(stream, None)
        if first is None:
            raise ValueError("PCA: expected at least one batch of rows, got none")
        # a fixed point near the mean keeps the covariance accurate where the mean is large
        centre = first.double().mean(0)
        count, total, second = 0, torch.zeros_like(centre), torch.zeros(len(centre), len(centre), dtype=torch.float64)
        for batch in itertools.chain([first], stream):
            offset = batch.double() - centre
            count += len(batch)
            total += offset.sum(0)
            second += offset.T @ offset
        covariance = second / count - torch.outer(total, total) / count**2
        _, vectors = torch.linalg.eigh(covariance)
        return cls(centre + total / count, vectors.T.flip(0).contiguous())

    def energies(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """||x - mean||² [n], and (v_i·(x - mean))² [n, d] for every component i."""
        offset = x.double().cpu() - self.mean
        return offset.pow(2).sum(1), (offset @ self.components.T).pow(2)
