"""What every store of harvested rows offers, and the one that lives in memory.

store = MemoryStore(identity, 400_000)
store.append(rows, end); store.read(range(2048), ["resid_post.9"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sae.data.packing import Cursor
from sae.harvest.precision import read_dtype
from sae.harvest.rows import Rows


class Store:
    """Rows in the order of the data, in parts as they were appended: a `MemoryStore` or a `DiskStore`."""

    in_memory: bool

    def __init__(self, identity: dict[str, Any]) -> None:
        self.identity = identity
        self.limit: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Type in which activations are read."""
        return read_dtype(self.identity["precision"])

    @property
    def part_rows(self) -> list[int]:
        """Rows of each part, those above `limit` included."""
        raise NotImplementedError

    @property
    def rows(self) -> int:
        """Number of rows served: all that there are, up to `limit`."""
        total = sum(self.part_rows)
        return total if self.limit is None else min(total, self.limit)

    @property
    def ended(self) -> bool:
        """Whether the data are known to be used up."""
        return False

    def append(self, part: Rows, end: Cursor) -> None:
        """Keep `part`; `end` is where the next one begins in the data."""
        raise NotImplementedError

    def end(self) -> Cursor | None:
        """Where the next part begins in the data, or None for an empty store."""
        raise NotImplementedError

    def finish(self) -> None:
        """Record that the data are used up."""

    def ahead(self, rows: range | Tensor) -> None:
        """Make ready, in the background, what a later `read` of these rows needs."""

    def read(self, rows: range | Tensor, sites: Sequence[str]) -> Rows:
        """Rows by number (a range, or int64 [n] on the CPU), with activations at some sites, on the CPU."""
        raise NotImplementedError


class MemoryStore(Store):
    """A store that lives as long as the process. Room for `capacity` rows is allocated once."""

    in_memory = True

    def __init__(self, identity: dict[str, Any], capacity: int) -> None:
        super().__init__(identity)
        self.parts: list[Rows] = []
        self._capacity = capacity
        self._all: Rows | None = None
        self._end: Cursor | None = None

    @property
    def part_rows(self) -> list[int]:
        return [part.size for part in self.parts]

    def append(self, part: Rows, end: Cursor) -> None:
        if self._all is None:
            self._all = part.empty(self._capacity)
        begin = self.parts[0].size if self.parts else 0
        self._all.write(slice(begin, begin + part.size), part)
        self.parts, self._end = [self._all.between(0, begin + part.size)], end

    def end(self) -> Cursor | None:
        return self._end

    def read(self, rows: range | Tensor, sites: Sequence[str]) -> Rows:
        part = self.parts[0].at(sites)
        return part.between(rows.start, rows.stop) if isinstance(rows, range) else part.select(rows)
