"""Several fillers on one stream of passes: each fills its own blocks, goes on from its own place, and fails alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sae.data.documents import DataError
from sae.data.packing import BEGINNING, Cursor
from sae.harvest.filling import Filled, Filler, fill
from sae.harvest.rows import ActivationError, Rows
from sae.harvest.stream import Harvested

PASSES, ROWS = 12, 10


class View:
    """A harvest that leaves out every `every`th row, and fails in pass `fails`."""

    def __init__(self, every: int, fails: int | None = None) -> None:
        self.every, self.fails = every, fails

    def seen(self, harvested: Harvested) -> Harvested:
        if harvested.begin.document == self.fails:
            raise ActivationError("site a: not finite")
        return harvested

    def trained_on(self, rows: Rows) -> Rows:
        return rows.select((rows.token % self.every != 0).nonzero().squeeze(1))

    def name_of(self, token: Any, document: Any, row: int) -> str:
        return "a document"


class Data:
    """Passes of ten rows, numbered in order; `forwards` counts them."""

    def __init__(self) -> None:
        self.forwards = 0

    def passes(self, start: Cursor) -> Iterator[Harvested]:
        for index in range(start.document, PASSES):
            self.forwards += 1
            ids = torch.arange(index * ROWS, (index + 1) * ROWS)
            zeros = torch.zeros(ROWS, dtype=torch.int32)
            rows = Rows({"a": ids.float().unsqueeze(1)}, ids.int(), ids, zeros, zeros, zeros.to(torch.int8))
            yield Harvested(rows, None, Cursor(index, 0))  # type: ignore[arg-type]


def filler(every: int, block: int, total: int, **more: Any) -> Filler:
    view = View(every, more.pop("fails", None))
    return Filler(view, ["a"], torch.float32, total=total, block=block, **more)  # type: ignore[arg-type]


def filled_by(fillers: list[Filler], data: Data | None = None) -> dict[Filler, list[Filled | None]]:
    blocks: dict[Filler, list[Filled | None]] = {each: [] for each in fillers}
    for each, filled in fill((data or Data()).passes, fillers, on_restart=lambda n: None):
        blocks[each].append(filled)
    return blocks


def ids(block: Filled | None) -> list[int]:
    assert block is not None
    return block.rows.activations["a"].squeeze(1).int().tolist()


def kept(every: int) -> list[int]:
    return [i for i in range(PASSES * ROWS) if i % every]


def test_each_fills_its_own_rows_in_its_own_blocks_from_one_pass() -> None:
    data = Data()
    first, second = filler(3, 25, 60), filler(7, 40, 90)
    blocks = filled_by([first, second], data)
    assert [ids(block) for block in blocks[first]] == [kept(3)[:25], kept(3)[25:50], kept(3)[50:60]]
    assert [ids(block) for block in blocks[second]] == [kept(7)[:40], kept(7)[40:80], kept(7)[80:90]]
    assert data.forwards == 11, "the passes that the longer one needs, each once"


def test_one_that_comes_in_later_gets_the_blocks_that_it_would_have_got() -> None:
    whole = filled_by([filler(3, 25, 60)])
    ((_, second, third),) = whole.values()
    assert second is not None
    late, early = filler(3, 25, 60, index=1, begin=second.begin), filler(7, 40, 80)
    blocks = filled_by([early, late])
    assert [ids(block) for block in blocks[late]] == [ids(second), ids(third)]
    assert [ids(block) for block in blocks[early]] == [kept(7)[:40], kept(7)[40:80]]


def test_one_that_fails_stops_and_the_others_go_on() -> None:
    failing, going = filler(3, 20, 60, fails=5), filler(7, 40, 80)
    blocks = filled_by([failing, going])
    assert [ids(block) for block in blocks[going]] == [kept(7)[:40], kept(7)[40:80]]
    assert [block is None for block in blocks[failing]] == [False, True]
    assert isinstance(failing.error, ActivationError)


def test_data_that_end_are_read_again_or_end_the_stream() -> None:
    total = len(kept(3)) + 10
    again, once = filler(3, total, total), filler(3, total, total, repeats=False)
    blocks = filled_by([again, once])
    assert ids(blocks[again][0]) == kept(3) + kept(3)[:10]
    assert ids(blocks[once][0]) == kept(3)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"least": 81}, "gives only 80 tokens to train on; a batch takes 81"),
        ({"begin": Cursor(40, 3), "index": 1}, "no forward pass that begins at .40, 3.; it has changed"),
    ],
)
def test_data_that_cannot_feed_a_stream_are_refused(changed: dict[str, Any], said: str) -> None:
    wrong, going = filler(3, 30, 200, **changed), filler(3, 30, 60, begin=BEGINNING)
    blocks = filled_by([wrong, going])
    assert [ids(block) for block in blocks[going]] == [kept(3)[:30], kept(3)[30:60]]
    assert isinstance(wrong.error, DataError)
    with pytest.raises(DataError, match=said):
        raise wrong.error
