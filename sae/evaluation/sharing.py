"""A harvest that the ranks of a job share out, batch by batch, so that all of them know of every row.

    for batch in shared(harvest.contexts(BEGINNING), harvest.rows, ranks):
        if batch.rows is None: group.see(batch.document)        # another rank has its activations
        else: group.add(..., batch.document)

Ranks exchange the kinds and documents of rows, not activations: with these each one counts tokens and groups documents
as a single process would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from sae.base.ranks import Ranks
from sae.harvest.rows import Rows

T = TypeVar("T")


class Shared(NamedTuple, Generic[T]):
    """One batch, in the order of a single process."""

    number: int
    unit: T
    """What it was made of."""
    rows: Rows | None
    """None where another rank ran the batch."""
    kind: Tensor
    """Of every row, int8 [n]."""
    document: Tensor
    """Of every row, int64 [n]."""

    def select(self, index: Tensor) -> Shared[T]:
        """Some of its rows, int64 [m]."""
        rows = None if self.rows is None else self.rows.select(index)
        return self._replace(rows=rows, kind=self.kind[index], document=self.document[index])


def shared(units: Iterator[T], rows_of: Callable[[T], Rows], ranks: Ranks) -> Iterator[Shared[T]]:
    """The rows of all units, one batch each; every rank runs the model, `rows_of`, on its own units."""
    first = 0
    while of_round := list(islice(units, ranks.world)):
        rows = rows_of(of_round[ranks.rank]) if ranks.rank < len(of_round) else None
        columns = ranks.gather(None if rows is None else (rows.kind, rows.document))
        for offset, unit in enumerate(of_round):
            kind, document = columns[offset]
            yield Shared(first + offset, unit, rows if offset == ranks.rank else None, kind, document)
        first += len(of_round)
