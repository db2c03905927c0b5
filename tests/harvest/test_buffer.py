"""Shuffled batches: each row once, an order that only seed and position decide, memory within what was stated."""

from __future__ import annotations

import gc
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sae.config import ConfigError
from sae.data.batching import Batch, permutation
from sae.data.documents import DataError
from sae.data.packing import BEGINNING, Cursor
from sae.harvest.buffer import LiveBatches, StoredBatches
from sae.harvest.order import PAGE
from sae.harvest.rows import ActivationError, Rows
from sae.harvest.store import DiskStore, MemoryStore, Store
from sae.harvest.stream import Harvested

D = 4
DTYPE = torch.float64  # no tensor of torch's or another test's: the memory test counts those of this type and width


def activations(ids: Tensor) -> dict[str, Tensor]:
    """Row i of site "a" holds i in every column, of site "b" its negative: a row tells who it is."""
    a = ids.to(DTYPE).unsqueeze(1).expand(-1, D).contiguous()
    return {"a": a, "b": -a}


def document_of(ids: Tensor) -> Tensor:
    """Documents of 23 rows."""
    return ids // 23


def position_of(ids: Tensor) -> Tensor:
    return (ids % 23).int()


def rows_of(ids: Tensor) -> Rows:
    zeros = torch.zeros(len(ids))
    return Rows(activations(ids), ids.int(), document_of(ids), position_of(ids), zeros.int(), zeros.to(torch.int8))


class FakeSite(NamedTuple):
    name: str
    width: int = D


