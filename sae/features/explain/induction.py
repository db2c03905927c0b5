"""From a latent's examples to a rule a person can read: up to four clauses, each a family with its telling values.

    rule = induce(sample, background)
    rule.score(facts)                   # [n]: sum over clauses of the best matching value's weight, 0 for no match

Values are weighted by activation-weighted log-odds with an informative Dirichlet prior (Monroe, Colaresi and Quinn
2008, "Fightin' Words", eqs. 15 to 22): with y the weighted count of a value among n examples that fire, y' among n'
that do not, and prior counts α (the value's share in the whole corpus),

    δ = log (y + α)/(n + α₀ - y - α) - log (y' + α)/(n' + α₀ - y' - α),   z = δ / sqrt(1/(y + α) + 1/(y' + α))

Families are chosen by what they add to the activation-weighted AUROC on documents that their weights were not computed
from: a name is to tell first of all where the latent fires strongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sae.features.explain.predicates import FAMILIES, Facts, Ragged, Terms
from sae.features.explain.scoring import auroc

FOLDS = 3
CLAUSES = 4
PRIOR = 10.0  # α₀, in examples; a value's prior count is at least half an example
BACKGROUND = 2000.0  # examples that the whole corpus counts for among those that do not fire
TELLING = 1.64  # least z of a value
GAIN = 0.008  # AUROC that a clause must add
COSTS = {"like": 0.02, "ending": 0.05, "beginning": 0.06, "case": 0.03, "piece": 0.05, "kind": 0.01, "place": 0.01}
COSTS |= {"near": 0.02, "before": 0.01}
"""AUROC that a family must be better by, as the first clause, than one that says more to a reader."""
COMMON = {"near": 0.1, "topic": 0.1, "before": 0.05, "like": 0.02}
"""Share of random tokens above which a value is left out: every text has an "and"."""
VALUES = {"token": 16, "word": 16, "near": 10, "topic": 12}
"""Most values of a clause, by family; 8 elsewhere."""


class Background(NamedTuple):
    """How often each value occurs in the corpus at large."""

    counts: np.ndarray
    """float64 [vocabulary]: random tokens of which the value can be said."""
    events: int
    """Random tokens counted."""

    def share(self, items: np.ndarray) -> np.ndarray:
        """Share of random tokens that have each value; values met later have none."""
        found = np.zeros(len(items))
        known = items < len(self.counts)
        found[known] = self.counts[items[known]] / max(self.events, 1)
        return found


class Sample(NamedTuple):
    """Tokens at which a latent fires, and tokens at which it is silent."""

    facts: Facts
    positive: np.ndarray
    """bool [n]"""
    weight: np.ndarray
    """float64 [n]: the activation over the mean of those that fire; 1 where silent."""
    place: np.ndarray
    """Where the tokens stand, int64 [n], see `keys.pack`."""
    document: np.ndarray
    """int64 [n]"""


class Clause(NamedTuple):
    """One statement of a rule: the token has one of some values of a family."""

    family: str
    values: np.ndarray
    """Their numbers in the vocabulary, the most telling first, int32 [m]."""
    weights: np.ndarray
    """Their log-odds, float64 [m]."""
    shares: np.ndarray
    """Share of the firing examples' weight that each value has, float64 [m]."""

    def score(self, facts: Facts, size: int) -> np.ndarray:
        """The best weight among each token's values, 0 for none; `size` is the vocabulary's."""
        weight = np.zeros(size)
        weight[self.values] = self.weights
        return facts[self.family].best(weight)


class Rule(NamedTuple):
    """A sum of clauses, with the score from which on the latent is said to fire."""

    clauses: list[Clause]
    threshold: float

    def score(self, facts: Facts, size: int) -> np.ndarray:
        """[n] scores of n tokens."""
        count = len(next(iter(facts.values())).lengths)
        return sum((clause.score(facts, size) for clause in self.clauses), np.zeros(count))

    def to_json(self, terms: Terms) -> dict[str, Any]:
        """As it is saved: clauses with their values and weights, and the threshold."""
        return {
            "threshold": self.threshold,
            "clauses": [
                {
                    "family": clause.family,
                    "values": [
                        {"value": terms.names[number][1], "weight": round(weight, 3), "share": round(share, 3)}
                        for number, weight, share in zip(
                            clause.values.tolist(), clause.weights.tolist(), clause.shares.tolist(), strict=True
                        )
                    ],
                }
                for clause in self.clauses
            ],
        }


