"""Shuffled training batches from an activation stream, live or stored, as a pure function of the seed and a position.

Rows are taken a block at a time (as many as fit the stated memory), shuffled inside the block, and cut into batches.
The order inside block b of epoch e comes from (seed, e, b) alone, so that a batch carries all that is needed to go on
after it: a few integers. Resuming harvests one block again and stores none of it.

    for batch in LiveBatches(harvest, "resid_post.9", "resid_post.9", ...).iterate(state=None):
        batch.input, batch.target, batch.state
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.config import ConfigError
from sae.data.batching import Batch, permutation
from sae.data.documents import DataError
from sae.data.packing import Cursor
from sae.data.prefetch import prefetch
from sae.harvest.store import Store, to_stored
from sae.harvest.stream import Harvest, Rows

PAGE = 256  # rows that stay together when a store's pages are dealt out to blocks: one sequential read
OVERLAPPED = 3  # blocks alive when harvest and training overlap: one trained on, one waiting, one being filled


def shuffled(rows: int, pairs: bool, *key: int) -> Tensor:
    """A random order of `rows` rows, int64; with `pairs`, rows 2i and 2i + 1 stay side by side."""
    if not pairs:
        return permutation(rows, *key)
    first = 2 * permutation(rows // 2, *key)
    return torch.stack([first, first + 1], 1).flatten()


def neighbours(document: Tensor, position: Tensor) -> Tensor:
    """Whether each row is the token before the next row's in the same document, bool [n - 1]."""
    return (document[1:] == document[:-1]) & (position[1:] == position[:-1] + 1)


def _joined(activations: dict[str, Tensor], sites: Sequence[str], rows: Tensor) -> Tensor:
    """The rows of several sites side by side."""
    parts = [activations[site][rows] for site in sites]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def batches_in(buffer_bytes: int, row_bytes: int, batch: int, *, overlap: bool = False) -> int:
    """Whole batches that one block of the buffer holds.

    Raises:
        ConfigError: not even one fits.
    """
    batches = buffer_bytes // (OVERLAPPED if overlap else 1) // row_bytes // batch
    if batches == 0:
        needed = -(-batch * row_bytes * (OVERLAPPED if overlap else 1) >> 20)
        raise ConfigError(
            f"--buffer-mb {buffer_bytes >> 20}: less than one batch of {batch} tokens; expected at least {needed}"
        )
    return batches


def _check_state(state: dict[str, Any], batch: int, batches_per_block: int) -> None:
    """Refuse a state of batches cut in another way: the same numbers would mean other rows."""
    for name, value in (("batch", batch), ("batches_per_block", batches_per_block)):
        if state.get(name) != value:
            raise ConfigError(
                f"--resume: {name} was {state.get(name)}, now it is {value}; a run goes on with the --batch, "
                "--buffer-mb and kind of device it began with"
            )


