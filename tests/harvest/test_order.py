"""The order of a store's rows: each once, decided by seed and epoch, mixed from many shards, near in what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae.data.packing import BEGINNING
from sae.harvest.buffer import StoredBatches
from sae.harvest.order import PAGE, WINDOW, PageOrder, mixing
from sae.harvest.rows import Rows
from sae.harvest.store import DiskStore

SHARDS = {"one": [5_000], "a window": [1_000] * WINDOW, "many": [1_024] * 40, "uneven": [700, 1_024, 3, 256] * 12}


@pytest.mark.parametrize("name", SHARDS)
@pytest.mark.parametrize("served", [1.0, 0.63])
def test_every_row_comes_once_and_blocks_are_slices(name: str, served: float) -> None:
    sizes = SHARDS[name]
    rows = int(sum(sizes) * served)
    order = PageOrder(sizes, rows=rows, seed=3, epoch=1)
    whole = order.rows(0, rows)
    assert whole.sort().values.equal(torch.arange(rows))
    for first, last in ((0, 1), (0, 777), (255, 257), (rows - 300, rows), (512, 512)):
        assert order.rows(first, last).equal(whole[first:last])
    assert not whole.equal(PageOrder(sizes, rows=rows, seed=3, epoch=2).rows(0, rows))
    assert whole.equal(PageOrder(sizes, rows=rows, seed=3, epoch=1).rows(0, rows))


def test_a_window_mixes_its_shards_and_needs_no_other() -> None:
    order = PageOrder([1_024] * 40, rows=40 * 1_024, seed=0, epoch=0)
    for first in range(0, 40, WINDOW):
        rows = order.rows(first * 1_024, min(first + WINDOW, 40) * 1_024)
        shards = set((rows // 1_024).tolist())
        assert len(shards) == min(WINDOW, 40 - first)
        begun = rows[: 16 * PAGE] // 1_024
        assert len(begun.unique()) >= min(7, len(shards)), "the first pages come from many shards"


def rows_of(ids: Tensor, document: Tensor) -> Rows:
    columns = [torch.zeros(len(ids), dtype=dtype) for dtype in (torch.int32, torch.int32, torch.int32, torch.int8)]
    return Rows({"s.0": ids.float().unsqueeze(1).expand(-1, 4).contiguous()}, columns[0], document, *columns[1:])


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> StoredBatches:
    """40 shards of 2,048 rows in documents of 120, in blocks of a tenth of the store."""
    store = DiskStore(tmp_path_factory.mktemp("store"), {"sites": {"s.0": 4}, "precision": "float32"})
    ids = torch.arange(40 * 2_048)
    for part in ids.split(2_048):
        store.append(rows_of(part, part // 120), BEGINNING)
    return StoredBatches(store, ["s.0"], ["s.0"], batch=512, epochs=2, buffer_bytes=8_192 * 16, seed=0)


def test_batches_are_mixed_nearly_as_by_a_uniform_shuffle(batches: StoredBatches) -> None:
    document = torch.arange(40 * 2_048) // 120
    measured = mixing(list(batches.numbers(0)), document)
    uniform = torch.randperm(len(document), generator=torch.Generator().manual_seed(0)).split(512)
    assert mixing(list(uniform), document).collisions == pytest.approx(1, abs=0.1)
    # a block holds a tenth of the rows, in pages of 256: two documents each
    assert measured.collisions < 12
    assert abs(measured.correlation) < 0.3
    in_order = mixing(list(torch.arange(len(document)).split(512)), document)
    assert in_order.collisions > 100
    assert in_order.correlation > 0.99


def test_numbers_are_those_of_the_rows_that_come(batches: StoredBatches) -> None:
    expected = [*batches.numbers(0), *batches.numbers(1)]
    for batch, numbers in zip(batches.iterate(None), expected, strict=True):
        assert batch.input[:, 0].long().equal(numbers)


def test_a_state_continues_in_the_middle_of_a_window(batches: StoredBatches) -> None:
    whole = list(batches.iterate(None))
    assert whole[0].state["window"] == WINDOW
    for index in (0, 17, 63, 159, 160, 200):
        for later, expected in zip(batches.iterate(whole[index].state), whole[index + 1 :], strict=True):
            assert later.input.equal(expected.input)
            break


def test_a_long_read_copies_runs_and_gives_the_same_rows(tmp_path: Path, batches: StoredBatches) -> None:
    store = batches.store
    numbers = batches._block_rows(0, 2)
    assert isinstance(numbers, Tensor)
    by_run = store.read(numbers, ["s.0"])
    shuffled = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(1))
    by_row = store.read(numbers[shuffled], ["s.0"])
    assert by_run.activations["s.0"][shuffled].equal(by_row.activations["s.0"])
    assert by_run.document[shuffled].equal(by_row.document)
