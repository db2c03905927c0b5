"""How well an autoencoder recovers known features.

    recovery = recovery_metrics(model, data.features, data.heldout(50_000))
    recovery.mcc, recovery.f1, recovery.uniqueness

Latents are compared with features in two ways: `match` pairs them one to one (Hungarian), and `best_features` gives
every latent its nearest feature, which others may share. Nearness is |cos| between atom and feature.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae.evaluation.reconstruction import fvu_of, fvu_sums
from sae.evaluation.synthetic.sampling import Sample, unit
from sae.models.autoencoder import Autoencoder

RECOVERED = 0.9  # |cos| over which a feature counts as recovered
CHUNK = 4096  # tokens whose codes are dense at a time


class Matching(NamedTuple):
    """One-to-one pairs of latents and features, min(F, G) of them, in the order of the features."""

    latents: Tensor
    """int64 [M]."""
    features: Tensor
    """int64 [M], ascending."""
    cosines: Tensor
    """Signed cosine of every pair, float64 [M]."""

    @property
    def mcc(self) -> float:
        """Mean |cos| over the pairs."""
        return self.cosines.abs().mean().item()

    @property
    def positive(self) -> float:
        """Share of the pairs with a positive cosine."""
        return (self.cosines > 0).double().mean().item()


class Detection(NamedTuple):
    """How well 'latent fires' predicts 'feature fires', float64 [M] a score; NaN where the feature never fired."""

    precision: Tensor
    """Share of the latent's firings in which the feature fires; 0 for a latent that never fires."""
    recall: Tensor
    """Share of the feature's firings in which the latent fires."""
    f1: Tensor
    """Harmonic mean of the two: 2 both / (latent's firings + feature's firings)."""


class Recovery(NamedTuple):
    """How well an autoencoder with F latents recovers G features."""

    mcc: float
    """Mean |cos| over the one-to-one pairs of latents and features with the largest sum of |cos|, min(F, G) pairs
    (O'Neill et al. 2024, arXiv:2411.13117; "mean correlation coefficient", for directions instead of activations)."""
    positive: float
    """Share of those pairs with a positive cosine; an encoder with values >= 0 can use no other."""
    recovered: float
    """Share of all G features whose pair has |cos| > 0.9."""
    uniqueness: float
    """Number of different features that are the nearest one of some live latent, over the number of live latents
    (SynthSAEBench's measure, there over all latents); 1 if no two track the same, 0 if no latent lives."""
    f1: float
    """Mean F1 of 'latent fires' against 'feature fires' over the one-to-one pairs whose feature fires at all."""
    precision: float
    """Mean precision over the same pairs; a latent that never fires has 0."""
    recall: float
    """Mean recall over the same pairs."""
    latent_f1: float
    """Mean over all latents of F1 against their nearest feature: SynthSAEBench's F1. A dead latent has 0."""
    fvu: float
    """Σ||x - x̂||² / Σ||x - mean||² over all samples."""
    l0: float
    """Mean number of latents that fire."""
    true_l0: float
    """Mean number of features that fire."""
    dead: float
    """Share of latents that never fired."""
    silent: float
    """Share of features that never fired in the samples, and so could not be judged by F1."""


def match(atoms: Tensor, features: Tensor) -> Matching:
    """The one-to-one pairs with the largest sum of |cos| (Hungarian method, Kuhn 1955).

    Args:
        atoms: of the latents [F, d], of any length; an atom of length zero has cosine 0 with everything.
        features: true directions [G, d].

    Raises:
        ValueError: the widths differ.
    """
    cosine = cosines(atoms, features)
    latents, matched = (torch.from_numpy(side) for side in linear_sum_assignment(cosine.abs().numpy(), maximize=True))
    order = matched.argsort()
    latents, matched = latents[order], matched[order]
    return Matching(latents, matched, cosine[latents, matched])


def best_features(atoms: Tensor, features: Tensor) -> Tensor:
    """The feature with the largest |cos| to every atom, int64 [F]."""
    return cosines(atoms, features).abs().argmax(1)


