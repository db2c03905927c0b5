"""Several runs trained together: those that read the same rows share a block, those with one order share its batches.

Live, one stream of forward passes fills the blocks of all. From a store, runs with the same order share what is read;
orders come one after the other, so that one block is in memory at a time. Either way every run gets the batches that it
would get alone, and none of them waits for another's end: each stops, fails and resumes by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae.base.progress import Progress, StopSignal
from sae.config import TrainConfig
from sae.data.batching import Batch
from sae.data.side_stream import prefetch_beside
from sae.harvest.buffer import LiveBatches
from sae.harvest.filling import Filler, fill
from sae.harvest.store import MemoryStore
from sae.harvest.stream import Harvest
from sae.models.language import find_variant
from sae.training.loop import Taking, Trainee, take_steps
from sae.training.plan import Plan
from sae.training.run import TrainResult, begin, begin_record, finish, say_left_over
from sae.training.run_folder import own_folder
from sae.training.text import TextData

HINT = "run the same sweep again: every member goes on from its newest checkpoint"


@dataclass(eq=False)
class Member:
    """One run of a sweep; a context in which its folder is locked for this process."""

    plan: Plan
    data: TextData
    trainee: Trainee | None = None
    """While it trains."""
    result: TrainResult | None = None
    """Once it is finished."""
    error: Exception | None = None
    """Why it stopped before its end."""
    _folder: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def config(self) -> TrainConfig:
        return self.data.config

    @property
    def name(self) -> str:
        return self.config.out.name

    @property
    def active(self) -> bool:
        """Whether it is to take more batches."""
        return self.error is None and self.result is None

    def __enter__(self) -> Member:
        self._folder.enter_context(own_folder(self.config))
        return self

    def __exit__(self, *error: Any) -> None:
        folder = self._folder.pop_all()  # it may have been left already
        folder.__exit__(*error)

    def begin(self, steps: int, progress: Progress) -> Trainee:
        """Set the run up, from its newest checkpoint where there is one."""
        progress.say(f"{self.name}:")
        begin_record(self.plan)
        self.trainee = begin(self.plan, steps, progress)
        return self.trainee

    def finish(self, progress: Progress) -> None:
        """Save the autoencoder and leave the folder."""
        assert self.trainee is not None
        self.result = finish(self.plan, self.trainee, progress, seconds={})
        self._let_go()
        self._folder.close()

    def fail(self, error: Exception, progress: Progress) -> None:
        """Keep what there is, and leave the folder; the error is the member's own."""
        self.error = error
        if self.trainee is not None:
            self.trainee.save()
            self._let_go()
        progress.say(f"{self.name} has stopped: {error}")
        self.__exit__(type(error), error, error.__traceback__)

    def _let_go(self) -> None:
        assert self.trainee is not None
        self.trainee.close()
        self.trainee = None


def train_live(members: Sequence[Member], harvest: Harvest, stop: StopSignal, progress: Progress) -> None:
    """Train members on one pass of a live harvest; each has its view of it, with its precision settled.

    Raises:
        Interrupted: a signal came; every member has a checkpoint.
    """
    streams = {member: member.data.live(stop, progress) for member in members}
    for member in members:
        member.begin(streams[member].steps, progress)
    readings = grouped(members, lambda m: _reading(streams[m]))
    fillers: dict[Filler, list[Member]] = {}
    for reading in readings:
        each = [streams[member].filler(_state(member)) for member in reading]
        fillers[min(each, key=lambda filler: filler.index)] = reading
    first = streams[members[0]]

    def takings() -> Iterator[Taking]:
        blocks = fill(harvest.passes, list(fillers), on_restart=first.on_restart, progress=first.progress)
        for filler, filled in prefetch_beside(first.device, blocks, 1) if first.overlap else blocks:
            reading = fillers[filler]
            if filled is None:
                assert filler.error is not None
                for member in reading:
                    if member.active:
                        member.fail(filler.error, progress)
                continue
            for order in grouped(reading, order_of):
                trainees = _trainees(order)
                if trainees:
                    done = min(trainee.received for trainee in trainees)
                    yield from _next_of(order, streams[order[0]].of_block(filled, done))
            del filled  # before the next block is filled: the stated memory is for one
            filler.stopped = filler.stopped or not _trainees(reading)

    _take(members, takings(), stop, progress)


