"""Two dictionaries compared: by atoms, by encoder rows, by activations; beside each number what chance gives.

pair = compare(first, second, PairSettings())
pair.atoms.mcc, pair.atoms.chance.mcc
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.evaluation.bootstrap import GroupSums, Interval, ratio
from sae.evaluation.matching.activations import Activations, correlation
from sae.evaluation.matching.assignment import (
    BothNearest,
    OneToOne,
    Similarity,
    cosine_similarity,
    nearest,
    one_to_one,
)
from sae.evaluation.matching.relations import Sides, sides
from sae.evaluation.synthetic.metrics import RECOVERED
from sae.evaluation.synthetic.sampling import unit

CURVE = tuple(round(0.05 * step, 2) for step in range(8, 20))
"""Thresholds at which the share of pairs is given: 0.4 to 0.95."""


class Side(NamedTuple):
    """The latents of one run that take part: those that fired, where that is known."""

    latents: Tensor
    """Their numbers in the run, int64 [n], ascending."""
    atoms: Tensor | None
    """[n, d]; None where they cannot be compared."""
    encoder: Tensor | None
    """[n, d_in], likewise."""
    activations: Activations | None
    """Of these latents."""


class PairSettings(NamedTuple):
    """How a pair is compared."""

    same: float = 0.7
    resamples: int = 1000
    seed: int = 0


class Likeness(NamedTuple):
    """How alike two sets of latents are by one similarity."""

    mcc: Interval
    """Mean |similarity| over the one-to-one pairs, as many as the smaller side has latents."""
    over: Interval
    """Share of these pairs with |similarity| over 0.9."""
    same: Interval
    """Share of these pairs that count as the same latent (`MatchConfig.same`)."""
    curve: list[float]
    """Share of these pairs at or over each threshold of `CURVE`."""
    gap: float
    """What the pairs' mean may lack of the best pairs' (`OneToOne.gap`)."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        plain = {"mcc": self.mcc.to_json(), "over": self.over.to_json(), "same": self.same.to_json()}
        return {**plain, "curve": dict(zip(map(str, CURVE), self.curve, strict=True)), "gap": self.gap}


class Compared(NamedTuple):
    """One similarity: the likeness, the pairs, and what chance gives."""

    likeness: Likeness
    chance: Likeness
    near: BothNearest
    pairs: OneToOne
    chance_near: BothNearest
    chance_pairs: OneToOne


class Pair(NamedTuple):
    """Two runs compared."""

    atoms: Compared | None
    activations: Compared | None
    encoder: Interval | None
    """Mean |cosine| of the encoder rows of the pairs by atoms."""
    both: Interval | None
    """Share of the pairs by atoms whose atoms and encoder rows are both the same."""
    positive: Interval | None
    """Share of the pairs by atoms whose atoms point the same way."""
    relations: Sides | None
    """By place among the sides' latents."""
    chance_relations: dict[str, int] | None
    """How many latents are so related with the random dictionary."""


def compare(first: Side, second: Side, settings: PairSettings) -> Pair:
    """Compare two sides by everything that both have."""
    pair = Pair(None, None, None, None, None, None, None)
    if first.activations is not None and second.activations is not None:
        true = correlation(first.activations, second.activations)
        chance = correlation(first.activations, second.activations.permuted(settings.seed))
        pair = pair._replace(activations=_compared(true, chance, settings))
    if first.atoms is None or second.atoms is None or first.atoms.shape[1] != second.atoms.shape[1]:
        return pair
    random = random_dictionary(second.atoms, settings.seed)
    true, chance = cosine_similarity(first.atoms, second.atoms), cosine_similarity(first.atoms, random)
    atoms = _compared(true, chance, settings)
    unrelated = sides(first.atoms, random, atoms.chance_near, atoms.chance_pairs, settings.same)
    pair = pair._replace(
        atoms=atoms,
        positive=_mean((atoms.pairs.similarity > 0).double(), settings),
        relations=sides(first.atoms, second.atoms, atoms.near, atoms.pairs, settings.same),
        chance_relations=unrelated.counts(),
    )
    if first.encoder is None or second.encoder is None or first.encoder.shape[1] != second.encoder.shape[1]:
        return pair
    rows, columns = unit(first.encoder)[atoms.pairs.rows], unit(second.encoder)[atoms.pairs.columns]
    cosines = (rows * columns).sum(1).abs().double()
    both = (cosines >= settings.same) & (atoms.pairs.strength >= settings.same)
    return pair._replace(encoder=_mean(cosines, settings), both=_mean(both.double(), settings))


def random_dictionary(atoms: Tensor, seed: int) -> Tensor:
    """As many random atoms [F, d] with the mean square of these in every direction: normal draws of their covariance.

    Atoms of language models share a few large directions, so that uniform directions would make chance look too low.
    """
    generator = torch.Generator().manual_seed(seed)
    scaled = unit(atoms.detach().cpu().float())
    if len(scaled) <= scaled.shape[1]:
        # mixtures of all atoms have their second moments
        return torch.randn(len(scaled), len(scaled), generator=generator) @ scaled
    values, vectors = torch.linalg.eigh(scaled.T @ scaled / len(scaled))
    return torch.randn(scaled.shape, generator=generator) * values.clamp_min(0).sqrt() @ vectors.T


def _compared(true: Similarity, chance: Similarity, settings: PairSettings) -> Compared:
    pairs, chance_pairs = one_to_one(true), one_to_one(chance)
    likeness, by_chance = _likeness(pairs, settings), _likeness(chance_pairs, settings)
    return Compared(likeness, by_chance, nearest(true), pairs, nearest(chance), chance_pairs)


def _likeness(pairs: OneToOne, settings: PairSettings) -> Likeness:
    strength = pairs.strength.double()
    return Likeness(
        _mean(strength, settings),
        _mean((strength > RECOVERED).double(), settings),
        _mean((strength >= settings.same).double(), settings),
        [(strength >= threshold).double().mean().item() for threshold in CURVE],
        pairs.gap,
    )


def _mean(values: Tensor, settings: PairSettings) -> Interval:
    """The mean with a 95% interval over latents: what other latents of the same training would have given."""
    sums = GroupSums()
    sums.add(torch.arange(len(values)), {"value": values, "one": torch.ones(len(values))})
    interval = sums.interval(ratio("value", "one"), resamples=settings.resamples, seed=settings.seed)
    assert interval is not None, "a mean of at least one number is defined"
    return interval