def uniqueness(atoms: Tensor, features: Tensor, live: Tensor) -> float:
    """Different nearest features of the live latents (bool [F]) over their number; 0 where none lives."""
    best = best_features(atoms, features)[live]
    return len(best.unique()) / max(len(best), 1)


def cosines(atoms: Tensor, features: Tensor) -> Tensor:
    """Cosine of every atom [F, d] with every feature [G, d]: float64 [F, G], on the CPU."""
    if atoms.ndim != 2 or features.ndim != 2 or atoms.shape[1] != features.shape[1]:
        shapes = f"{tuple(atoms.shape)} and {tuple(features.shape)}"
        raise ValueError(f"expected atoms [F, d] and features [G, d] of one width d, got {shapes}")
    return unit(atoms.detach().cpu().double()) @ unit(features.detach().cpu().double()).T


def detection(both: Tensor, latent: Tensor, feature: Tensor) -> Detection:
    """Precision, recall and F1 from counts [M]: tokens in which both fire, the latent fires, the feature fires."""
    both, latent, feature = both.double(), latent.double(), feature.double()
    seen = feature > 0
    scores = (both / latent.clamp_min(1), both / feature.clamp_min(1), 2 * both / (latent + feature).clamp_min(1))
    return Detection(*(torch.where(seen, score, torch.nan) for score in scores))


@torch.no_grad()
def recovery_metrics(model: Autoencoder, features: Tensor, samples: Iterable[Sample]) -> Recovery:
    """Compare an autoencoder, in its saved form (unscaled inputs), with the features that made held-out samples.

    Args:
        model: reads and writes the width of the samples.
        features: true directions [G, d] (`SyntheticData.features`).
        samples: held-out (`SyntheticData.heldout`); their sizes and order do not matter.

    Raises:
        ValueError: no sample, or widths that differ.
    """
    atoms, device = model.dictionary.W, model.W_enc.device
    pairs, best = match(atoms, features), best_features(atoms, features)
    tokens, sums, centre = 0, {}, None
    # tokens in which latents fire, features fire, and both of a pair do, each latent with its pair or nearest feature
    latent, feature = torch.zeros(len(atoms), dtype=torch.int64), torch.zeros(len(features), dtype=torch.int64)
    both_matched, both_best = torch.zeros_like(pairs.latents), torch.zeros_like(latent)
    for x, truth, target in samples:
        wanted = x if target is None else target
        parts = zip(x.split(CHUNK), wanted.split(CHUNK), (truth.to_dense() > 0).split(CHUNK), strict=True)
        for rows, want, true in parts:
            codes, x_hat = model(rows.to(device))
            fired = codes.to_dense().cpu() > 0
            latent += fired.sum(0)
            feature += true.sum(0)
            both_matched += (fired[:, pairs.latents] & true[:, pairs.features]).sum(0)
            both_best += (fired & true[:, best]).sum(0)
            tokens += len(rows)
            centre = want.double().mean(0) if centre is None else centre
            sums = {name: sums.get(name, 0) + value for name, value in fvu_sums(want, x_hat.cpu(), centre).items()}
    if tokens == 0:
        raise ValueError("samples: expected at least one, got none")
    matched = detection(both_matched, latent[pairs.latents], feature[pairs.features])
    by_latent = detection(both_best, latent, feature[best])
    return Recovery(
        mcc=pairs.mcc,
        positive=pairs.positive,
        recovered=(pairs.cosines.abs() > RECOVERED).sum().item() / len(features),
        uniqueness=uniqueness(atoms, features, latent > 0),
        f1=matched.f1.nanmean().item(),
        precision=matched.precision.nanmean().item(),
        recall=matched.recall.nanmean().item(),
        latent_f1=by_latent.f1.nan_to_num(0.0).mean().item(),
        fvu=fvu_of("error", sums).item(),
        l0=latent.sum().item() / tokens,
        true_l0=feature.sum().item() / tokens,
        dead=(latent == 0).double().mean().item(),
        silent=(feature == 0).double().mean().item(),
    )