def induce(sample: Sample, background: Background, families: Sequence[str] = FAMILIES) -> Rule:
    """The rule that tells a latent's firing tokens best from the others; without clauses where nothing does.

    Args:
        sample: examples to learn from; where all fire or none does, the rule has no clause.
        background: how common each value is.
        families: those that may be used.
    """
    if sample.positive.all() or not sample.positive.any():
        return Rule([], 0.0)
    folds = _folds(sample.document)
    unseen = {family: _unseen_scores(family, sample, background, folds) for family in families}
    total = np.zeros(len(sample.positive))
    chosen: list[str] = []
    while len(chosen) < CLAUSES:
        left = {family: scores for family, scores in unseen.items() if family not in chosen}
        # the first clause is to be read and says where the latent fires strongly, the others also where it fires at all
        plain, dear = (0.5, 0.25) if chosen else (0.0, 1.0)
        reached = {f: _reached(total + s, sample, plain) - dear * COSTS.get(f, 0.0) for f, s in left.items()}
        family = max(reached, key=lambda f: reached[f])
        if reached[family] < _reached(total, sample, plain) + GAIN:
            break
        total = total + unseen[family]
        chosen.append(family)
    everything = np.ones(len(sample.positive), dtype=bool)
    clauses = [_Family(family, sample, background).clause(everything) for family in chosen]
    clauses = [clause for clause in clauses if len(clause.values)]
    return Rule(clauses, _threshold(total, sample.positive))


def _reached(score: np.ndarray, sample: Sample, plain: float) -> float:
    """AUROC with firings weighted by their activation, and by the share `plain` alike."""
    weighted = auroc(score, sample.positive, sample.weight)
    return weighted if not plain else (1 - plain) * weighted + plain * auroc(score, sample.positive)


def _folds(document: np.ndarray) -> np.ndarray:
    """A fold of each example, documents kept whole."""
    _, order = np.unique(document, return_inverse=True)
    return order % FOLDS


def _unseen_scores(family: str, sample: Sample, background: Background, folds: np.ndarray) -> np.ndarray:
    """Scores [n] of a family alone, each by weights from the other folds."""
    told = _Family(family, sample, background)
    scores = np.zeros(len(sample.positive))
    for fold in range(FOLDS):
        here = folds == fold
        scores[here] = told.scores(told.weights(~here))[here]
    return scores


def _threshold(score: np.ndarray, positive: np.ndarray) -> float:
    """The score at which F1 is best, half-way to the next lower one."""
    levels = np.unique(score)
    if len(levels) < 2:
        return float(levels[0]) + 1e-9 if len(levels) else 0.0
    cuts = (levels[1:] + levels[:-1]) / 2
    said = score[None] >= cuts[:, None]
    hits = (said & positive).sum(1)
    f1 = 2 * hits / (said.sum(1) + positive.sum())
    return float(cuts[f1.argmax()])


class _Family:
    """One family over one sample: its values renumbered from 0, so that counting is short."""

    def __init__(self, family: str, sample: Sample, background: Background) -> None:
        self.family, self.sample = family, sample
        self.ragged: Ragged = sample.facts[family]
        self.rows = self.ragged.rows
        self.values, self.inverse = np.unique(self.ragged.items, return_inverse=True)
        self.share = background.share(self.values)
        # the strongest evidence of a value is that it comes back in other documents
        pairs = sample.document[self.rows] * (len(self.values) + 1) + self.inverse
        pairs[~sample.positive[self.rows]] = -1
        _, first = np.unique(pairs, return_index=True)
        self.once = np.zeros(len(pairs), dtype=bool)
        self.once[first] = True
        self.once &= sample.positive[self.rows]

    def weights(self, used: np.ndarray) -> np.ndarray:
        """Log-odds of the telling values, 0 for the others, [values], from the examples `used` (bool [n])."""
        sample, size = self.sample, len(self.values)
        positive, silent = used & sample.positive, used & ~sample.positive

        def count(weight: np.ndarray) -> np.ndarray:
            return np.bincount(self.inverse, weights=weight, minlength=size)

        fire = count((positive * sample.weight)[self.rows])
        other = count(silent[self.rows].astype(float)) + BACKGROUND * self.share
        documents = count((self.once & positive[self.rows]).astype(float))
        fires, others = float((positive * sample.weight).sum()), silent.sum() + BACKGROUND
        prior = np.maximum(0.5, PRIOR * self.share)
        delta = np.log((fire + prior) / np.maximum(fires + PRIOR - fire - prior, 0.5))
        delta -= np.log((other + prior) / np.maximum(others + PRIOR - other - prior, 0.5))
        z = delta / np.sqrt(1 / (fire + prior) + 1 / (other + prior))
        least = min(2, len(np.unique(sample.document[positive])))
        telling = self.share <= COMMON.get(self.family, 1.0)
        merit = np.where(telling & (delta > 0) & (z > TELLING) & (documents >= least), fire * delta, 0.0)
        kept = np.argsort(-merit, kind="stable")[: VALUES.get(self.family, 8)]
        kept = kept[merit[kept] > 0]
        found = np.zeros(size)
        found[kept] = delta[kept]
        return found

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """[n] scores of the sample's examples."""
        return Ragged(self.inverse, self.ragged.lengths).best(weights)

    def clause(self, used: np.ndarray) -> Clause:
        """The clause of this family from the examples `used`."""
        weights = self.weights(used)
        mass = (used & self.sample.positive) * self.sample.weight
        share = np.bincount(self.inverse, weights=mass[self.rows], minlength=len(self.values)) / max(mass.sum(), 1e-9)
        kept = np.argsort(-share * weights, kind="stable")
        kept = kept[weights[kept] > 0]
        return Clause(self.family, self.values[kept], weights[kept], share[kept])
