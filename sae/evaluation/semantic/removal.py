"""Spurious-correlation removal and targeted probe perturbation: concepts taken out of activations, latent by latent.

Both ablate the n latents S from which a probe reads a concept. With t the mean activation of a text and z the mean of
its latents' values, t - z_S @ atoms_S is left: the reconstruction error stays. The effect of latent j on a probe with
direction w is (mean z_j in class - mean z_j in rest) (w . atom_j); S has the n largest.

    SCR = (A_ablated - A_biased) / (A_clean - A_biased)         (Karvonen et al. 2024, arXiv:2411.18895)
    TPP = mean_i [ (A_i - A_i,i) - mean_{j != i} (A_j - A_j,i) ]

SCR: a probe for an attribute is fitted on texts in which a second one always goes with it. A_biased is its accuracy
where the two are independent, A_ablated that after the second one's latents are ablated (largest |effect|), A_clean
that of a probe fitted where they are independent. TPP: A_j is the accuracy of class j's probe, A_j,i that after class
i's latents are ablated (largest effect, of latents that fire more in the class). SAEBench draws as many texts of the
rest as of a class; here all are used, with class and rest weighing the same, which has the same expectation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae.evaluation.semantic.bases import Basis, best
from sae.evaluation.semantic.intervals import Metric, Resamples, balanced_accuracy, compared
from sae.evaluation.semantic.probes import Probe, fit_probe
from sae.evaluation.semantic.results import Row
from sae.evaluation.semantic.sparse_probing import Labelled, mean_difference

LEAST_GAIN = 0.001
"""A_clean - A_biased below which SCR is not defined; SAEBench calls it 0 then."""


def effects(z: np.ndarray, truth: np.ndarray, atoms: np.ndarray, direction: np.ndarray, *, signed: bool) -> np.ndarray:
    """Effect of every latent on a probe [F].

    Args:
        z: of training texts [n, F].
        truth: whether a text is of the class, bool [n].
        atoms: [F, d].
        direction: of the probe [d].
        signed: TPP's, of latents that fire more in the class, 0 for others (numbers of both signs, such as components,
            have no such side); else SCR's |effect|.
    """
    difference = mean_difference(z, truth)
    along = atoms @ direction
    if not signed:
        return np.abs(difference * along)
    return (difference if (z < 0).any() else difference.clip(min=0)) * along


def ablated(activations: np.ndarray, z: np.ndarray, atoms: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """Mean activations [n, d] without what some latents contribute."""
    return activations - z[:, latents] @ atoms[latents]


def tpp_rows(data: Labelled, bases: Sequence[Basis], ks: Sequence[int], resamples: Resamples, seed: int) -> list[Row]:
    """tpp.score, and tpp.intended, which is its first half: what the class's own probe loses."""
    names = sorted(set(data.labels.tolist()))
    truths = [data.labels == name for name in names]
    train, test = data.training, ~data.training
    probes = [fit_probe(data.activations[train], truth[train]) for truth in truths]
    clean = [probe.scores(data.activations[test]) for probe in probes]
    rows: list[Row] = []
    for k in ks:
        scores: dict[str, Metric] = {}
        intended: dict[str, Metric] = {}
        for basis in bases:
            z = data.codes[basis.name]
            fires = (z[train] != 0).any(0)
            after = []  # [ablated class][probe] -> scores of the held-out texts
            for i, (truth, probe) in enumerate(zip(truths, probes, strict=True)):
                effect = effects(z[train], truth[train], basis.atoms, probe.direction, signed=True)
                latents = best(effect, k, basis, fires, seed + i)
                left = ablated(data.activations[test], z[test], basis.atoms, latents)
                after.append([other.scores(left) for other in probes])
            of = [truth[test] for truth in truths]
            scores[basis.name] = lambda w, after=after, of=of: tpp(*_drops(clean, after, of, w))
            intended[basis.name] = lambda w, after=after, of=of: tpp(*_drops(clean, after, of, w), intended_only=True)
        rows += compared("tpp.score", data.task, k, scores, resamples)
        rows += compared("tpp.intended", data.task, k, intended, resamples)
    return rows


