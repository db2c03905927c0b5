"""What the line of a running count says, and when it can't say how long is left yet."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

import sae.base.progress
from sae.base.progress import Progress


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sae.base.progress.time, "perf_counter", clock)
    return clock


@pytest.fixture(params=["plain", "terminal"])
def progress(request: pytest.FixtureRequest, clock: Clock) -> Progress:
    progress = Progress()
    terminal = request.param == "terminal"
    progress.console = Console(
        file=io.StringIO(), force_terminal=terminal, width=200, color_system=None, get_time=clock
    )
    return progress


def shown(progress: Progress) -> str:
    """All that was printed, without control sequences."""
    if progress._rich is not None:
        progress._rich.refresh()
    assert isinstance(progress.console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", progress.console.file.getvalue())


def says_an_estimate(text: str) -> bool:
    return bool(re.search(r"\d s left|\d+:\d\d:\d\d", text))


def test_nothing_done_yet(progress: Progress, clock: Clock) -> None:
    with progress, progress.bar("Training", 60_000, "tokens") as bar:
        clock.now += 60  # the first batches took long
        bar.skip(0)
        bar.note("FVU 0.2")
        bar.advance(0)
        assert not says_an_estimate(shown(progress))
        assert "tokens/s" not in shown(progress)
    assert "Training: 0 of 60,000 tokens  FVU 0.2" in shown(progress)
    assert not says_an_estimate(shown(progress))


def test_a_clock_that_has_not_moved(progress: Progress) -> None:
    with progress, progress.bar("Training", 60_000, "tokens") as bar:
        bar.advance(1_000)
        assert not says_an_estimate(shown(progress))
    text = shown(progress)
    assert "Training: 1,000 of 60,000 tokens" in text
    assert not says_an_estimate(text)
    assert "tokens/s" not in text


def test_everything_was_done_earlier(progress: Progress, clock: Clock) -> None:
    with progress, progress.bar("Training", 60_000, "tokens") as bar:
        clock.now += 2
        bar.skip(60_000)
        assert not re.search(r"[\d,]{7,} tokens/s", shown(progress)), "what was skipped counts for no rate"
    assert "Training: 60,000 of 60,000 tokens in 2 s\n" in shown(progress)


def test_a_total_of_zero(progress: Progress, clock: Clock) -> None:
    with progress, progress.bar("Names", 0, "latents"):
        clock.now += 1
        assert not says_an_estimate(shown(progress))
    assert "Names: 0 of 0 latents in 1 s\n" in shown(progress)


def test_the_estimate_is_of_what_this_process_did(progress: Progress, clock: Clock) -> None:
    with progress, progress.bar("Training", 60_000, "tokens") as bar:
        bar.skip(40_000)
        for _ in range(5):
            clock.now += 20
            bar.advance(1_000)
        text = shown(progress)
        if progress._rich is None:
            assert text.splitlines()[0] == "Training: 41,000 of 60,000 tokens, 50 tokens/s, 380 s left"
        else:
            assert re.search(r"75% +50 tokens/s 0:05:00", text)
    assert "Training: 45,000 of 60,000 tokens, 50 tokens/s, 300 s left" in shown(progress)


@pytest.mark.parametrize(
    ("unit", "each", "seconds", "says", "left"),
    [
        ("latents", 1, 50, "0.02 latents/s", "450 s left"),
        ("cells", 1, 2, "0.5 cells/s", "18 s left"),
        ("images", 9, 4, "2.2 images/s", "0 s left"),
        ("MB", 6, 0.001, "6,000 MB/s", "0 s left"),
    ],
)
def test_a_rate_is_never_shown_as_none(
    unit: str, each: int, seconds: float, says: str, left: str, progress: Progress, clock: Clock
) -> None:
    with progress, progress.bar("Doing", 10, unit) as bar:
        for _ in range(2 if each == 1 else 1):
            clock.now += seconds
            bar.advance(each)
        if progress._rich is not None and seconds == 2:
            assert says in shown(progress)
    assert f"Doing: {bar._done} of 10 {unit}, {says}, " in shown(progress)
