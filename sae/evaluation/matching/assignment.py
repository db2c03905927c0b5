"""Nearest and one-to-one pairs of two sets of latents, from a similarity that is computed block by block.

    alike = cosine_similarity(first.dictionary.W, second.dictionary.W)
    nearest(alike).rows.index                # for every latent of the first, the most similar one of the second
    one_to_one(alike).strength.mean()        # MCC

A matrix of all similarities exists only up to `EXACT` entries; above, the pairs are found among each latent's
`CANDIDATES` strongest, and `OneToOne.gap` bounds what that can lose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from sae.evaluation.synthetic.sampling import unit

EXACT = 1 << 25
"""Entries up to which the exact assignment is computed (Kuhn 1955; by shortest augmenting paths): 5,792 squared."""
CANDIDATES = 32
"""Strongest candidates of a latent among which larger assignments look."""
_BLOCK = 1 << 23  # similarities in memory at a time


class Similarity(NamedTuple):
    """Similarities of R latents with C others, from -1 to 1; the sign does not count in any pairing."""

    block: Callable[[slice], Tensor]
    """Signed similarities [r, C] of r rows, on the CPU."""
    turned_block: Callable[[slice], Tensor]
    """The same by columns [c, R]."""
    rows: int
    columns: int

    @property
    def turned(self) -> Similarity:
        """The same similarities with the two sides swapped."""
        return Similarity(self.turned_block, self.block, self.columns, self.rows)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All similarities, some rows at a time."""
        step = max(1, _BLOCK // max(self.columns, 1))
        for start in range(0, self.rows, step):
            part = slice(start, min(self.rows, start + step))
            yield part, self.block(part)


class Nearest(NamedTuple):
    """For every latent of one side, the most similar one of the other."""

    index: Tensor
    """int64 [n]."""
    similarity: Tensor
    """Signed, float32 [n]."""

    @property
    def strength(self) -> Tensor:
        """|similarity| [n]."""
        return self.similarity.abs()


class BothNearest(NamedTuple):
    """The nearest of both sides."""

    rows: Nearest
    columns: Nearest


class OneToOne(NamedTuple):
    """min(R, C) pairs that share no latent, in the order of the rows."""

    rows: Tensor
    """int64 [M], ascending."""
    columns: Tensor
    """int64 [M]."""
    similarity: Tensor
    """Signed, float32 [M]."""
    gap: float
    """The pairs' mean |similarity| is at most this much below that of the best pairs; 0 where it is exact."""

    @property
    def strength(self) -> Tensor:
        """|similarity| of every pair [M]; the mean is MCC."""
        return self.similarity.abs()


def cosine_similarity(first: Tensor, second: Tensor) -> Similarity:
    """Cosines of vectors [R, d] with vectors [C, d]; one of length zero has cosine 0 with everything.

    Raises:
        ValueError: the widths differ.
    """
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"expected vectors of one width, got {tuple(first.shape)} and {tuple(second.shape)}")
    left, right = (unit(side.detach().cpu().float()) for side in (first, second))
    return Similarity(lambda part: left[part] @ right.T, lambda part: right[part] @ left.T, len(left), len(right))


def nearest(alike: Similarity) -> BothNearest:
    """The most similar partner of every row and of every column; of equals the first.

    Raises:
        ValueError: a side is empty.
    """
    if not alike.rows or not alike.columns:
        raise ValueError(f"expected latents on both sides, got {alike.rows} and {alike.columns}")
    row_index, row_value = torch.zeros(alike.rows, dtype=torch.int64), torch.zeros(alike.rows)
    column_index, column_value = torch.zeros(alike.columns, dtype=torch.int64), torch.zeros(alike.columns)
    column_best = torch.full((alike.columns,), -1.0)
    for part, block in alike.blocks():
        size = block.abs()
        row_index[part] = size.argmax(1)
        row_value[part] = block.gather(1, row_index[part, None]).squeeze(1)
        best, place = size.max(0)
        better = best > column_best
        column_best[better] = best[better]
        column_index[better] = place[better] + part.start
        column_value[better] = block.gather(0, place[None]).squeeze(0)[better]
    return BothNearest(Nearest(row_index, row_value), Nearest(column_index, column_value))


