"""Items computed ahead are those that were asked for, and on a GPU each waits for the stream that made it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sae.data.batching import Batch
from sae.data.side_stream import onto_device, prefetch_beside, tensors_in

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class OnGPU(torch.Tensor):
    """Says that it lies on a GPU, and notes which streams read it."""

    streams: list[str]

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def record_stream(self, stream: Any) -> None:
        self.streams = [*getattr(self, "streams", []), stream.name]


class Stream:
    def __init__(self, name: str, log: list[tuple[str, ...]]) -> None:
        self.name, self.log, self.events = name, log, 0

    def wait_stream(self, other: Stream) -> None:
        self.log.append((self.name, "waits for stream", other.name))

    def record_event(self) -> str:
        self.events += 1
        return f"item {self.events}"

    def wait_event(self, event: str) -> None:
        self.log.append((self.name, "waits for", event))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Of streams that stand in for those of a GPU: what they waited for, and on which items were computed."""
    log: list[tuple[str, ...]] = []
    current = [Stream("training", log)]

    @contextlib.contextmanager
    def within(stream: Stream) -> Iterator[None]:
        log.append((stream.name, "computes"))
        yield

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current[0])
    monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: Stream("beside", log))
    monkeypatch.setattr(torch.cuda, "stream", within)
    return log


def test_items_come_in_order_whatever_the_device(log: list[tuple[str, ...]]) -> None:
    assert list(prefetch_beside(CPU, iter(range(50)), 2)) == list(range(50))
    assert log == []
    assert list(prefetch_beside(GPU, iter(range(50)), 2)) == list(range(50))


def test_each_item_of_a_gpu_is_waited_for_and_its_memory_kept_until_it_was_read(log: list[tuple[str, ...]]) -> None:
    items = [{"a": (torch.zeros(1), torch.zeros(1).as_subclass(OnGPU))} for _ in range(3)]
    seen = 0
    for seen, item in enumerate(prefetch_beside(GPU, iter(items), 1), start=1):
        assert ("training", "waits for", f"item {seen}") in log
        assert item["a"][1].streams == ["training"]  # type: ignore[attr-defined]
    assert seen == 3
    assert log[0] == ("beside", "waits for stream", "training")
    assert ("beside", "computes") in log


def test_an_error_comes_after_the_items_before_it_and_the_source_is_closed(log: list[tuple[str, ...]]) -> None:
    closed: list[bool] = []

    def source() -> Iterator[int]:
        try:
            yield 1
            raise ValueError("no more")
        finally:
            closed.append(True)

    got: list[int] = []
    with pytest.raises(ValueError, match="no more"):
        got.extend(prefetch_beside(GPU, source(), 1))
    assert closed == [True]
    abandoned = prefetch_beside(GPU, source(), 1)
    assert next(abandoned) == 1
    abandoned.close()  # type: ignore[attr-defined]
    assert closed == [True, True]


def test_batches_for_a_cpu_are_handed_on_untouched() -> None:
    x = torch.randn(4, 2)
    batches = [Batch(x, x, {"step": step}) for step in range(3)]
    assert all(ours is theirs for ours, theirs in zip(onto_device(iter(batches), CPU), batches, strict=True))


def test_tensors_are_found_wherever_they_are() -> None:
    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    found = list(tensors_in((a, {"x": [b, 3, "text"]}, Batch(c, c, {"step": 1}))))
    assert [id(tensor) for tensor in found] == [id(a), id(b), id(c), id(c)]