def tpp(clean: np.ndarray, after: np.ndarray, *, intended_only: bool = False) -> np.ndarray:
    """TPP from accuracies.

    Args:
        clean: A_j [C, ...].
        after: A_j,i as [i, j, ...].
        intended_only: leave out what other classes' probes lose.
    """
    drop = clean[None] - after
    count = len(clean)
    intended = np.stack([drop[i, i] for i in range(count)])
    if intended_only:
        return intended.mean(0)
    others = (drop.sum(1) - intended) / (count - 1)
    return (intended - others).mean(0)


def _drops(
    clean: list[np.ndarray], after: list[list[np.ndarray]], truths: list[np.ndarray], weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    before = np.stack([balanced_accuracy(s, truth, weights) for s, truth in zip(clean, truths, strict=True)])
    behind = [[balanced_accuracy(s, truth, weights) for s, truth in zip(row, truths, strict=True)] for row in after]
    return before, np.array(behind)


def scr_rows(data: Labelled, bases: Sequence[Basis], ks: Sequence[int], resamples: Resamples, seed: int) -> list[Row]:
    """scr.score in both directions, each attribute as the one that is kept and as the one that is removed.

    A direction is left out where the biased probe is as good as the clean one: there is nothing to remove.

    Args:
        data: with `other`; all four cells alike in size.
    """
    assert data.other is not None
    label_kept, other_kept = f"{data.task}: label kept", f"{data.task}: other kept"
    kept = data.labels == sorted(set(data.labels.tolist()))[0]
    removed = data.other == sorted(set(data.other.tolist()))[0]
    rows: list[Row] = []
    for name, target, spurious in ((label_kept, kept, removed), (other_kept, removed, kept)):
        rows += _one_direction(name, data, target, spurious, bases, ks, resamples, seed)
    return rows


def _one_direction(
    name: str,
    data: Labelled,
    target: np.ndarray,
    spurious: np.ndarray,
    bases: Sequence[Basis],
    ks: Sequence[int],
    resamples: Resamples,
    seed: int,
) -> list[Row]:
    train, test = data.training, ~data.training
    x = data.activations
    together = train & (target == spurious)
    biased = fit_probe(x[together], target[together])
    clean = fit_probe(x[train], target[train]).scores(x[test])
    to_remove: Probe = fit_probe(x[train], spurious[train])
    before = biased.scores(x[test])
    rows: list[Row] = []
    for k in ks:
        metrics: dict[str, Metric] = {}
        for basis in bases:
            z = data.codes[basis.name]
            effect = effects(z[train], spurious[train], basis.atoms, to_remove.direction, signed=False)
            latents = best(effect, k, basis, (z[train] != 0).any(0), seed)
            after = biased.scores(ablated(x[test], z[test], basis.atoms, latents))
            metrics[basis.name] = lambda w, after=after: scr(
                *(_by_cell(scores, target[test], spurious[test], w) for scores in (before, after, clean))
            )
        rows += compared("scr.score", name, k, metrics, resamples)
    return rows


def scr(biased: np.ndarray, after: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """SCR from accuracies [R]; NaN where the biased probe is as good as the clean one."""
    gain = clean - biased
    return np.divide(after - biased, gain, out=np.full(len(gain), np.nan), where=gain >= LEAST_GAIN)


def _by_cell(scores: np.ndarray, target: np.ndarray, spurious: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Accuracy with the second attribute independent of the first, whatever the cells' sizes among held-out texts."""
    cells = [_within(scores, target, spurious == value, weights) for value in (True, False)]
    return np.mean(cells, axis=0)


def _within(scores: np.ndarray, target: np.ndarray, among: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return balanced_accuracy(scores[among], target[among], weights[:, among])
