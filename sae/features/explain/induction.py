"""From a latent's examples to a readable rule: up to four clauses, each of one family with its telling values.

    rule = induce(tokens, background)
    rule.score(facts)                   # [n]: sum over clauses of the best matching value's weight, 0 for no match

Values are weighted by activation-weighted log-odds with an informative Dirichlet prior (Monroe, Colaresi and Quinn
2008, "Fightin' Words", eqs. 15 to 22): with y the weighted count of a value among n examples that fire, y' among n'
that do not, and prior counts α (the value's share in the whole corpus),

    δ = log (y + α)/(n + α₀ - y - α) - log (y' + α)/(n' + α₀ - y' - α),   z = δ / sqrt(1/(y + α) + 1/(y' + α))

A family is selected by what it adds to the activation-weighted AUROC on documents that its weights were not computed
from: above all, a name must predict where the latent fires strongly.
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
BACKGROUND = 2000.0  # silent examples that the whole corpus counts as
TELLING = 1.64  # least z of a value
GAIN = 0.008  # AUROC that a clause must add
COSTS = {"like": 0.02, "ending": 0.05, "beginning": 0.06, "case": 0.03, "piece": 0.05, "kind": 0.01, "place": 0.01}
COSTS |= {"near": 0.02, "before": 0.01}
"""Lead in AUROC that a family needs, as the first clause, over a family that tells a reader more."""
COMMON = {"near": 0.1, "topic": 0.1, "before": 0.05, "like": 0.02}
"""Share of random tokens above which a value is left out: every text contains "and"."""
VALUES = {"token": 16, "word": 16, "near": 10, "topic": 12}
"""Most values of a clause, by family; 8 elsewhere."""


class Background(NamedTuple):
    """How often each value occurs in the whole corpus."""

    counts: np.ndarray
    """float64 [vocabulary]: random tokens that have the value."""
    events: int
    """Random tokens counted."""

    def share(self, items: np.ndarray) -> np.ndarray:
        """Share of random tokens that have each value; 0 for values unknown when the tokens were counted."""
        share = np.zeros(len(items))
        known = items < len(self.counts)
        share[known] = self.counts[items[known]] / max(self.events, 1)
        return share


class LabelledTokens(NamedTuple):
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
    """One statement of a rule: the token has one of these values of a family."""

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

    @classmethod
    def from_json(cls, saved: dict[str, Any], terms: Terms) -> Rule:
        """The rule that `to_json` wrote; values that `terms` does not have yet get a number."""
        clauses = []
        for clause in saved["clauses"]:
            values = clause["values"]
            numbers = terms.add(clause["family"], [entry["value"] for entry in values])
            weights, shares = (np.array([entry[part] for entry in values]) for part in ("weight", "share"))
            clauses.append(Clause(clause["family"], np.array(numbers, np.int32), weights, shares))
        return cls(clauses, saved["threshold"])


def induce(tokens: LabelledTokens, background: Background, families: Sequence[str] = FAMILIES) -> Rule:
    """The rule that best tells a latent's firing tokens from the others; it has no clauses where nothing does.

    Args:
        tokens: examples to learn from; where all fire or none does, the rule has no clause.
        background: how common each value is.
        families: which may be used.
    """
    if tokens.positive.all() or not tokens.positive.any():
        return Rule([], 0.0)
    folds = _folds(tokens.document)
    unseen = {family: _unseen_scores(family, tokens, background, folds) for family in families}
    total = np.zeros(len(tokens.positive))
    selected: list[str] = []
    while len(selected) < CLAUSES:
        left = {family: scores for family, scores in unseen.items() if family not in selected}
        # the first clause, to be read, must say where the latent fires strongly; the others also where it fires at all
        plain, dear = (0.5, 0.25) if selected else (0.0, 1.0)
        reached = {f: _reached(total + s, tokens, plain) - dear * COSTS.get(f, 0.0) for f, s in left.items()}
        family = max(reached, key=lambda f: reached[f])
        if reached[family] < _reached(total, tokens, plain) + GAIN:
            break
        total = total + unseen[family]
        selected.append(family)
    everything = np.ones(len(tokens.positive), dtype=bool)
    clauses = [_Family(family, tokens, background).clause(everything) for family in selected]
    clauses = [clause for clause in clauses if len(clause.values)]
    return Rule(clauses, _threshold(total, tokens.positive))


def _reached(score: np.ndarray, tokens: LabelledTokens, plain: float) -> float:
    """AUROC with firings weighted by their activation, mixed with the unweighted AUROC by the share `plain`."""
    weighted = auroc(score, tokens.positive, tokens.weight)
    return weighted if not plain else (1 - plain) * weighted + plain * auroc(score, tokens.positive)


def _folds(document: np.ndarray) -> np.ndarray:
    """A fold of each example, documents kept whole."""
    _, order = np.unique(document, return_inverse=True)
    return order % FOLDS


def _unseen_scores(family: str, tokens: LabelledTokens, background: Background, folds: np.ndarray) -> np.ndarray:
    """Scores [n] of a family alone, each with weights from the other folds."""
    told = _Family(family, tokens, background)
    scores = np.zeros(len(tokens.positive))
    for fold in range(FOLDS):
        here = folds == fold
        scores[here] = told.scores(told.weights(~here))[here]
    return scores


def _threshold(score: np.ndarray, positive: np.ndarray) -> float:
    """The score with the best F1, half-way to the next lower score."""
    levels = np.unique(score)
    if len(levels) < 2:
        return float(levels[0]) + 1e-9 if len(levels) else 0.0
    cuts = (levels[1:] + levels[:-1]) / 2
    said = score[None] >= cuts[:, None]
    hits = (said & positive).sum(1)
    f1 = 2 * hits / (said.sum(1) + positive.sum())
    return float(cuts[f1.argmax()])


class _Family:
    """One family over some tokens; its values are renumbered from 0, so that counts are short."""

    def __init__(self, family: str, tokens: LabelledTokens, background: Background) -> None:
        self.family, self.tokens = family, tokens
        self.ragged: Ragged = tokens.facts[family]
        self.rows = self.ragged.rows
        self.values, self.inverse = np.unique(self.ragged.items, return_inverse=True)
        self.share = background.share(self.values)
        # the strongest evidence for a value is that it recurs in other documents
        pairs = tokens.document[self.rows] * (len(self.values) + 1) + self.inverse
        pairs[~tokens.positive[self.rows]] = -1
        _, first = np.unique(pairs, return_index=True)
        self.once = np.zeros(len(pairs), dtype=bool)
        self.once[first] = True
        self.once &= tokens.positive[self.rows]

    def weights(self, used: np.ndarray) -> np.ndarray:
        """Log-odds [values] of the telling values, 0 for the others, from the examples `used` (bool [n])."""
        tokens, size = self.tokens, len(self.values)
        positive, silent = used & tokens.positive, used & ~tokens.positive

        def count(weight: np.ndarray) -> np.ndarray:
            return np.bincount(self.inverse, weights=weight, minlength=size)

        fire = count((positive * tokens.weight)[self.rows])
        other = count(silent[self.rows].astype(float)) + BACKGROUND * self.share
        documents = count((self.once & positive[self.rows]).astype(float))
        fires, others = float((positive * tokens.weight).sum()), silent.sum() + BACKGROUND
        prior = np.maximum(0.5, PRIOR * self.share)
        delta = np.log((fire + prior) / np.maximum(fires + PRIOR - fire - prior, 0.5))
        delta -= np.log((other + prior) / np.maximum(others + PRIOR - other - prior, 0.5))
        z = delta / np.sqrt(1 / (fire + prior) + 1 / (other + prior))
        least = min(2, len(np.unique(tokens.document[positive])))
        telling = self.share <= COMMON.get(self.family, 1.0)
        merit = np.where(telling & (delta > 0) & (z > TELLING) & (documents >= least), fire * delta, 0.0)
        kept = np.argsort(-merit, kind="stable")[: VALUES.get(self.family, 8)]
        kept = kept[merit[kept] > 0]
        weights = np.zeros(size)
        weights[kept] = delta[kept]
        return weights

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """[n] scores of the tokens."""
        return Ragged(self.inverse, self.ragged.lengths).best(weights)

    def clause(self, used: np.ndarray) -> Clause:
        """The clause of this family from the examples `used`."""
        weights = self.weights(used)
        mass = (used & self.tokens.positive) * self.tokens.weight
        share = np.bincount(self.inverse, weights=mass[self.rows], minlength=len(self.values)) / max(mass.sum(), 1e-9)
        kept = np.argsort(-share * weights, kind="stable")
        kept = kept[weights[kept] > 0]
        return Clause(self.family, self.values[kept], weights[kept], share[kept])
