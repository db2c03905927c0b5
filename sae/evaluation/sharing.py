"""A harvest that the ranks of a job share out, batch by batch, so that all of them know of every row.

    for batch in shared(harvest, ranks):
        if batch.rows is None: group.see(batch.document)        # another rank has its activations
        else: group.add(..., batch.document)

Ranks exchange the kinds and documents of rows, not activations: with these each one counts tokens and groups documents
as a single process would.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from torch import Tensor

from sae.base.ranks import Ranks
from sae.data.packing import BEGINNING
from sae.harvest.rows import Rows
from sae.harvest.stream import Harvest


class Shared(NamedTuple):
    """One batch, in the order of a single process."""

    number: int
    rows: Rows | None
    """None where another rank ran the batch."""
    kind: Tensor
    """Of every row, int8 [n]."""
    document: Tensor
    """Of every row, int64 [n]."""

    def select(self, index: Tensor) -> Shared:
        """Some of its rows, int64 [m]."""
        rows = None if self.rows is None else self.rows.select(index)
        return self._replace(rows=rows, kind=self.kind[index], document=self.document[index])


def shared(harvest: Harvest, ranks: Ranks) -> Iterator[Shared]:
    """Every batch of a harvest; each rank runs the model on its own ones."""
    _ = harvest.norm_limits  # measured before the stream begins; raises where no token can be trained on
    contexts, first = harvest.contexts(BEGINNING), 0
    while batches := list(islice(contexts, ranks.world)):
        rows = harvest.rows(batches[ranks.rank]) if ranks.rank < len(batches) else None
        columns = ranks.gather(None if rows is None else (rows.kind, rows.document))
        for offset in range(len(batches)):
            kind, document = columns[offset]
            yield Shared(first + offset, rows if offset == ranks.rank else None, kind, document)
        first += len(batches)
