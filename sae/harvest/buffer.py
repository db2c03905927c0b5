"""Shuffled training batches from an activation stream, live or stored, as a pure function of the seed and a position.

Rows are taken a block at a time (as many as fit into the stated memory), shuffled inside the block, and cut into
batches. The order inside block b of epoch e depends on (seed, e, b) alone, so the state with which a run resumes after
a batch is a few integers. Resuming harvests one block again; no activations are stored in checkpoints.

    for batch in LiveBatches(harvest, ["resid_post.9"], ["resid_post.9"], ...).iterate(state=None):
        batch.input, batch.target, batch.state
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sae.config import ConfigError
from sae.data.batching import Batch, permutation
from sae.data.packing import BEGINNING, Cursor
from sae.data.side_stream import onto_device, prefetch_beside
from sae.harvest.filling import Filled, Filler, fill
from sae.harvest.order import WINDOW, PageOrder
from sae.harvest.rows import Rows
from sae.harvest.store import Store
from sae.harvest.store_disk import DiskStore
from sae.harvest.stream import Harvest

CPU = torch.device("cpu")
OVERLAPPED = 3  # blocks alive when harvest and training overlap: one trained on, one waiting, one being filled


def shuffled(rows: int, pairs: bool, *key: int) -> Tensor:
    """A random order of `rows` rows, int64; with `pairs`, rows 2i and 2i + 1 stay side by side."""
    if not pairs:
        return permutation(rows, *key)
    first = 2 * permutation(rows // 2, *key)
    return torch.stack([first, first + 1], 1).flatten()


class _Block:
    """Rows of one block and the random order in which batches take them; `pairs` as in `shuffled`."""

    def __init__(
        self, rows: Rows, inputs: list[str], targets: list[str], batch: int, pairs: bool, key: tuple[int, ...]
    ) -> None:
        self.rows, self.inputs, self.targets, self.batch = rows, inputs, targets, batch
        self.order = shuffled(rows.size, pairs, *key)
        self.adjacent = rows.neighbours()[::2] if pairs else None

    def get(self, index: int, state: dict[str, Any]) -> Batch:
        """Batch number `index` of the block."""
        numbers = self.order[index * self.batch : (index + 1) * self.batch]
        adjacent = None if self.adjacent is None else self.adjacent[numbers[::2] // 2]
        x = self._side_by_side(self.inputs, numbers)
        y = x if self.targets == self.inputs else self._side_by_side(self.targets, numbers)
        return Batch(x, y, state, adjacent)

    def _side_by_side(self, sites: list[str], numbers: Tensor) -> Tensor:
        parts = [self.rows.activations[site] for site in sites]
        parts = [part.index_select(0, numbers.to(part.device)) for part in parts]
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


def check_state(state: dict[str, Any], **cut: int) -> None:
    """Refuse a state saved with other sizes: the same numbers would mean other rows."""
    for name, value in cut.items():
        if state.get(name) != value:
            raise ConfigError(
                f"--resume: {name} was {state.get(name)}, now it is {value}; a run resumes with the --batch, "
                "--buffer-mb and kind of device it began with"
            )


class StoredBatches:
    """Batches over a store, every row once an epoch (a remainder that does not fill a batch is left out).

    A store that fits into the buffer is shuffled as one block. Of a larger one, pages of 256 rows are dealt out to
    blocks from many shards at once (see `sae.harvest.order`), and rows are shuffled inside each block: reads stay
    sequential and memory bounded. The next block's shards are fetched and verified while the present one is trained on,
    and where `device` is a GPU, the next batches are copied to it.
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
        device: torch.device = CPU,
    ) -> None:
        self.device = device
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
        self._order: tuple[int, PageOrder] | None = None
        self._room: Rows | None = None

    @property
    def tokens(self) -> int:
        """Tokens of one epoch, including those left over."""
        return self.store.rows

    @property
    def left_over(self) -> int:
        """Tokens that do not fill a batch."""
        return self.tokens - self.per_epoch * self.batch

    def iterate(self, state: dict[str, Any] | None) -> Iterator[Batch]:
        """Batches from the beginning, or from after the batch that carried `state`."""
        return onto_device(self._iterate(state), self.device)

    def _iterate(self, state: dict[str, Any] | None) -> Iterator[Batch]:
        cut = self._cut()
        if state:
            check_state(state, **cut)
        done = state["step"] if state else 0
        sites = sorted({*self.inputs, *self.targets})
        while done < self.steps:
            epoch, inside = divmod(done, self.per_epoch)
            block = inside // self.batches_per_block
            first, last = self._range(block)
            numbers = self._block_rows(epoch, block)
            self.store.ahead(numbers)
            rows = self._read(numbers, sites)
            if done + last - inside < self.steps:
                self.store.ahead(self._block_rows(*((epoch, block + 1) if last < self.per_epoch else (epoch + 1, 0))))
            shuffled_rows = _Block(rows, self.inputs, self.targets, self.batch, self.pairs, (self.seed, epoch, block))
            del rows
            for index in range(inside - first, last - first):
                done += 1
                yield shuffled_rows.get(index, {"step": done, **cut})
            del shuffled_rows  # before the next block is read: the stated memory is for one

    def _read(self, numbers: range | Tensor, sites: list[str]) -> Rows:
        """Rows of a block, in the memory of the block before it where that is one of the disk."""
        if self.blocks == 1 or not isinstance(self.store, DiskStore):
            return self.store.read(numbers, sites)
        rows = self.store.read(numbers, sites, into=self._room)
        if self._room is None or rows.size > self._room.size:
            self._room = rows
        return rows

    def numbers(self, epoch: int) -> Iterator[Tensor]:
        """Numbers of the store's rows in each batch of an epoch, int64 [batch], without reading them."""
        for block in range(self.blocks):
            rows = self._block_rows(epoch, block)
            rows = rows if isinstance(rows, Tensor) else torch.arange(rows.start, rows.stop)
            yield from rows[shuffled(len(rows), self.pairs, self.seed, epoch, block)].split(self.batch)

    def _cut(self) -> dict[str, int]:
        """How batches are cut; states of stores of one window are as they were before there were several."""
        windows = {} if self.blocks == 1 or len(self.store.part_rows) <= WINDOW else {"window": WINDOW}
        return {"batch": self.batch, "batches_per_block": self.batches_per_block, **windows}

    def _range(self, block: int) -> tuple[int, int]:
        """The block's batches in their epoch: the first, and the one behind the last."""
        first = block * self.batches_per_block
        return first, min(first + self.batches_per_block, self.per_epoch)

    def _block_rows(self, epoch: int, block: int) -> range | Tensor:
        """Numbers of the store's rows in a block."""
        first, last = self._range(block)
        if self.blocks == 1:
            return range(last * self.batch)
        if self._order is None or self._order[0] != epoch:
            rows = self.store.rows
            self._order = (epoch, PageOrder(self.store.part_rows, rows=rows, seed=self.seed, epoch=epoch))
        return self._order[1].rows(first * self.batch, last * self.batch)


