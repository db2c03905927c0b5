"""Absorption and splitting of first letters: words whose letter is carried by another latent than the letter's.

A dictionary is cheaper where "elephant" fires without "starts with e" and its atom has that direction as well (Chanin
et al. 2024, arXiv:2409.14507). For each letter, a probe on the activations of words is fitted, then

- the letter's latents: the largest positive mean differences, one, two, ... as long as the F1 of logistic regression on
  them rises by more than 0.03 each time; that there are several is splitting;
- of held-out words that begin with the letter and that the probe tells, with a = t . w the projection of the
  activation (less its mean over training tokens, as latents add to a constant) on the probe's unit direction w,
  p_j = z_j atom_j . w, M = the sum of p over the letter's latents, and B = the sum of the 3 largest p > 0 of other
  latents whose atoms have a cosine of 0.1 or more with w:

      absorbed fraction = 0                          where M >= a or B < 0.4 a
                        = 1                          where M <= 0
                        = b / (b + M), b = min(B, a - M)          elsewhere
      fully absorbed    = none of the letter's latents fires, the largest p_j is 0.4 a or more, its cosine 0.025 or more

as in SAEBench (Karvonen et al. 2025, arXiv:2503.09532). There, the mean is not subtracted, latents are ranked by a
probe with an L1 penalty on all of them, and words stand in a prompt with ten examples; here by mean differences, and a
word stands by itself behind `TEMPLATE`, because small models do not follow such prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae.evaluation.semantic.bases import Basis
from sae.evaluation.semantic.intervals import Resamples, compared, mean_of, weighted_mean
from sae.evaluation.semantic.probes import Probe, fit_probe
from sae.evaluation.semantic.results import Row
from sae.evaluation.semantic.sparse_probing import mean_difference

TASK, TEMPLATE = "first letter", "A word: {word}"
F1_JUMP, MOST_LATENTS = 0.03, 10
LEAST_F1 = 0.6
"""Of a letter's probe on held-out words; letters with less are left out, as in SAEBench."""
LEAST_WORDS = 10
"""Held-out words of a letter."""
ABSORBING_COSINE, FULL_COSINE, PROPORTION, MOST_ABSORBING = 0.1, 0.025, 0.4, 3


class Letter(NamedTuple):
    """A letter whose probe works."""

    letter: str
    truth: np.ndarray
    """Whether a word begins with it, bool [n]."""
    probe: Probe
    told: np.ndarray
    """Held-out words that begin with it and that the probe tells, as numbers among all words."""


class Absorbed(NamedTuple):
    """What became of words, [n] each."""

    fraction: np.ndarray
    full: np.ndarray
    """bool."""


def letters_of(words: Sequence[str], activations: np.ndarray, training: np.ndarray) -> list[Letter]:
    """The letters whose probe has an F1 of 0.6 or more on held-out words, of which it tells at least one.

    Args:
        words: n words.
        activations: float32 [n, d].
        training: which words fit the probes, bool [n].
    """
    first = np.array([word[0].lower() for word in words])
    kept = []
    for letter in sorted(set(first.tolist())):
        truth = first == letter
        if (truth & ~training).sum() < LEAST_WORDS or (truth & training).sum() < LEAST_WORDS:
            continue
        probe = fit_probe(activations[training], truth[training])
        says = probe.scores(activations) > 0
        told = np.flatnonzero(says & truth & ~training)
        if len(told) and f1(says[~training], truth[~training]) >= LEAST_F1:
            kept.append(Letter(letter, truth, probe, told))
    return kept


