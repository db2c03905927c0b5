"""Blocks of rows filled from forward passes: one stream of passes feeds any number of fillers, each at its own sites.

for filler, filled in fill(harvest.passes, [filler]):
    filled.rows, filled.begin, filled.end
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from sae.data.documents import DataError
from sae.data.packing import BEGINNING, Cursor
from sae.harvest.rows import ActivationError, Rows
from sae.harvest.stream import Harvest, Harvested


class Filled(NamedTuple):
    """One block of live rows."""

    index: int
    """Number of the block."""
    begin: Cursor
    end: Cursor
    """Where the next block begins."""
    rows: Rows


class Filler:
    """Fills the blocks of one stream of rows, from a place in the data on.

    Args:
        harvest: tells which rows of a forward pass are trained on.
        names: sites that are kept.
        dtype: precision in which they wait.
        total: rows of the whole stream.
        block: rows of a block; the last one may be smaller.
        least: rows that one pass over the data must give, where the stream goes on from its beginning.
        index: number of the block to fill first.
        begin: where in the data it begins.
        repeats: whether data that end are read again; else the stream ends with them.
        on_cpu: whether blocks lie on the CPU; else they stay on the model's device.
    """

    def __init__(
        self,
        harvest: Harvest,
        names: Sequence[str],
        dtype: torch.dtype,
        *,
        total: int,
        block: int,
        least: int = 1,
        index: int = 0,
        begin: Cursor = BEGINNING,
        repeats: bool = True,
        on_cpu: bool = False,
    ) -> None:
        self.harvest, self.names, self.dtype = harvest, list(names), dtype
        self.total, self.block, self.least = total, block, least
        self.index, self.begin = index, begin
        self.repeats, self.on_cpu = repeats, on_cpu
        self.error: ActivationError | DataError | None = None
        """Why it stopped before its end."""
        self.stopped = index * block >= total
        """Whether it takes no more; may be set."""
        self._rows: Rows | None = None
        self._filled = 0
        self._place: Cursor = begin._replace(taken=0)  # from where on rows are taken
        self._reached = False
        self._of_epoch: int | None = None  # rows since the data began; None where the stream came in later

    def start(self, cursor: Cursor) -> None:
        """A pass over the data begins at `cursor`."""
        whole = self._reached or self._place == BEGINNING._replace(epoch=cursor.epoch)
        self._of_epoch = 0 if whole else None

    def add(self, harvested: Harvested, epoch: int) -> Iterator[Filled]:
        """The blocks that a forward pass completes."""
        place = harvested.begin._replace(taken=0, epoch=epoch)
        taken = 0
        if not self._reached:
            if place != self._place:
                return
            self._reached, taken = True, self.begin.taken
        rows = self.harvest.trained_on(self.harvest.seen(harvested).rows)
        if self._of_epoch is not None:
            self._of_epoch += rows.size
        while taken < rows.size and not self.stopped:
            size = min(self.block, self.total - self.index * self.block)
            part = rows.between(taken, taken + size - self._filled)
            part = part.stored(self.dtype, self.names, self.harvest.name_of)
            part = part.cpu() if self.on_cpu else part
            if self._rows is None:
                self._rows = part.empty(size)
            self._rows.write(slice(self._filled, self._filled + part.size), part)
            self._filled, taken = self._filled + part.size, taken + part.size
            if self._filled == size:
                yield self._complete(place._replace(taken=taken))

    def end(self, epoch: int) -> Iterator[Filled]:
        """The data have ended.

        Raises:
            DataError: they gave less than a batch, or the place from which to go on is not in them.
        """
        if not self._reached and self._place.epoch == epoch:
            raise DataError(f"the data set has no forward pass that begins at {tuple(self._place[:2])}; it has changed")
        if self._of_epoch is not None and self._of_epoch < self.least:
            raise DataError(f"the data set gives only {self._of_epoch} tokens to train on; a batch takes {self.least}")
        if not self.repeats:
            self.stopped = True
            if self._rows is not None:
                self._rows = self._rows.between(0, self._filled)
                yield self._complete(Cursor(epoch=epoch + 1))

    def _complete(self, end: Cursor) -> Filled:
        assert self._rows is not None
        filled = Filled(self.index, self.begin, end, self._rows)
        self._rows, self._filled = None, 0
        self.begin, self.index = end, self.index + 1
        self.stopped = self.stopped or self.index * self.block >= self.total
        return filled


def fill(
    passes: Callable[[Cursor], Iterator[Harvested]],
    fillers: Sequence[Filler],
    *,
    on_restart: Callable[[int], None],
    progress: Callable[[int], None] = lambda rows: None,
) -> Iterator[tuple[Filler, Filled | None]]:
    """The blocks of all fillers as they are full, from the earliest place at which one of them begins.

    A filler that cannot go on comes once more, without a block and with its `error`; the others go on.

    Args:
        passes: forward passes from a place in the data on, such as `Harvest.passes`.
        on_restart: called with the number of each new pass over the data.
        progress: called after a forward pass with the most rows that one filler took from it.
    """
    active = [filler for filler in fillers if not filler.stopped]
    if not active:
        return
    cursor = min((filler.begin for filler in active), key=lambda begin: (begin.epoch, *begin[:2]))
    while True:
        for filler in active:
            filler.start(cursor)
        for harvested in passes(cursor):
            before = [_received(filler) for filler in active]
            for filler in active:
                yield from _guarded(filler, filler.add(harvested, cursor.epoch))
            progress(max(_received(filler) - rows for filler, rows in zip(active, before, strict=True)))
            del harvested
            if not (active := [filler for filler in active if not filler.stopped]):
                return
        for filler in active:
            yield from _guarded(filler, filler.end(cursor.epoch))
        if not (active := [filler for filler in active if not filler.stopped]):
            return
        cursor = Cursor(epoch=cursor.epoch + 1)
        on_restart(cursor.epoch)


def _received(filler: Filler) -> int:
    """Rows that came into a filler's blocks, earlier runs' included."""
    return min(filler.total, filler.index * filler.block + filler._filled)


def _guarded(filler: Filler, blocks: Iterator[Filled]) -> Iterator[tuple[Filler, Filled | None]]:
    """A filler's blocks; its error, where there is one, is kept in it."""
    try:
        for filled in blocks:
            yield filler, filled
            del filled
    except (ActivationError, DataError) as error:
        filler.error, filler.stopped = error, True
        yield filler, None
