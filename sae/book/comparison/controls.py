"""Codes for reference: principal components, untrained encoders, the truth, and chance.

for name, coder in pca_controls(ground, (8, 32)).items(): measure(coder, ground)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sae.book.comparison.coders import Coder
from sae.book.comparison.grounds import Ground
from sae.book.comparison.measures import DISENTANGLEMENT, NOTHING, Measured, sparse_probes
from sae.book.measures.disentanglement import controls, disentanglement
from sae.evaluation.baselines import PCA
from sae.evaluation.probing import full_probe, probing_task, shuffled_probe
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import Identity, TopK

RIDGE = 1e-3  # of the least-squares decoder, in units of the codes' mean square


def pca_controls(ground: Ground, sizes: Sequence[int]) -> dict[str, Coder]:
    """The leading principal components of the training rows, as many as each of `sizes` (at most all of them)."""
    pca = PCA.fit([ground.train])
    coders = {}
    for k in sizes:
        if k > len(pca.components):
            continue
        axes = pca.components[:k]
        coders[f"PCA {k}"] = Coder(
            encode=lambda x, k=k: pca.codes(x, k).float(),
            decode=lambda z: pca.decode(z).float(),
            gain=torch.ones(k),
            atoms=axes.float(),
            parameters=axes.numel() + len(pca.mean),
        )
    return coders


def random_controls(ground: Ground, *, width: int, k: int, dense: int, seed: int) -> dict[str, Coder]:
    """Untrained encoders: k of `width` random directions, and `dense` random projections; decoders by least squares."""
    dim = ground.train.shape[1]
    sparse, projection = Autoencoder(dim, width, TopK(k)), Autoencoder(dim, dense, Identity())
    coders = {}
    for name, model in ((f"random TopK {width}, k {k}", sparse), (f"random projection {dense}", projection)):
        model.initialise(torch.Generator().manual_seed(seed))
        with torch.no_grad():
            model.dictionary.b.copy_(ground.train.mean(0))
        coders[name] = _with_fitted_decoder(model, ground.train)
    return coders


def _with_fitted_decoder(model: Autoencoder, train: Tensor) -> Coder:
    """An untrained encoder with a linear decoder fitted to the training rows [n, D] by ridge regression."""

    @torch.no_grad()
    def encode(x: Tensor) -> Tensor:
        return torch.cat([model.encode(part).to_dense() for part in x.split(4096)])

    codes = encode(train).double()
    mean, centre = train.double().mean(0), codes.mean(0)
    offset = codes - centre
    gram = offset.T @ offset
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    atoms = torch.linalg.solve(gram, offset.T @ (train.double() - mean))
    return Coder(
        encode=encode,
        decode=lambda z: ((z.double() - centre) @ atoms + mean).float(),
        gain=atoms.norm(dim=1),
        atoms=atoms.float(),
        parameters=sum(p.numel() for p in model.parameters()),
    )


def ceiling_and_floor(codes: Tensor, train: Tensor, ground: Ground, *, seed: int) -> dict[str, Measured]:
    """Disentanglement and probes of a perfect code, and of the given codes with the labels shuffled.

    Args:
        codes: of the held-out rows [m, F], of any model.
        train: of the training rows [n, F].
        ground: with factors, labels, or both.
        seed: of the shuffle.
    """
    truth, chance = {}, {}
    if ground.known is not None:
        pairs = controls(codes[: len(ground.known.values)], ground.known.values, seed=seed)
        for values, name in ((truth, "true_factors"), (chance, "shuffled_labels")):
            scores = disentanglement(*pairs[name], trees="extra", seed=seed)
            values |= {field: getattr(scores, field) for field in DISENTANGLEMENT}
    if ground.labels is not None:
        y, y_heldout = ground.labels
        one_hot = [torch.nn.functional.one_hot(part, int(y.max()) + 1).float() for part in (y, y_heldout)]
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        perfect = probing_task(one_hot[0], y, one_hot[1], y_heldout)
        shuffled = shuffled_probe(probing_task(train, y, codes, y_heldout), seed=seed)
        truth |= {"probe_full": full_probe(perfect), **sparse_probes(perfect, one_hot[0].shape[1])}
        chance |= {
            "probe_full": shuffled,
            **sparse_probes(probing_task(train, y[order], codes, y_heldout), codes.shape[1]),
        }
    both = {"true factors": truth, "shuffled labels": chance}
    return {name: Measured(NOTHING | values, [], [], []) for name, values in both.items() if values}
