"""Ways to write activations as numbers times directions: an autoencoder, and the controls that stand beside it.

    basis = of_autoencoder(model)
    z = basis.encode(inputs, targets)           # [n, F]
    z[:, latents] @ basis.atoms[latents]        # what these latents contribute to the target activation, [n, d_out]

Every measure here reads concepts from the numbers z, or changes activations by (z' - z) @ atoms, so that all it needs
of a control is a basis:

    raw channels        z = t - mean, atoms = the axes
    PCA                 z = V (t - mean), atoms = the principal axes V
    random atoms        z = the L0 largest of relu(A (t - mean)), atoms = A, drawn with the covariance of the SAE's
    random dictionary   random atoms that stay as they are, with an encoder trained like the SAE's
    shuffled atoms      the SAE's z, its atoms in another order
    random latents      the SAE's z and atoms, with latents drawn by chance instead of chosen
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sae.evaluation.baselines import PCA
from sae.evaluation.controls import RANDOM, SEED, SHUFFLED
from sae.evaluation.matching.activations import entries
from sae.evaluation.matching.pairs import random_dictionary
from sae.evaluation.semantic.results import SAE
from sae.models.autoencoder import Autoencoder
from sae.modules.normalise import layer_norm

RAW, COMPONENTS, RANDOM_ATOMS, RANDOM_LATENTS = "raw channels", "PCA", "random atoms", "random latents"
CHUNK = 4096
"""Rows encoded at a time."""


class Basis(NamedTuple):
    """Activations t ~ constant + z @ atoms."""

    name: str
    """`Row.subject`."""
    encode: Callable[[Tensor, Tensor], Any]
    """Inputs [n, d] and targets [n, d_out] -> z [n, F] in the activations' units: a sparse.csr_array or an array."""
    atoms: np.ndarray
    """float32 [F, d_out]."""
    by_chance: bool = False
    """Whether latents are drawn by chance, among those that fire, where a measure chooses some."""


def of_autoencoder(model: Autoencoder, name: str = SAE) -> Basis:
    """The autoencoder's latents; under per-token layer norm z is multiplied by the token's deviation."""

    @torch.no_grad()
    def encode(inputs: Tensor, targets: Tensor) -> sparse.csr_array:
        parts = []
        for x in inputs.split(CHUNK):
            here = x.to(model.dictionary.W)
            codes = entries(model.encode(here))
            if model.per_token_norm:
                deviation = layer_norm(here)[1].deviation.squeeze(1)
                codes = sparse.csr_array(sparse.diags_array(deviation.cpu().numpy()) @ codes)
            parts.append(codes)
        return sparse.csr_array(sparse.vstack(parts, format="csr"))

    return Basis(name, encode, _array(model.dictionary.W))


def raw_channels(mean: Tensor) -> Basis:
    """The activation's own coordinates, less the mean [d_out] of training rows: ablating one leaves its mean."""
    return Basis(RAW, lambda inputs, targets: _array(targets.cpu() - mean), np.eye(len(mean), dtype=np.float32))


def principal_components(pca: PCA) -> Basis:
    """All principal components of training activations."""
    return Basis(COMPONENTS, lambda inputs, targets: _array(pca.codes(targets)), _array(pca.components))


def random_atoms(model: Autoencoder, mean: Tensor, k: int, seed: int) -> Basis:
    """As many random atoms, without training; z are the k largest positive projections of each row.

    Args:
        model: whose number of atoms and their covariance is taken.
        mean: of training targets [d_out].
        k: numbers other than zero for each row.
        seed: of the draw.
    """
    atoms = torch.nn.functional.normalize(random_dictionary(model.dictionary.W, seed), dim=1)

    def encode(inputs: Tensor, targets: Tensor) -> sparse.csr_array:
        parts = []
        for rows in targets.split(CHUNK):
            values, latents = ((rows.float().cpu() - mean) @ atoms.T).relu().topk(k, dim=1)
            places = (np.repeat(np.arange(len(rows)), k), latents.numpy().ravel())
            parts.append(sparse.csr_array((values.numpy().ravel(), places), shape=(len(rows), len(atoms))))
        codes = sparse.csr_array(sparse.vstack(parts, format="csr"))
        codes.eliminate_zeros()
        return codes

    return Basis(RANDOM_ATOMS, encode, _array(atoms))


def trained_random(model: Autoencoder) -> Basis:
    """A dictionary of `train_random_dictionary`."""
    return of_autoencoder(model, RANDOM)


def shuffled(basis: Basis) -> Basis:
    """The same numbers times atoms in another order."""
    order = torch.randperm(len(basis.atoms), generator=torch.Generator().manual_seed(SEED)).numpy()
    return basis._replace(name=SHUFFLED, atoms=basis.atoms[order])


def chosen_by_chance(basis: Basis) -> Basis:
    """The same latents, of which measures take some at random."""
    return basis._replace(name=RANDOM_LATENTS, by_chance=True)


def best(scores: np.ndarray, k: int, basis: Basis, fires: np.ndarray, seed: int) -> np.ndarray:
    """The k latents with the largest scores other than 0 or, for `by_chance`, k of those that fire; fewer if there are.

    Args:
        scores: [F]; ties go to the lower index.
        fires: whether a latent fires on any training text, bool [F].
        seed: of the draw.
    """
    if basis.by_chance:
        firing = np.flatnonzero(fires)
        return np.random.default_rng(seed).permutation(firing)[:k]
    order = np.argsort(-scores, kind="stable")[:k]
    return order[scores[order] > 0]


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().float().numpy()