class StoredBatches:
    """Batches over a store, every row once an epoch (the remainder that does not fill a batch is left out).

    A store that fits the buffer is shuffled as one block. Of a larger one, pages of 256 rows are dealt out to blocks
    in random order, and rows are shuffled inside each block: reads stay sequential, memory bounded.
    """

    def __init__(
        self,
        store: Store,
        inputs: Sequence[str],
        targets: Sequence[str],
        *,
        batch: int,
        epochs: int,
        buffer_bytes: int,
        seed: int,
        pairs: bool = False,
    ) -> None:
        self.store, self.inputs, self.targets = store, list(inputs), list(targets)
        self.batch, self.seed, self.pairs = batch, seed, pairs
        self.per_epoch = store.rows // batch
        if self.per_epoch == 0:
            raise ConfigError(f"--batch {batch}: the data set gave only {store.rows} tokens, less than one batch")
        self.steps = self.per_epoch * epochs
        self.batches_per_block = self.per_epoch
        if not store.in_memory:
            row_bytes = sum(store.identity["sites"][site] for site in {*inputs, *targets}) * store.dtype.itemsize
            self.batches_per_block = min(self.per_epoch, batches_in(buffer_bytes, row_bytes, batch))
        self.blocks = -(-self.per_epoch // self.batches_per_block)

    @property
    def tokens(self) -> int:
        """Tokens of one epoch, those left over included."""
        return self.store.rows

    @property
    def left_over(self) -> int:
        """Tokens that do not fill a batch."""
        return self.tokens - self.per_epoch * self.batch

    def iterate(self, state: dict[str, Any] | None) -> Iterator[Batch]:
        """See `Batches`."""
        cut = {"batch": self.batch, "batches_per_block": self.batches_per_block}
        if state:
            _check_state(state, **cut)
        done = state["step"] if state else 0
        while done < self.steps:
            epoch, inside = divmod(done, self.per_epoch)
            block = inside // self.batches_per_block
            first = block * self.batches_per_block
            last = min(first + self.batches_per_block, self.per_epoch)
            rows = self._block_rows(epoch, first * self.batch, last * self.batch)
            activations = self.store.read(rows, sites=sorted({*self.inputs, *self.targets}))
            beside = neighbours(*self.store.places(rows))[::2] if self.pairs else None
            order = shuffled(len(rows), self.pairs, self.seed, epoch, block)
            for index in range(inside - first, last - first):
                done += 1
                picked = order[index * self.batch : (index + 1) * self.batch]
                x = _joined(activations, self.inputs, picked)
                y = x if self.targets == self.inputs else _joined(activations, self.targets, picked)
                yield Batch(x, y, {"step": done, **cut}, None if beside is None else beside[picked[::2] // 2])
            del activations  # before the next block is read: the memory stated is for one

    def _block_rows(self, epoch: int, first: int, last: int) -> range | Tensor:
        """Store rows of the block that covers places first..last-1 of the epoch's page order."""
        if self.blocks == 1:
            return range(last)
        pages = -(-self.store.rows // PAGE)
        order = permutation(pages, self.seed, epoch)
        rows = (order.unsqueeze(1) * PAGE + torch.arange(PAGE)).flatten()
        return rows[rows < self.store.rows][first:last]


class Place(NamedTuple):
    """Where a block begins in the live stream."""

    document: int
    """Cursor of a forward pass: the document,"""
    token: int
    """and the token in it."""
    skip: int
    """Training rows of that forward pass that belong to the block before."""
    passes: int
    """Which pass over the data set, counted from 1."""


class Block(NamedTuple):
    """One buffer's worth of live activations."""

    index: int
    begin: Place
    end: Place
    """Where the next block begins."""
    activations: dict[str, Tensor]
    """Site -> [rows, d]."""
    document: Tensor
    """int64 [rows], on the CPU"""
    position: Tensor
    """int32 [rows], on the CPU"""


class LiveBatches:
    """Batches straight from the model; the data set starts again from its beginning when it ends too early.

    `overlap` harvests the next block in a thread while the present one is trained on; the buffer's memory is then
    shared by three blocks. `progress` gets the rows harvested, a call a forward pass (in that thread, if there is one).
    """

    def __init__(
        self,
        harvest: Harvest,
        inputs: Sequence[str],
        targets: Sequence[str],
        *,
        batch: int,
        tokens: int,
        buffer_bytes: int,
        dtype: torch.dtype,
        seed: int,
        overlap: bool,
        on_restart: Callable[[int], None],
        progress: Callable[[int], None] = lambda rows: None,
        pairs: bool = False,
    ) -> None:
        self.harvest, self.inputs, self.targets, self.pairs = harvest, list(inputs), list(targets), pairs
        self.tokens = tokens
        """Tokens asked for, those left over included."""
        self.batch, self.dtype, self.seed, self.overlap = batch, dtype, seed, overlap
        self.on_restart, self.progress = on_restart, progress
        self.steps = tokens // batch
        if self.steps == 0:
            raise ConfigError(f"--tokens {tokens}: less than one batch of {batch}")
        self.names = sorted({*inputs, *targets})
        row_bytes = sum(site.width or 0 for site in harvest.sites if site.name in self.names) * dtype.itemsize
        self.batches_per_block = min(self.steps, batches_in(buffer_bytes, row_bytes, batch, overlap=overlap))

    @property
    def left_over(self) -> int:
        """Tokens that do not fill a batch."""
        return self.tokens - self.steps * self.batch

    def iterate(self, state: dict[str, Any] | None) -> Iterator[Batch]:
        """See `Batches`."""
        cut = {"batch": self.batch, "batches_per_block": self.batches_per_block}
        if state:
            _check_state(state, **cut)
        done = state["step"] if state else 0
        if done == self.steps:
            return
        blocks = self._blocks(done // self.batches_per_block, Place(*state["place"]) if state else Place(0, 0, 0, 1))
        for block in prefetch(blocks, 1) if self.overlap else blocks:
            device = block.activations[self.names[0]].device
            count = block.activations[self.names[0]].shape[0] // self.batch
            beside = neighbours(block.document, block.position)[::2] if self.pairs else None
            order = shuffled(count * self.batch, self.pairs, self.seed, 0, block.index)
            for inside in range(done - block.index * self.batches_per_block, count):
                done += 1
                picked = order[inside * self.batch : (inside + 1) * self.batch]
                adjacent = None if beside is None else beside[picked[::2] // 2]
                picked = picked.to(device)
                x = _joined(block.activations, self.inputs, picked)
                y = x if self.targets == self.inputs else _joined(block.activations, self.targets, picked)
                place = block.end if inside + 1 == count else block.begin
                yield Batch(x, y, {"step": done, "place": list(place), **cut}, adjacent)
            del block  # before the next one is filled: the memory stated is for one

    def _blocks(self, index: int, begin: Place) -> Iterator[Block]:
        """Fill block after block from `begin` on, each with whole batches, until all steps are served."""
        while index * self.batches_per_block < self.steps:
            batches = min(self.batches_per_block, self.steps - index * self.batches_per_block)
            filled, end = 0, begin
            activations: dict[str, Tensor] = {}
            document = torch.empty(batches * self.batch, dtype=torch.int64)
            position = torch.empty(batches * self.batch, dtype=torch.int32)
            for rows, here in self._rows_from(begin):
                taken = min(len(rows.token), batches * self.batch - filled)
                name_of = partial(self.harvest.name_of, rows.token, rows.document)
                for name in self.names:
                    found = rows.activations[name]
                    if name not in activations:
                        shape = (batches * self.batch, found.shape[1])
                        activations[name] = torch.empty(shape, dtype=self.dtype, device=found.device)
                    activations[name][filled : filled + taken] = to_stored(found[:taken], self.dtype, name, name_of)
                document[filled : filled + taken] = rows.document[:taken]
                position[filled : filled + taken] = rows.position[:taken]
                filled, end = filled + taken, here._replace(skip=here.skip + taken)
                self.progress(taken)
                if filled == batches * self.batch:
                    break
            yield Block(index, begin, end, activations, document, position)
            begin, index = end, index + 1

    def _rows_from(self, place: Place) -> Iterator[tuple[Rows, Place]]:
        """Training rows of each forward pass and the place of their first row; begins again when the data ends."""
        skip = place.skip
        while True:
            found = 0
            for harvested in self.harvest.batches(Cursor(place.document, place.token)):
                rows = self.harvest.trained_on(harvested.rows)
                found += len(rows.token)
                if skip:
                    rows = rows.select(torch.arange(min(skip, len(rows.token)), len(rows.token)))
                yield rows, Place(*harvested.here, skip, place.passes)
                skip = 0
            if (place.document, place.token) == (0, 0) and found < self.batch:
                raise DataError(f"the data set gives only {found} tokens to train on; a batch takes {self.batch}")
            place = Place(0, 0, 0, place.passes + 1)
            self.on_restart(place.passes)