def train_stored(members: Sequence[Member], stop: StopSignal, progress: Progress) -> None:
    """Train members that have one order of the rows of their store, together.

    Raises:
        Interrupted: a signal came; every member has a checkpoint.
    """
    batches = members[0].data.batches(stop, progress)
    say_left_over(members[0].data, progress)
    for member in members:
        member.data.available, member.data.left_over = members[0].data.available, members[0].data.left_over
        member.begin(batches.steps, progress)
    behind = min(members, key=lambda member: _trainee(member).received)
    _take(members, _next_of(members, batches.iterate(_state(behind))), stop, progress)


def order_of(member: Member) -> tuple[Any, ...]:
    """The settings in which runs must agree to take the very same batches of one harvest or store."""
    data, config = member.data, member.config
    sites = (tuple(site.name for site in data.inputs), tuple(site.name for site in data.targets))
    pairs = find_variant(config.sae).neighbours
    view = () if data.opened is None else tuple(data.opened.view.items())
    return (*sites, data.precision, data.batch, config.buffer_mb, config.epochs, config.seed, pairs, view)


def fill_memory(members: Sequence[Member], harvest: Harvest, stop: StopSignal, progress: Progress) -> None:
    """Give members that take several epochs their rows in memory, all from one pass of the harvest.

    Members with the same sites share them.
    """
    fillers: dict[Filler, list[Member]] = {}
    for group in grouped(members, lambda m: (tuple(site.name for site in m.data.sites), m.data.precision)):
        fillers[group[0].data.memory_filler()] = group
    total = max(member.config.tokens for member in members)
    with progress.bar("Harvesting", total, "tokens") as bar:

        def advance(rows: int) -> None:
            bar.advance(rows)
            stop.check(HINT)

        for filler, filled in fill(harvest.passes, list(fillers), on_restart=lambda n: None, progress=advance):
            if filled is None:
                assert filler.error is not None
                for member in fillers[filler]:
                    member.fail(filler.error, progress)
                continue
            store = MemoryStore(fillers[filler][0].data.store_identity, filled.rows.size)
            store.parts = [filled.rows]
            for member in fillers[filler]:
                member.data.store = store


def _take(members: Sequence[Member], takings: Iterator[Taking], stop: StopSignal, progress: Progress) -> None:
    by_trainee = {_trainee(member): member for member in members}
    for member in members:
        if _trainee(member).finished:  # stopped between its last step and its record
            member.finish(progress)
    take_steps(
        takings,
        [member.trainee for member in members if member.trainee is not None],
        stop,
        progress,
        hint=HINT,
        failed=lambda trainee, error: by_trainee[trainee].fail(error, progress),
        finished=lambda trainee: by_trainee[trainee].finish(progress),
    )


def _next_of(members: Sequence[Member], batches: Iterator[Batch]) -> Iterator[Taking]:
    """Each batch, with the members that it is the next one of."""
    for batch in batches:
        takers = [trainee for trainee in _trainees(members) if trainee.received + 1 == batch.state["step"]]
        if takers:
            yield Taking(takers, batch)
        elif not _trainees(members):
            return


def _trainees(members: Sequence[Member]) -> list[Trainee]:
    return [member.trainee for member in members if member.trainee is not None and member.active]


def _trainee(member: Member) -> Trainee:
    assert member.trainee is not None, "begin() first"
    return member.trainee


def _state(member: Member) -> dict[str, Any] | None:
    return _trainee(member).state


def _reading(batches: LiveBatches) -> tuple[Any, ...]:
    """What live runs must have in common to share the rows of a block."""
    sizes = (batches.steps * batches.batch, batches.batches_per_block * batches.batch)
    return (tuple(batches.names), batches.dtype, *sizes)


def grouped(members: Sequence[Member], key: Callable[[Member], Any]) -> list[list[Member]]:
    """Members with equal keys together, in the order in which keys first come."""
    groups: dict[Any, list[Member]] = {}
    for member in members:
        groups.setdefault(key(member), []).append(member)
    return list(groups.values())