class LiveBatches:
    """Batches straight from the model; a data set that ends too early is read again from its beginning.

    With `overlap` a thread harvests the next block while the present one is trained on, on a stream of its own where
    `device` is a GPU, and three blocks share the buffer's memory. `progress` gets the rows harvested, a call a forward
    pass (in that thread, if there is one).
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
        device: torch.device = CPU,
    ) -> None:
        self.device = device
        self.harvest, self.inputs, self.targets, self.pairs = harvest, list(inputs), list(targets), pairs
        self.tokens = tokens
        """Tokens asked for, including those left over."""
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
        """Batches from the beginning, or from after the batch that carried `state`."""
        done = state["step"] if state else 0
        if done == self.steps:
            return
        blocks = fill(self.harvest.passes, [self.filler(state)], on_restart=self.on_restart, progress=self.progress)
        for filler, filled in prefetch_beside(self.device, blocks, 1) if self.overlap else blocks:
            if filled is None:
                assert filler.error is not None
                raise filler.error
            for batch in self.of_block(filled, done):
                done += 1
                yield batch
            del filled, batch  # before the next block is filled: the stated memory is for one

    def filler(self, state: dict[str, Any] | None) -> Filler:
        """Fills blocks from the beginning, or from the one with the batch after `state`."""
        if state:
            check_state(state, **self._cut)
        return Filler(
            self.harvest,
            self.names,
            self.dtype,
            total=self.steps * self.batch,
            block=self.batches_per_block * self.batch,
            least=self.batch,
            index=(state["step"] if state else 0) // self.batches_per_block,
            begin=Cursor(*state["place"]) if state else BEGINNING,
        )

    def of_block(self, filled: Filled, done: int) -> Iterator[Batch]:
        """The batches of a block, without those among the stream's first `done`."""
        block = _Block(filled.rows, self.inputs, self.targets, self.batch, self.pairs, (self.seed, 0, filled.index))
        count = filled.rows.size // self.batch
        first = filled.index * self.batches_per_block
        for inside in range(max(0, done - first), count):
            place = filled.end if inside + 1 == count else filled.begin
            yield block.get(inside, {"step": first + inside + 1, "place": list(place), **self._cut})

    @property
    def _cut(self) -> dict[str, int]:
        """What a state is checked against."""
        return {"batch": self.batch, "batches_per_block": self.batches_per_block}
