"""Batches of which every data rank gets its slice: rows r N/D to (r + 1) N/D of the batch of a single process.

Live, each forward pass runs in one rank. The ranks exchange how many rows theirs gave, so that all number the rows of a
block as one process would, and then the rows themselves: each goes straight to the place where the block's random order
wants it, in the ranks that train on it. So the batches, and the state with which a run resumes, do not depend on the
number of ranks, and no rank keeps more than its share of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.data.batching import Batch, Batches
from sae.data.documents import DataError
from sae.data.packing import BEGINNING, Contexts, Cursor
from sae.harvest.buffer import LiveBatches, check_state, shuffled
from sae.harvest.rows import Rows
from sae.training.distributed.mesh import Mesh


class Slices:
    """This data rank's slice of batches that every rank reads."""

    def __init__(self, batches: Batches, mesh: Mesh) -> None:
        self.batches, self.mesh = batches, mesh
        self.steps = batches.steps

    def iterate(self, state: dict[str, Any] | None) -> Iterator[Batch]:
        """Batches from the beginning, or from after the batch that carried `state`."""
        for batch in self.batches.iterate(state):
            x = self._slice(batch.input)
            y = x if batch.target is batch.input else self._slice(batch.target)
            yield Batch(x, y, batch.state)

    def _slice(self, rows: Tensor) -> Tensor:
        return rows.chunk(self.mesh.shape.data)[self.mesh.i_data]


class Pass(NamedTuple):
    """A forward pass that is due."""

    contexts: Contexts
    begin: Cursor
    """Where it begins; `taken` rows of it are left out."""


