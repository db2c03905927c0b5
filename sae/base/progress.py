"""What a person sees while something runs long (on stderr), and stopping it without losing anything.

with StopSignal() as stop, Progress() as progress, progress.bar("Training", 900_000, "tokens") as bar:
    bar.advance(2048); bar.note("FVU 0.21"); stop.check("continue with: sae train --resume --out R")
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from sae.base.launcher import rank_number
from sae.base.pulse import PULSE

PLAIN_SECONDS = 15.0  # between two lines where stderr is no terminal


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it
    """SIGINT or SIGTERM stopped the run; the message says how to continue."""

    def __init__(self, signum: int, hint: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; {hint}")
        self.exit_status = 128 + signum


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a request; a second one ends the process at once."""

    def __init__(self) -> None:
        self.requested: int | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopSignal:
        # only the main thread may set handlers; elsewhere (a notebook's worker, say) signals keep their meaning
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def check(self, hint: str) -> None:
        """Raise Interrupted if a signal came; `hint` tells the user how to continue."""
        if self.requested is not None:
            raise Interrupted(self.requested, hint)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self.requested = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}


class Bar:
    """A running count with rate and time left, on a terminal or as plain lines."""

    def __init__(self, rich: RichProgress | None, console: Console, title: str, total: int, unit: str) -> None:
        self._rich, self._console, self._title, self._total, self._unit = rich, console, title, total, unit
        self._done, self._start, self._spoken, self._note = 0, time.perf_counter(), time.perf_counter(), ""
        self._begun = 0
        self._task = rich.add_task(title, total=total, unit=unit, note="") if rich else None
        PULSE.begin(self._line)

    def advance(self, amount: int) -> None:
        """Count `amount` more."""
        self._done += amount
        PULSE.beat()
        if self._rich is not None and self._task is not None:
            self._rich.update(self._task, advance=amount)
        elif time.perf_counter() - self._spoken > PLAIN_SECONDS:
            self._spoken = time.perf_counter()
            self._console.print(self._line(), highlight=False, soft_wrap=True)

    def skip(self, amount: int) -> None:
        """Count `amount` that was done in an earlier run, and leave it out of the rate."""
        self._begun += amount
        self._done += amount
        if self._rich is not None and self._task is not None:
            self._rich.reset(self._task, completed=self._done)

    def note(self, text: str) -> None:
        """Show `text` beside the bar."""
        self._note = text
        if self._rich is not None and self._task is not None:
            self._rich.update(self._task, note=text)

    def finish(self) -> None:
        """Print the total time and rate."""
        PULSE.end()
        if self._rich is not None and self._task is not None:
            self._rich.remove_task(self._task)
        self._console.print(self._line(), highlight=False, soft_wrap=True)

    def _line(self) -> str:
        seconds = time.perf_counter() - self._start
        taken = self._done - self._begun
        # without progress or elapsed time there is no rate, and so no estimate
        rate = taken / seconds if taken > 0 and seconds > 0 else None
        speed = "" if rate is None else f", {_per_second(rate, self._unit)}"
        if self._done >= self._total:
            tail = f" in {seconds:,.0f} s"
        else:
            tail = "" if rate is None else f", {(self._total - self._done) / rate:,.0f} s left"
        note = f"  {self._note}" if self._note else ""
        return f"{self._title}: {self._done:,} of {self._total:,} {self._unit}{speed}{tail}{note}"


class Progress:
    """Bars with rate and time left on a terminal; where stderr is none, a line every 15 seconds."""

    def __init__(self) -> None:
        # among the processes of a launcher the first one speaks for all
        self.console = Console(stderr=True, quiet=rank_number() != 0)
        self._rich: RichProgress | None = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal and not self.console.quiet:
            self._rich = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                _Rate(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                transient=True,
            )
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars; text in brackets is not taken as markup."""
        PULSE.say(text)
        self.console.print(text, highlight=False, soft_wrap=True, markup=False, emoji=False)

    @contextlib.contextmanager
    def bar(self, title: str, total: int, unit: str) -> Iterator[Bar]:
        """A running count of `total` units."""
        bar = Bar(self._rich, self.console, title, total, unit)
        try:
            yield bar
        finally:
            bar.finish()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(_per_second(speed, task.fields["unit"]) if speed else "")


def _per_second(rate: float, unit: str) -> str:
    """A rate in words: whole numbers from 10 on, two digits below, so that a slow one is not shown as 0."""
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.2g} {unit}/s"