class FakeHarvest:
    """A stream of `rows` rows in passes of irregular size, of which every seventh is left out (or every `every`th)."""

    def __init__(self, rows: int, per_pass: int = 37, every: int = 7) -> None:
        self.every = every
        self.sites = [FakeSite("a"), FakeSite("b")]
        sizes = itertools.cycle([per_pass, per_pass // 2, per_pass + 5])
        self.of_passes: list[Tensor] = []
        first = 0
        while first < rows:
            size = min(next(sizes), rows - first)
            self.of_passes.append(torch.arange(first, first + size))
            first += size
        self.forwards = 0

    def passes(self, start: Cursor = BEGINNING) -> Iterator[Harvested]:
        for index in range(start.document, len(self.of_passes)):
            self.forwards += 1
            ids = self.of_passes[index]
            kind = (ids % self.every == self.every - 1).to(torch.int8)
            yield Harvested(rows_of(ids)._replace(kind=kind), None, Cursor(index, 0))  # type: ignore[arg-type]

    def seen(self, harvested: Harvested) -> Harvested:
        return harvested

    def name_of(self, token: Tensor, document: Tensor, row: int) -> str:
        return f"document {int(document[row])}"

    def trained_on(self, rows: Rows) -> Rows:
        return rows.select((rows.kind == 0).nonzero().squeeze(1))

    def kept(self) -> list[int]:
        """Ids of the training rows of one pass over the data, in order."""
        return [i for ids in self.of_passes for i in ids.tolist() if i % self.every != self.every - 1]


def live(rows: int = 2000, per_pass: int = 37, every: int = 7, **changed: Any) -> LiveBatches:
    settings: dict[str, Any] = {"batch": 16, "tokens": 800, "buffer_bytes": 200 * D * 8, "seed": 0}
    settings |= {
        "dtype": DTYPE,
        "overlap": False,
        "on_restart": lambda n: None,
        "inputs": ["a"],
        "targets": ["a"],
        **changed,
    }
    return LiveBatches(FakeHarvest(rows, per_pass, every), **settings)  # type: ignore[arg-type]


def memory_store(rows: int) -> Store:
    store = MemoryStore({"sites": {"a": D, "b": D}, "precision": "float64"}, rows)
    return filled(store, rows, parts=1)


def disk_store(folder: Path, rows: int, parts: int = 3) -> Store:
    return filled(DiskStore(folder, {"sites": {"a": D, "b": D}, "precision": "float64"}), rows, parts)


def filled(store: Store, rows: int, parts: int) -> Store:
    for ids in torch.arange(rows).tensor_split(parts):
        store.append(rows_of(ids), BEGINNING)
    return store


def stored(store: Store, **changed: Any) -> StoredBatches:
    settings: dict[str, Any] = {"batch": 16, "epochs": 1, "buffer_bytes": 200 * D * 8, "seed": 0}
    return StoredBatches(store, **{"inputs": ["a"], "targets": ["a"], **settings, **changed})


def ids_of(batches: list[Batch]) -> list[list[int]]:
    return [batch.input[:, 0].int().tolist() for batch in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


def rank_correlation(order: list[int]) -> float:
    """Spearman's, of the order in which distinct rows came with the order of the stream."""
    ranks = torch.tensor(order).argsort().argsort().double()
    return torch.corrcoef(torch.stack([ranks, torch.arange(len(order), dtype=torch.float64)]))[0, 1].item()


KINDS = ["live", "live overlapped", "memory", "disk, one block", "disk, many blocks"]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Builds batches of about 800 rows of each kind; keyword arguments change their settings."""
    if request.param.startswith("live"):
        overlap = request.param == "live overlapped"
        room = (600 if overlap else 200) * D * 8
        return lambda **changed: live(**{"overlap": overlap, "buffer_bytes": room, **changed})
    if request.param == "memory":
        store = memory_store(805)
        return lambda **changed: stored(store, **changed)
    store = disk_store(tmp_path / "store", 805)
    size = 10_000 if request.param == "disk, one block" else 200
    return lambda **changed: stored(store, **{"buffer_bytes": size * D * 8, **changed})


# --- each row once ---


@pytest.mark.parametrize("rows", [800, 805, 1024, 1100])
@pytest.mark.parametrize("kind", ["memory", "disk"])
@pytest.mark.parametrize("room", [96, 300, 100_000])
def test_a_store_gives_each_row_at_most_once_an_epoch(kind: str, rows: int, room: int, tmp_path: Path) -> None:
    store = memory_store(rows) if kind == "memory" else disk_store(tmp_path, rows)
    batches = stored(store, epochs=2, buffer_bytes=room * D * 8)
    found = ids_of(list(batches.iterate(None)))
    assert len(found) == batches.steps == 2 * (rows // 16)
    assert all(len(batch) == 16 for batch in found)
    for epoch in (flat(found[: rows // 16]), flat(found[rows // 16 :])):
        assert len(set(epoch)) == len(epoch) == rows - rows % 16
        assert set(epoch) <= set(range(rows))


@pytest.mark.parametrize("overlap", [False, True])
def test_a_live_stream_gives_the_training_rows_in_blocks_each_once(overlap: bool) -> None:
    batches = live(overlap=overlap)
    found = ids_of(list(batches.iterate(None)))
    assert len(found) == batches.steps == 50
    size = batches.batches_per_block
    kept = batches.harvest.kept()  # type: ignore[attr-defined]
    for first in range(0, 50, size):
        block = flat(found[first : first + size])
        assert sorted(block) == kept[first * 16 : (first + size) * 16][: len(block)]


def test_input_and_target_belong_together(make: Any) -> None:
    for batch in make(targets=["b"]).iterate(None):
        assert batch.target.equal(-batch.input)
    batch = next(make().iterate(None))
    assert batch.target is batch.input


@pytest.mark.parametrize("inputs", [["a", "b"], ["b", "a"]])
def test_several_sites_lie_side_by_side_in_the_order_asked_for(inputs: list[str], make: Any) -> None:
    batches = make(inputs=inputs, targets=inputs)
    signs = [1 if site == "a" else -1 for site in inputs]
    for batch in batches.iterate(None):
        assert batch.input.shape == (16, 2 * D)
        assert batch.target is batch.input
        left, right = batch.input.split(D, dim=1)
        assert (left * signs[0]).equal(right * signs[1])
        assert (left * signs[0] >= 0).all()
    transcoding = next(make(inputs=inputs, targets=["b"]).iterate(None))
    assert transcoding.target.equal(transcoding.input.split(D, dim=1)[inputs.index("b")])


def test_several_sites_share_the_stated_memory() -> None:
    assert live(inputs=["a", "b"], targets=["a", "b"]).batches_per_block == live().batches_per_block // 2
    assert live(inputs=["a"], targets=["b"]).batches_per_block == live().batches_per_block // 2


# --- pairs of neighbours ---


def test_neighbours_are_of_one_segment_and_one_position_apart() -> None:
    rows = rows_of(torch.arange(7))._replace(
        document=torch.tensor([0, 0, 1, 1, 1, 1, 1]),
        position=torch.tensor([3, 4, 5, 6, 8, 7, 8]),
        # the last two rows are of two segments of one document, and tokens between them were left out
        start=torch.tensor([0, 0, 0, 0, 0, 0, 9]),
    )
    assert rows.neighbours().tolist() == [True, False, True, False, False, False]


def assert_right_pairs(batches: list[Batch], stream: list[int], *, share: float) -> None:
    """Rows 2i and 2i + 1 follow each other in the stream, a `share` of all at least, and the flags say so exactly."""
    places = {row: place for place, row in enumerate(stream)}
    following = flagged = 0
    for batch in batches:
        assert batch.adjacent is not None
        assert batch.adjacent.shape == (8,)
        for first, second, flag in zip(*batch.input[:, 0].int().view(8, 2).T.tolist(), batch.adjacent, strict=True):
            following += places[second] == places[first] + 1
            flagged += bool(flag)
            # one row after the other, and in the same document
            assert bool(flag) == (second == first + 1 and second // 23 == first // 23), (first, second)
    pairs = 8 * len(batches)
    assert following >= share * pairs
    assert 0.5 * pairs < flagged < pairs


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("per_pass", [37, 190])
def test_live_pairs_are_neighbours_of_the_stream(per_pass: int, overlap: bool) -> None:
    # of every six rows five are left: pairs straddle the gaps, which are within a document
    batches = live(per_pass=per_pass, every=6, overlap=overlap, pairs=True)
    found = list(batches.iterate(None))
    stream = FakeHarvest(2000, per_pass, 6).kept()
    assert_right_pairs(found, stream, share=1.0)
    assert sorted(flat(ids_of(found))) == stream[:800]


@pytest.mark.parametrize("rows", [800, 805, 1027])
@pytest.mark.parametrize("room", [200, 100_000])
def test_stored_pairs_are_neighbours_of_the_stream(rows: int, room: int, tmp_path: Path) -> None:
    for store in (memory_store(rows), disk_store(tmp_path, rows)):
        batches = stored(store, epochs=2, buffer_bytes=room * D * 8, pairs=True)
        found = list(batches.iterate(None))
        # where pages are dealt out, a pair at a seam may be of two pages
        assert_right_pairs(found, list(range(rows)), share=0.97)
        first = flat(ids_of(found[: batches.per_epoch]))
        assert len(set(first)) == len(first) == rows - rows % 16


def test_pairs_are_shuffled_among_themselves(make: Any) -> None:
    batches = make(pairs=True)
    block = flat(ids_of(list(batches.iterate(None))[: batches.batches_per_block]))
    assert abs(rank_correlation(block[::2])) < 4 / len(block[::2]) ** 0.5
    other = flat(ids_of(list(make(pairs=True, seed=1).iterate(None))[: batches.batches_per_block]))
    assert block != other


def test_pairs_continue_after_any_state(make: Any) -> None:
    whole = list(make(pairs=True).iterate(None))
    for index in (0, 5, 11, 12, 30, 47):
        rest = list(itertools.islice(make(pairs=True).iterate(whole[index].state), 3))
        assert ids_of(rest) == ids_of(whole[index + 1 : index + 4])
        for ours, theirs in zip(rest, whole[index + 1 :], strict=False):
            assert ours.adjacent is not None
            assert theirs.adjacent is not None
            assert ours.adjacent.equal(theirs.adjacent)


def test_shuffled_rows_say_nothing_of_neighbours(make: Any) -> None:
    assert next(make().iterate(None)).adjacent is None


# --- order ---


def assert_any_state_continues(make: Any, **changed: Any) -> None:
    whole = list(make(**changed).iterate(None))
    for index, batch in enumerate(whole):
        rest = list(itertools.islice(make(**changed).iterate(batch.state), 14))
        assert ids_of(rest) == ids_of(whole[index + 1 : index + 15]), index
        assert [later.state for later in rest] == [later.state for later in whole[index + 1 : index + 15]]


def test_after_any_batch_its_state_gives_the_batches_that_would_have_followed(make: Any) -> None:
    assert_any_state_continues(make)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("per_pass", [190, 700])
def test_states_continue_where_one_forward_pass_fills_several_blocks(per_pass: int, overlap: bool) -> None:
    assert_any_state_continues(live, per_pass=per_pass, overlap=overlap)
    found = flat(ids_of(list(live(per_pass=per_pass, overlap=overlap).iterate(None))))
    assert sorted(found) == FakeHarvest(2000).kept()[:800]


@pytest.mark.parametrize("make", KINDS[2:], indirect=True)
def test_states_continue_across_epochs(make: Any) -> None:
    assert_any_state_continues(make, epochs=3)


def test_a_state_is_a_few_json_values(make: Any) -> None:
    states = [batch.state for batch in make().iterate(None)]
    assert json.loads(json.dumps(states)) == states
    assert all(len(json.dumps(state)) < 100 for state in states)


def test_nothing_is_read_after_the_last_batch() -> None:
    batches = live()
    last = list(batches.iterate(None))[-1].state
    before = batches.harvest.forwards  # type: ignore[attr-defined]
    assert list(batches.iterate(last)) == []
    assert batches.harvest.forwards == before  # type: ignore[attr-defined]


def test_resuming_harvests_one_block_again_and_no_more() -> None:
    batches = live()
    whole = list(batches.iterate(None))
    fresh = live()
    next(fresh.iterate(whole[40].state))
    per_block = 200 * 7 / 6 / 37 + 2
    assert fresh.harvest.forwards <= per_block  # type: ignore[attr-defined]


def test_the_seed_changes_the_order_and_nothing_else_does(make: Any) -> None:
    first, again, other = (ids_of(list(make(seed=seed).iterate(None))) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    agreeing = sum(left == right for left, right in zip(flat(first), flat(other), strict=True))
    assert agreeing < 40  # of 800; chance gives about 5


def test_epochs_come_in_different_orders(tmp_path: Path) -> None:
    rows = 40 * PAGE
    for store in (memory_store(rows), disk_store(tmp_path, rows)):
        batches = stored(store, batch=64, epochs=3, buffer_bytes=8 * PAGE * D * 8)
        places = torch.tensor(flat(ids_of(list(batches.iterate(None))))).view(3, rows).argsort(dim=1)
        for left, right in itertools.combinations(places, 2):
            # where a row comes in one epoch says nothing of where it comes in another: 40 pages, or 10,240 rows
            limit = 0.5 if batches.blocks > 1 else 0.05
            assert abs(torch.corrcoef(torch.stack([left, right]).double())[0, 1]) < limit
            assert (left == right).float().mean() < 0.01


def test_rows_are_mixed_within_a_block(make: Any) -> None:
    batches = make()
    found = ids_of(list(batches.iterate(None)))
    for first in range(0, len(found) - batches.batches_per_block + 1, batches.batches_per_block):
        block = flat(found[first : first + batches.batches_per_block])
        assert abs(rank_correlation(block)) < 4 / len(block) ** 0.5  # four standard deviations of chance


def test_each_block_has_an_order_of_its_own(tmp_path: Path) -> None:
    one_store = stored(disk_store(tmp_path, 4 * PAGE), buffer_bytes=PAGE * D * 8, batch=PAGE)
    for batches in (live(), one_store):
        found = ids_of(list(batches.iterate(None)))
        size = batches.batches_per_block
        first, second = (torch.tensor(flat(found[i : i + size])).argsort() for i in (0, size))
        assert (first == second).float().mean() < 0.1


def test_blocks_of_a_large_store_mix_pages_from_everywhere(tmp_path: Path) -> None:
    rows = 40 * PAGE
    batches = stored(disk_store(tmp_path, rows), batch=64, buffer_bytes=8 * PAGE * D * 8, epochs=2)
    assert batches.blocks == 5
    found = ids_of(list(batches.iterate(None)))
    block = flat(found[: batches.batches_per_block])
    pages = {i // PAGE for i in block}
    assert len(pages) == 8
    assert max(pages) - min(pages) > 15
    second = {i // PAGE for i in flat(found[batches.per_epoch : batches.per_epoch + batches.batches_per_block])}
    assert pages != second


def test_permutations_depend_on_every_part_of_the_key() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0), (10,), (1, 0, 10)]
    orders = [permutation(50, *key).tolist() for key in keys]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == len(keys)
    assert permutation(50, 1, 2).equal(permutation(50, 1, 2))


# --- what may not change under a state ---


@pytest.mark.parametrize("change", [{"batch": 32}, {"buffer_bytes": 6000 * D * 8}])
def test_a_state_of_batches_cut_otherwise_is_refused(change: dict[str, int]) -> None:
    state = next(live(buffer_bytes=300 * D * 8).iterate(None)).state
    with pytest.raises(ConfigError, match=r"--resume: batch.* was .*, now it is"):
        next(live(**{"buffer_bytes": 300 * D * 8, **change}).iterate(state))


# --- memory ---


class Peak:
    """Most bytes that activations of this file's type took in a test, seen at every 40th forward pass."""

    def __init__(self) -> None:
        self.bytes = self.passes = 0
        self.before = self._alive()

    def look(self) -> None:
        self.passes += 1
        if self.passes % 40 == 0:
            self.bytes = max(self.bytes, self._alive() - self.before)

    def _alive(self) -> int:
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in gc.get_objects()
            if type(t) is Tensor and t.dtype == DTYPE and t.ndim == 2 and t.shape[1] == D
        }
        return sum(storages.values())


@pytest.mark.parametrize("overlap", [False, True])
def test_live_blocks_stay_within_the_stated_memory(overlap: bool) -> None:
    room = 12_000 * D * 8
    peak = Peak()
    settings = {"batch": 50, "tokens": 30_000, "buffer_bytes": room, "overlap": overlap}
    batches = live(8_000, **settings, progress=lambda rows: peak.look())
    assert batches.batches_per_block * 50 * D * 8 > room / 4, "a block uses what it may"
    assert sum(len(batch.input) for batch in batches.iterate(None)) == 30_000
    # beside the blocks a forward pass and a batch are alive, here under 200 rows each, at both sites
    assert room * 0.6 < peak.bytes < room + 800 * D * 8


def test_blocks_of_a_store_stay_within_the_stated_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = disk_store(tmp_path, 30_000)
    mapped = {part.activations["a"].untyped_storage().data_ptr() for part in store.parts}
    mapped |= {part.activations["b"].untyped_storage().data_ptr() for part in store.parts}
    peak = 0
    read = DiskStore.read

    def watched(self: DiskStore, *given: Any, **named: Any) -> dict[str, Tensor]:
        nonlocal peak
        found = read(self, *given, **named)
        tensors = [
            t
            for t in gc.get_objects()
            if type(t) is Tensor and t.dtype == DTYPE and t.ndim == 2 and t.shape[1] == D and len(t) > 100
        ]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        peak = max(peak, sum(size for place, size in storages.items() if place not in mapped))
        return found

    monkeypatch.setattr(DiskStore, "read", watched)
    room = 7_000 * D * 8
    batches = stored(store, batch=50, buffer_bytes=room, epochs=2)
    assert sum(len(batch.input) for batch in batches.iterate(None)) == 60_000
    assert room * 0.9 < peak <= room


@pytest.mark.parametrize("overlap", [False, True])
def test_a_buffer_smaller_than_a_batch_is_refused(overlap: bool, tmp_path: Path) -> None:
    room = (3 if overlap else 1) * 16 * D * 8
    assert live(buffer_bytes=room, overlap=overlap).batches_per_block == 1
    with pytest.raises(ConfigError, match="--buffer-mb 0: less than one batch of 16 tokens; expected at least 1"):
        live(buffer_bytes=room - 1, overlap=overlap)
    with pytest.raises(ConfigError, match="--buffer-mb 0: less than one batch"):
        stored(disk_store(tmp_path, 100), buffer_bytes=16 * D * 8 - 1)


# --- data that end ---


def test_a_live_data_set_that_ends_announces_each_new_pass_and_goes_on() -> None:
    announced: list[int] = []
    batches = live(300, on_restart=announced.append, buffer_bytes=10_000 * D * 8)
    found = flat(ids_of(list(batches.iterate(None))))
    kept = len(batches.harvest.kept())  # type: ignore[attr-defined]
    assert kept == 258
    assert len(found) == 800
    assert announced == [2, 3, 4]
    assert set(Counter(found).values()) == {3, 4}, "rows come round evenly"


def test_a_resume_goes_on_in_the_pass_it_was_in() -> None:
    whole = list(live(300).iterate(None))
    announced: list[int] = []
    rest = list(live(300, on_restart=announced.append).iterate(whole[30].state))
    assert ids_of(rest) == ids_of(whole[31:])
    assert announced == [3, 4]


def test_fewer_rows_than_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gives only 12 tokens to train on; a batch takes 16"):
        next(live(14).iterate(None))
    for store in (memory_store(12), disk_store(tmp_path, 12)):
        with pytest.raises(ConfigError, match="--batch 16: the data set gave only 12 tokens"):
            stored(store)
    with pytest.raises(ConfigError, match="--tokens 15: less than one batch of 16"):
        live(tokens=15)


def test_the_rows_of_a_data_set_of_one_batch_are_enough() -> None:
    found = flat(ids_of(list(live(18, tokens=48).iterate(None))))
    assert Counter(found) == dict.fromkeys(live(18).harvest.kept(), 3)  # type: ignore[attr-defined]
    assert len(set(found)) == 16


# --- precision ---


def test_rows_are_kept_in_the_stated_precision() -> None:
    assert next(live(dtype=torch.float16).iterate(None)).input.dtype == torch.float16
    with pytest.raises(
        ActivationError, match=r"site a: 6\.\d+e\+04 in document 28\d\d does not fit torch\.float16; choose"
    ):
        list(live(80_000, tokens=70_000, dtype=torch.float16, buffer_bytes=10**7).iterate(None))


@pytest.mark.parametrize("make", KINDS[:2], indirect=True)
def test_rows_harvested_are_reported(make: Any) -> None:
    seen: list[int] = []
    list(make(progress=seen.append).iterate(None))
    assert sum(seen) == 800
