"""Codes that numbers are read beside: principal components, an encoder that learnt nothing, the truth, and chance.

for name, coder in pca_controls(ground, (8, 32)).items(): measure(coder, ground)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sae.book.comparison.coders import Coder
from sae.book.comparison.grounds import Ground
from sae.book.comparison.measures import COLUMNS_OF_CODES, PROBED, Measured
from sae.book.measures.disentanglement import controls, disentanglement
from sae.evaluation.baselines import PCA
from sae.evaluation.probing import full_probe, probing_task, shuffled_probe, sparse_probe
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import Identity, TopK

RIDGE = 1e-3  # of the least-squares decoder, in units of the codes' mean square


def pca_controls(ground: Ground, sizes: Sequence[int]) -> dict[str, Coder]:
    """The leading principal components of the training rows, as many as each of `sizes` (at most all of them)."""
    pca = PCA.fit([ground.train])
    found = {}
    for k in sizes:
        if k > len(pca.components):
            continue
        axes = pca.components[:k]
        found[f"PCA {k}"] = Coder(
            encode=lambda x, k=k: pca.codes(x, k).float(),
            decode=lambda z: pca.decode(z).float(),
            gain=torch.ones(k),
            atoms=axes.float(),
            parameters=axes.numel() + len(pca.mean),
        )
    return found


def random_controls(ground: Ground, *, width: int, k: int, dense: int, seed: int) -> dict[str, Coder]:
    """Encoders as drawn: k of `width` random directions, and `dense` random projections; decoders by least squares."""
    dim = ground.train.shape[1]
    sparse, projection = Autoencoder(dim, width, TopK(k)), Autoencoder(dim, dense, Identity())
    found = {}
    for name, model in ((f"random TopK {width}, k {k}", sparse), (f"random projection {dense}", projection)):
        model.initialise(torch.Generator().manual_seed(seed))
        with torch.no_grad():
            model.dictionary.b.copy_(ground.train.mean(0))
        found[name] = _with_fitted_decoder(model, ground.train)
    return found


def _with_fitted_decoder(model: Autoencoder, train: Tensor) -> Coder:
    """An untrained encoder with the linear decoder that is best for the training rows [n, D] (ridge regression)."""

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
    """What a perfect code, and the given codes with the labels shuffled, score: for disentanglement and probes alone.

    Args:
        codes: of the held-out rows [m, F], of any model.
        train: of the training rows [n, F].
        ground: with factors, labels, or both.
        seed: of the shuffle.
    """
    found: dict[str, dict[str, float | None]] = {"true factors": {}, "shuffled labels": {}}
    if ground.known is not None:
        pairs = controls(codes[: len(ground.known.values)], ground.known.values, seed=seed)
        for name, control in (("true factors", "true_factors"), ("shuffled labels", "shuffled_labels")):
            scores = disentanglement(*pairs[control], trees="extra", seed=seed)
            fields = ("disentanglement", "completeness", "informativeness", "modularity", "mig")
            found[name] |= {field: getattr(scores, field) for field in fields}
    if ground.labels is not None:
        y, y_held = ground.labels
        truth = [torch.nn.functional.one_hot(part, int(y.max()) + 1).float() for part in (y, y_held)]
        perfect = probing_task(truth[0], y, truth[1], y_held)
        found["true factors"]["probe_full"] = full_probe(perfect)
        found["shuffled labels"]["probe_full"] = shuffled_probe(probing_task(train, y, codes, y_held), seed=seed).mean
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        mixed = probing_task(train, y[order], codes, y_held)
        for k in PROBED:
            found["true factors"][f"probe_{k}"] = sparse_probe(perfect, k).accuracy if k <= truth[0].shape[1] else None
            found["shuffled labels"][f"probe_{k}"] = sparse_probe(mixed, k).accuracy if k <= codes.shape[1] else None
    empty: dict[str, float | None] = dict.fromkeys(COLUMNS_OF_CODES)
    return {name: Measured(empty | values, [], [], []) for name, values in found.items() if values}