def absorption_rows(
    letters: Sequence[Letter],
    activations: np.ndarray,
    training: np.ndarray,
    codes: dict[str, np.ndarray],
    bases: Sequence[Basis],
    resamples: Resamples,
) -> list[Row]:
    """absorption.fraction, .full, .latents (of a letter) and .f1 (of its latents), means over letters.

    Args:
        letters: of `letters_of`.
        activations: of all words, less their mean over training tokens, float32 [n, d].
        training: bool [n].
        codes: basis's name -> z of all words, float32 [n, F].
        bases: the SAE and its controls.
        resamples: of the held-out words.
    """
    testing = np.flatnonzero(~training)
    place = {word: number for number, word in enumerate(testing)}
    by_measure: dict[str, dict[str, list]] = {name: {} for name in ("fraction", "full", "latents", "f1")}
    for basis in bases:
        z = codes[basis.name]
        for letter in letters:
            latents = letter_latents(z[training], letter.truth[training])
            of = absorbed(activations[letter.told], z[letter.told], basis.atoms, letter.probe.direction, latents)
            at = np.array([place[word] for word in letter.told])
            says = _told_by(z, latents, letter.truth, training)
            truth = letter.truth[testing]
            metrics = {
                "fraction": lambda w, v=of.fraction, at=at: weighted_mean(v, w[:, at]),
                "full": lambda w, v=of.full, at=at: weighted_mean(v.astype(float), w[:, at]),
                # chosen on training words: the held-out ones say nothing of its spread
                "latents": lambda w, of=latents: np.r_[float(len(of)), np.full(len(w) - 1, np.nan)],
                "f1": lambda w, says=says, truth=truth: weighted_f1(says, truth, w),
            }
            for name, metric in metrics.items():
                by_measure[name].setdefault(basis.name, []).append(metric)
    rows: list[Row] = []
    for name, metrics in by_measure.items():
        rows += compared(f"absorption.{name}", TASK, None, {s: mean_of(m) for s, m in metrics.items()}, resamples)
    return rows


def letter_latents(z: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The latents of a class, one at least where any fires more in it, by the jumps in F1 on the training words.

    Args:
        z: [n, F].
        truth: bool [n].
    """
    difference = mean_difference(z, truth)
    ranked = np.argsort(-difference, kind="stable")[:MOST_LATENTS]
    ranked = ranked[difference[ranked] > 0]
    kept, so_far = 0, -np.inf
    for k in range(1, len(ranked) + 1):
        score = f1(fit_probe(z[:, ranked[:k]], truth).scores(z[:, ranked[:k]]) > 0, truth)
        if score <= so_far + F1_JUMP:
            break
        kept, so_far = k, score
    return ranked[:kept]


def absorbed(
    activations: np.ndarray, z: np.ndarray, atoms: np.ndarray, direction: np.ndarray, latents: np.ndarray
) -> Absorbed:
    """How far other latents carry a class that its own should.

    Args:
        activations: of words that the probe tells, less the constant to which latents add [n, d].
        z: of the same words [n, F].
        atoms: [F, d].
        direction: of the probe [d], of any length.
        latents: the class's, int64 [k].
    """
    unit = direction / np.linalg.norm(direction)
    lengths = np.linalg.norm(atoms, axis=1)
    projection = atoms @ unit
    cosine = np.divide(projection, lengths, out=np.zeros(len(atoms)), where=lengths > 0)
    along, part = activations @ unit, z * projection
    main = part[:, latents].sum(1)
    could = np.array(part)
    could[:, latents] = 0
    could[:, cosine < ABSORBING_COSINE] = 0
    most = min(MOST_ABSORBING, could.shape[1])
    others = np.sort(np.clip(could, 0, None), axis=1)[:, -most:].sum(1)
    share = np.minimum(others, along - main)
    fraction = np.divide(share, share + main, out=np.ones(len(z)), where=main > 0)
    fraction[(main >= along) | (along <= 0) | (others < PROPORTION * along)] = 0
    top = part.argmax(1)
    strongest = part[np.arange(len(part)), top]
    silent = (z[:, latents] < 1e-8).all(1)
    full = silent & (cosine[top] >= FULL_COSINE) & (along > 0) & (strongest >= PROPORTION * along)
    return Absorbed(fraction.clip(0, 1), full)


def f1(says: np.ndarray, truth: np.ndarray) -> float:
    """F1 of a yes or no [n]: 2 both / (said + true)."""
    return float(weighted_f1(says, truth, np.ones((1, len(says))))[0])


def weighted_f1(says: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F1 [R] under weights [R, n]; NaN where none is said or true."""
    both, either = weights @ (says & truth).astype(float), weights @ (says.astype(float) + truth)
    return np.divide(2 * both, either, out=np.full(len(both), np.nan), where=either > 0)


def _told_by(z: np.ndarray, latents: np.ndarray, truth: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Whether logistic regression on some latents tells each held-out word, bool."""
    if not len(latents):
        return np.zeros(int((~training).sum()), dtype=bool)
    return fit_probe(z[training][:, latents], truth[training]).scores(z[~training][:, latents]) > 0
