"""The order in which an epoch takes the rows of a store: mixed from many shards at once, in long reads.

    order = PageOrder([65_536] * 300, rows=19_660_800, seed=0, epoch=2)
    order.rows(0, 400_000)             # int64 [400000], numbers of the store's rows

Shards come in random order, in windows of `WINDOW`. The pages of 256 rows of a window's shards are shuffled together,
so that a block of the buffer mixes all of them, while no other shard need be near: of a remote store the window is what
has to lie in the cache. A store of at most `WINDOW` shards is one window. The order is a function of (seed, epoch)
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae.data.batching import permutation

PAGE = 256
"""Rows that stay together when pages are dealt out: one sequential read."""
WINDOW = 16
"""Shards whose pages are mixed: about a million rows."""


class PageOrder:
    """The order of one epoch.

    Args:
        part_rows: rows of each shard of the store.
        rows: rows that are served, the first ones.
    """

    def __init__(self, part_rows: Sequence[int], *, rows: int, seed: int, epoch: int) -> None:
        sizes = torch.tensor(part_rows, dtype=torch.int64)
        starts = sizes.cumsum(0) - sizes
        sizes = (rows - starts).clamp(min=0).minimum(sizes)
        sizes, starts = sizes[sizes > 0], starts[sizes > 0]
        if len(sizes) <= WINDOW:
            # pages may lie across two shards, as both are in the window
            pages = permutation(-(-rows // PAGE), seed, epoch) * PAGE
            self._begin, self._length = pages, (rows - pages).clamp(max=PAGE)
        else:
            begins, lengths = [], []
            shards = permutation(len(sizes), seed, epoch, 0, 0)
            for number, window in enumerate(shards.split(WINDOW)):
                counts = -(-sizes[window] // PAGE)
                number_in_shard = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(
                    counts
                )
                begin = starts[window].repeat_interleave(counts) + PAGE * number_in_shard
                end = (starts + sizes)[window].repeat_interleave(counts)
                order = permutation(len(begin), seed, epoch, number, 1)
                begins.append(begin[order])
                lengths.append((end - begin)[order].clamp(max=PAGE))
            self._begin, self._length = torch.cat(begins), torch.cat(lengths)
        self._ends = self._length.cumsum(0)

    def rows(self, first: int, last: int) -> Tensor:
        """Numbers, int64 [last - first], of the rows at places first..last - 1 of the order."""
        pages = slice(
            int(torch.searchsorted(self._ends, first, right=True)), int(torch.searchsorted(self._ends, last)) + 1
        )
        begin, length = self._begin[pages], self._length[pages]
        if not len(begin):
            return torch.empty(0, dtype=torch.int64)
        inside = torch.arange(int(length.sum())) - (length.cumsum(0) - length).repeat_interleave(length)
        numbers = begin.repeat_interleave(length) + inside
        before = first - int(self._ends[pages.start] - length[0])
        return numbers[before : before + last - first]


class Mixing(NamedTuple):
    """How well batches are mixed, against a uniform shuffle of all rows."""

    collisions: float
    """Pairs of rows of one document in a batch, over those that a uniform shuffle gives: 1 is perfect."""
    correlation: float
    """Pearson's, of a row's place in the epoch with its place in the store: 0 is perfect."""


def mixing(batches: Sequence[Tensor], document: Tensor) -> Mixing:
    """Measure the batches of an epoch.

    Args:
        batches: numbers of each batch's rows, int64 [N] each.
        document: of every row of the store, int64 [rows].
    """
    rows = torch.cat(list(batches))
    counts = torch.unique(document, return_counts=True)[1].double()
    chance = (counts * (counts - 1)).sum() / (len(document) * (len(document) - 1.0))
    pairs = collisions = 0.0
    for batch in batches:
        together = torch.unique(document[batch], return_counts=True)[1].double()
        collisions += (together * (together - 1)).sum().item()
        pairs += len(batch) * (len(batch) - 1.0)
    places = torch.stack([torch.arange(len(rows)).double(), rows.double()])
    return Mixing(collisions / pairs / chance.item(), torch.corrcoef(places)[0, 1].item())