def nearest_other(vectors: Tensor) -> Nearest:
    """For every vector of [n, d] the other one that is most similar to it; one of length zero has cosine 0 with all."""
    alike = cosine_similarity(vectors, vectors)

    def block(part: slice) -> Tensor:
        cosines = alike.block(part)
        rows = torch.arange(len(cosines))
        cosines[rows, rows + part.start] = 0.0
        return cosines

    return nearest(Similarity(block, block, alike.rows, alike.columns)).rows


def one_to_one(alike: Similarity, *, exact: int = EXACT, candidates: int = CANDIDATES) -> OneToOne:
    """The pairs with the largest sum of |similarity|, each latent in one at most.

    Up to `exact` entries this is the optimum. Above, every row may take one of its `candidates` strongest columns, or a
    stand-in as strong as the weakest of these: the optimum of this larger choice is an upper bound of the true one.
    Rows that took a stand-in then get the columns that are left, and `gap` is the bound less what was reached.
    """
    if alike.rows > alike.columns:
        turned = one_to_one(alike.turned, exact=exact, candidates=candidates)
        order = turned.columns.argsort()
        return OneToOne(turned.columns[order], turned.rows[order], turned.similarity[order], turned.gap)
    if alike.rows * alike.columns <= exact:
        return _exact(alike)
    return _among_candidates(alike, min(candidates, alike.columns), exact)


def _exact(alike: Similarity) -> OneToOne:
    dense = torch.cat([block for _, block in alike.blocks()])
    rows, columns = (torch.from_numpy(side) for side in linear_sum_assignment(dense.abs().numpy(), maximize=True))
    return OneToOne(rows, columns, dense[rows, columns], 0.0)


def _among_candidates(alike: Similarity, candidates: int, exact: int) -> OneToOne:
    indices, values = [], []
    for _, block in alike.blocks():
        top = block.abs().topk(candidates, dim=1)
        indices.append(top.indices)
        values.append(top.values)
    column, value = torch.cat(indices).numpy(), torch.cat(values).double().numpy()
    n = alike.rows
    row = np.arange(n)
    # a stand-in for each row, behind the true columns; 1 is added to all, because sparse matrices hold no zeros
    rows = np.concatenate([np.repeat(row, candidates), row])
    columns = np.concatenate([column.ravel(), alike.columns + row])
    weights = np.concatenate([value.ravel(), value[:, -1]]) + 1
    graph = sparse.csr_array((weights, (rows, columns)), shape=(n, alike.columns + n))
    _, taken = min_weight_full_bipartite_matching(graph, maximize=True)
    stands_in = taken >= alike.columns
    hits = (column == taken[:, None]) & ~stands_in[:, None]
    bound = value[:, -1][stands_in].sum() + value[hits].sum()
    free = np.setdiff1d(np.arange(alike.columns), taken)
    taken[stands_in] = _left_over(alike, row[stands_in], free, exact)
    partners = torch.from_numpy(taken.astype(np.int64))
    similarity = torch.cat([b.gather(1, partners[part, None]).squeeze(1) for part, b in alike.blocks()])
    gap = max(0.0, (bound - similarity.abs().double().sum().item()) / n)
    return OneToOne(torch.arange(n), partners, similarity, gap)


def _left_over(alike: Similarity, rows: np.ndarray, free: np.ndarray, exact: int) -> np.ndarray:
    """Columns for the rows that have none: the best pairs where that is a small task, else row by row the best left."""
    if not len(rows):
        return free[:0]
    columns = torch.from_numpy(free)
    wanted = torch.from_numpy(rows)
    if len(rows) * len(free) <= exact:
        parts = []
        for part, block in alike.blocks():
            here = wanted[(wanted >= part.start) & (wanted < part.stop)] - part.start
            parts.append(block[here][:, columns].abs())
        return free[linear_sum_assignment(torch.cat(parts).numpy(), maximize=True)[1]]
    taken = []
    open_columns = torch.zeros(alike.columns, dtype=torch.bool)
    open_columns[columns] = True
    for part, block in alike.blocks():
        for number in wanted[(wanted >= part.start) & (wanted < part.stop)].tolist():
            best = int(block[number - part.start].abs().masked_fill(~open_columns, -1).argmax())
            open_columns[best] = False
            taken.append(best)
    return np.array(taken)
