"""The controls that need training rows, fitted to them.

rows = TrainingRows(inputs, targets)
pca = PCA.fit([targets])
controls = fit_controls("fast", model, pca, rows, k=32, seed=0)
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from sae.evaluation.baselines import PCA
from sae.evaluation.controls import Control, autoencoder, largest_channels, shuffled_atoms
from sae.evaluation.random_dictionary import train_random_dictionary
from sae.models.autoencoder import Autoencoder


class TrainingRows(NamedTuple):
    """Rows that a control is fitted to, on the CPU."""

    inputs: Tensor
    """[n, d]."""
    targets: Tensor
    """[n, d_out]."""


def fit_controls(
    wanted: str, model: Autoencoder, pca: PCA | None, rows: TrainingRows | None, *, k: int, seed: int
) -> list[Control] | None:
    """The controls of one autoencoder, but for the mean and PCA, whose sums `Reconstruction` has itself.

    Args:
        wanted: none, fast or all, as in `EvalConfig.controls`.
        model: the autoencoder.
        pca: of the targets' training rows; None leaves out what needs training rows.
        rows: the training rows; None where there is no PCA.
        k: channels, and latents of the random dictionary.
        seed: of the random dictionary.
    """
    if wanted == "none":
        return None
    controls = [shuffled_atoms(model)]
    if pca is not None:
        controls.insert(0, largest_channels(pca.mean.float(), min(k, len(pca.mean))))
    if wanted == "all" and rows is not None:
        trained = train_random_dictionary(rows.inputs, rows.targets, model, k=min(k, model.width), seed=seed)
        controls.append(autoencoder("random dictionary", trained))
    return controls