class MeshLiveBatches(LiveBatches):
    """`LiveBatches` whose forward passes are shared out among all ranks. It harvests and trains in turn."""

    def __init__(self, *arguments: Any, mesh: Mesh, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.mesh = mesh
        self.share = self.batch // mesh.shape.data
        self.overlap = False  # exchanges of a second thread would mix with those of the steps

    def iterate(self, state: dict[str, Any] | None) -> Iterator[Batch]:
        """This rank's part of the batches from the beginning, or from after the batch that carried `state`."""
        cut = {"batch": self.batch, "batches_per_block": self.batches_per_block}
        if state:
            check_state(state, **cut)
        done = state["step"] if state else 0
        begin = Cursor(*state["place"]) if state else BEGINNING
        while done < self.steps:
            index = done // self.batches_per_block
            first = index * self.batches_per_block
            count = min(self.batches_per_block, self.steps - first)
            block = _Filling(self, begin, self._places(index, count * self.batch))
            block.fill()
            for inside in range(done - first, count):
                done += 1
                place = block.end if inside + 1 == count else begin
                yield self._part(block.activations, inside, {"step": done, "place": list(place), **cut})
            begin = block.end
            del block  # before the next one is filled: the stated memory is for one

    def _places(self, index: int, size: int) -> Tensor:
        """Where each row of a block, in the order of the harvest, stands in the order of the batches, int64 [size]."""
        places = torch.empty(size, dtype=torch.int64)
        places[shuffled(size, False, self.seed, 0, index)] = torch.arange(size)
        return places

    def _part(self, activations: dict[str, Tensor], index: int, state: dict[str, Any]) -> Batch:
        rows = slice(index * self.share, (index + 1) * self.share)
        x = torch.cat([activations[site][rows] for site in self.inputs], 1)
        same = self.targets == self.inputs
        return Batch(x, x if same else torch.cat([activations[site][rows] for site in self.targets], 1), state)

    def passes(self, cursor: Cursor) -> Iterator[Pass]:
        """The forward passes from a place to the end of the data set."""
        begin = cursor
        for contexts in self.harvest.contexts(cursor):
            yield Pass(contexts, begin._replace(epoch=cursor.epoch))
            begin = contexts.next


class _Filling:
    """Fills one block, a round of forward passes at a time: one in every rank.

    Args:
        begin: where in the data the block begins.
        places: where each row, in the order of the harvest, stands in the order of the batches, int64 [rows].
    """

    def __init__(self, batches: MeshLiveBatches, begin: Cursor, places: Tensor) -> None:
        self.batches, self.mesh, self.begin, self.places = batches, batches.mesh, begin, places
        self.filled = 0
        self.end = begin
        """Where the next block begins."""
        widths = {site.name: site.width or 0 for site in batches.harvest.sites if site.name in batches.names}
        rows = len(places) // self.mesh.shape.data
        self.activations = {
            name: torch.empty(rows, width, dtype=batches.dtype, device=self.mesh.device)
            for name, width in widths.items()
        }
        """Site -> the rows that this rank trains on, in the order of the batches."""

    def fill(self) -> None:
        """Run passes, epoch after epoch, until the block is full."""
        _ = self.batches.harvest.norm_limits  # measured before the stream begins
        cursor = self.begin
        while self.filled < len(self.places):
            passes, total = self.batches.passes(cursor), cursor.taken
            while self.filled < len(self.places) and (due := self._due(passes)):
                total += self._round(due)
            if self.filled < len(self.places):
                if cursor[:2] == BEGINNING[:2] and total < self.batches.batch:
                    raise DataError(
                        f"the data set gives only {total} tokens to train on; a batch takes {self.batches.batch}"
                    )
                cursor = Cursor(epoch=cursor.epoch + 1)
                self.batches.on_restart(cursor.epoch)

    def _due(self, passes: Iterator[Pass]) -> list[Pass]:
        """The next round: at most a pass a rank, and none that the block has no room for even if all tokens count."""
        due: list[Pass] = []
        room = len(self.places) - self.filled
        while len(due) < self.mesh.world and room > 0:
            if not (following := list(islice(passes, 1))):
                break
            due += following
            room -= int((due[-1].contexts.document >= 0).sum())
        return due

    def _round(self, due: list[Pass]) -> int:
        """Run one pass in every rank, and place the rows; returns how many there were."""
        data, latent = self.mesh.shape
        # pass i belongs to data rank i % D, and there to the latent ranks in turn
        order = [(i % data) * latent + i // data for i in range(len(due))]
        own = self.mesh.i_data * latent + self.mesh.i_latent
        mine = order.index(own) if own in order else None
        rows = None if mine is None else self._run(due[mine])
        gathered = self.mesh.gather(torch.tensor([0 if rows is None else rows.size], device=self.mesh.device), "all")
        sizes = gathered.flatten().tolist()
        numbers: dict[int, Tensor] = {}  # rank -> the places of its rows
        for rank, one in zip(order, due, strict=True):
            count = min(sizes[rank], len(self.places) - self.filled)
            if self.filled < len(self.places):
                self.end = one.begin._replace(taken=one.begin.taken + count)
            numbers[rank] = self.places[self.filled : self.filled + count]
            self.filled += count
            self.batches.progress(count)
        self._send(rows, numbers, own)
        return sum(sizes)

    def _run(self, one: Pass) -> Rows:
        harvest, batches = self.batches.harvest, self.batches
        rows = harvest.rows(one.contexts)
        harvest.counts.update({name: int((rows.kind == kind).sum()) for kind, name in harvest.kinds.items()})
        rows = harvest.trained_on(rows)
        rows = rows.between(one.begin.taken, rows.size)
        return rows.stored(batches.dtype, batches.names, harvest.name_of)

    def _send(self, rows: Rows | None, places: dict[int, Tensor], own: int) -> None:
        """Give each row to the ranks that train on it, and write those that came."""
        batch, share, latent = self.batches.batch, self.batches.share, self.mesh.shape.latent
        empty = torch.zeros(0, dtype=torch.int64)
        of_rank = [places.get(rank, empty) for rank in range(self.mesh.world)]
        receiver = [place % batch // share for place in of_rank]
        leaving = [(receiver[own] == rank // latent).nonzero().squeeze(1) for rank in range(self.mesh.world)]
        coming = [place[to == self.mesh.i_data] for place, to in zip(of_rank, receiver, strict=True)]
        numbers = torch.cat(coming)
        numbers = numbers // batch * share + numbers % share
        for site, room in self.activations.items():
            given = room.new_empty(0, room.shape[1]) if rows is None else rows.activations[site]
            sent = given[torch.cat(leaving).to(given.device)]
            came = self.mesh.exchange(sent, [len(part) for part in leaving], [len(part) for part in coming])
            room[numbers.to(room.device)] = came
