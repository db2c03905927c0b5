"""What became of each latent between two dictionaries: matched, split, merged, a duplicate, gone or new.

    relations = relate(first_atoms, second_atoms)
    relations.first.gone, relations.second.new

By atoms alone, with these definitions, in this order; cosines are absolute:

1. **split**: a latent whose atom no single atom of the other side explains (cos² below `EXPLAINED`), but two or more
   together do: atoms that are nearer to it than to any other latent of its side, each with a cosine of `LINK` or more,
   and that explain `EXPLAINED` of its squared length by least squares. Their latents are its **parts**.
2. **matched**: in a one-to-one pair with a cosine of `same` or more.
3. **duplicate**: not so, though some latent of the other side has a cosine of `same` or more: it is taken by another.
4. else **gone** on the first side, **new** on the second.

A latent of the second side that is split over the first side is a **merge** of latents there, which are **merged**.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.evaluation.matching.assignment import BothNearest, OneToOne, cosine_similarity, nearest, one_to_one
from sae.evaluation.synthetic.sampling import unit

LINK = 0.4
"""Least |cosine| of a part with the latent that it is a part of: up to six equal parts at right angles reach it."""
EXPLAINED = 0.8
"""Share of an atom's squared length that its parts explain together, and that no single atom reaches."""
MOST_PARTS = 8


class Whole(NamedTuple):
    """A latent of one side that several latents of the other side make up."""

    latent: int
    parts: tuple[int, ...]
    """The nearest first."""
    explained: float
    """Share of its atom's squared length."""


class Sides(NamedTuple):
    """The latents of the two sides by what became of them; every latent is in one list of its side."""

    matched: tuple[tuple[int, int], ...]
    """Pairs (first, second)."""
    splits: tuple[Whole, ...]
    """Latents of the first side that became several of the second."""
    merges: tuple[Whole, ...]
    """Latents of the second side that several of the first became."""
    duplicates: tuple[tuple[int, ...], tuple[int, ...]]
    """Of the first side, of the second side."""
    gone: tuple[int, ...]
    """Of the first side."""
    new: tuple[int, ...]
    """Of the second side."""

    def of(self, first: Tensor, second: Tensor) -> Sides:
        """The same with places among two sides' latents replaced by the latents' numbers, int64 [n1] and [n2]."""
        a, b = first.tolist(), second.tolist()

        def whole(each: Whole, own: list[int], other: list[int]) -> Whole:
            return Whole(own[each.latent], tuple(other[part] for part in each.parts), each.explained)

        return Sides(
            tuple((a[i], b[j]) for i, j in self.matched),
            tuple(whole(each, a, b) for each in self.splits),
            tuple(whole(each, b, a) for each in self.merges),
            (tuple(a[i] for i in self.duplicates[0]), tuple(b[j] for j in self.duplicates[1])),
            tuple(a[i] for i in self.gone),
            tuple(b[j] for j in self.new),
        )

    def counts(self) -> dict[str, int]:
        """How many of each, as JSON values."""
        return {
            "matched": len(self.matched),
            "split": len(self.splits),
            "merged": sum(len(whole.parts) for whole in self.merges),
            "duplicates_first": len(self.duplicates[0]),
            "duplicates_second": len(self.duplicates[1]),
            "gone": len(self.gone),
            "new": len(self.new),
        }

    def to_json(self) -> dict[str, Any]:
        """All lists, as JSON values."""

        def wholes(found: tuple[Whole, ...]) -> list[dict[str, Any]]:
            return [{**whole._asdict(), "parts": list(whole.parts)} for whole in found]

        return {
            "matched": [list(pair) for pair in self.matched],
            "split": wholes(self.splits),
            "merged": wholes(self.merges),
            "duplicates_first": list(self.duplicates[0]),
            "duplicates_second": list(self.duplicates[1]),
            "gone": list(self.gone),
            "new": list(self.new),
        }


def relate(first: Tensor, second: Tensor, *, same: float = 0.7) -> Sides:
    """The relations of two dictionaries, atoms [F1, d] and [F2, d] of any length.

    Raises:
        ValueError: the widths differ, or a side is empty.
    """
    alike = cosine_similarity(first, second)
    return sides(first, second, nearest(alike), one_to_one(alike), same)


def sides(first: Tensor, second: Tensor, near: BothNearest, pairs: OneToOne, same: float) -> Sides:
    """As `relate`, from pairs that were computed before; `same` is the |cosine| from which two latents are the same."""
    splits, merges = _wholes(first, second, near), _wholes(second, first, BothNearest(near.columns, near.rows))
    taken = [{whole.latent for whole in splits}, {whole.latent for whole in merges}]
    taken[0] |= {part for whole in merges for part in whole.parts} - taken[0]
    taken[1] |= {part for whole in splits for part in whole.parts} - taken[1]
    matched = tuple(
        (i, j)
        for i, j, strength in zip(pairs.rows.tolist(), pairs.columns.tolist(), pairs.strength.tolist(), strict=True)
        if strength >= same and i not in taken[0] and j not in taken[1]
    )
    rest = []
    for side, (nearby, count) in enumerate(((near.rows, len(first)), (near.columns, len(second)))):
        known = taken[side] | {pair[side] for pair in matched}
        close = (nearby.strength >= same).tolist()
        left = [latent for latent in range(count) if latent not in known]
        rest.append((tuple(i for i in left if close[i]), tuple(i for i in left if not close[i])))
    return Sides(matched, splits, merges, (rest[0][0], rest[1][0]), rest[0][1], rest[1][1])


def _wholes(whole_atoms: Tensor, part_atoms: Tensor, near: BothNearest) -> tuple[Whole, ...]:
    """The latents of one side that several of the other make up; `near.rows` belong to the wholes' side."""
    linked = (near.columns.strength >= LINK).nonzero().squeeze(1)
    wholes = near.columns.index[linked]
    order = (wholes.double() * 4 - near.columns.strength[linked].double()).argsort()  # by whole, the nearest part first
    linked, wholes = linked[order], wholes[order]
    numbers, counts = wholes.unique_consecutive(return_counts=True)
    several = []
    single = near.rows.strength.square()
    for latent, parts in zip(numbers.tolist(), linked.split(counts.tolist()), strict=True):
        if len(parts) < 2 or single[latent] >= EXPLAINED:
            continue
        used = parts[:MOST_PARTS]
        explained = _explained(unit(whole_atoms[latent].double()), unit(part_atoms[used].double()))
        if explained >= EXPLAINED:
            several.append(Whole(latent, tuple(used.tolist()), round(explained, 4)))
    return tuple(several)


def _explained(atom: Tensor, parts: Tensor) -> float:
    """Share of a unit vector's [d] squared length in the span of unit vectors [n, d]."""
    basis, kept = torch.linalg.qr(parts.T)
    rank = kept.diagonal().abs() > 1e-6  # of equal parts the second adds nothing
    return float((basis[:, rank].T @ atom).square().sum())
