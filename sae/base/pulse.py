"""What the main thread of this process is doing, for a watchdog that must tell slow from stuck.

    PULSE.begin("Training", bar_line)       # a loop of steps starts
    PULSE.beat()                            # a step is done
    with PULSE.without_steps("Writing the checkpoint."): ...
    PULSE.end()

Progress bars call these, so every loop that shows a bar is watched.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from sae.config import ConfigError

WARM_STEPS = 3
"""Steps of a loop before its pace is known: the first ones compile kernels and fill caches."""
SLACK = 10
"""A step may take this many times as long as the longest one of its loop so far."""


def seconds_from(variable: str, default: float) -> float:
    """A number of seconds from the environment.

    Raises:
        ConfigError: it is no number over 0.
    """
    text = os.environ.get(variable, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{variable}={text}: expected a number of seconds over 0")
    return seconds


class Pulse:
    """Steps counted, and how long the next one may take.

    Between loops and in the first steps of one a process may take `SAE_RANKS_WAIT` seconds (600); later a step may take
    `SLACK` times the longest one of its loop, and at least `SAE_RANKS_PATIENCE` seconds (15).
    """

    def __init__(self) -> None:
        self.beats = 0
        """Steps done by this process, in all its loops."""
        self.line = "nothing yet"
        """The last line that this process said, or would have said after its last step."""
        self._describe: Callable[[], str] = lambda: ""
        self._in_loop = self._apart = False
        self._steps, self._longest, self._last = 0, 0.0, 0.0

    def begin(self, line: Callable[[], str]) -> None:
        """A loop of steps starts; `line` gives what it last said."""
        self._describe, self._in_loop, self.line = line, True, line()
        self._steps, self._longest, self._last = 0, 0.0, time.monotonic()
        self.beats += 1

    def beat(self) -> None:
        """A step is done."""
        self.line = self._describe()
        now = time.monotonic()
        # the first gap holds compilation; counting it would make every later step look fast
        if self._steps >= 1:
            self._longest = max(self._longest, now - self._last)
        self._steps, self._last = self._steps + 1, now
        self.beats += 1

    def end(self) -> None:
        """The loop is over."""
        self._in_loop = False
        self.beats += 1

    def say(self, text: str) -> None:
        """The process has said something outside its loops."""
        if not self._in_loop:
            self.line = text
        self.beats += 1

    @contextlib.contextmanager
    def without_steps(self, what: str) -> Iterator[None]:
        """A part that takes no steps, such as writing a checkpoint, however fast the steps around it are."""
        line, self.line, self._apart = self.line, what, True
        self.beats += 1
        try:
            yield
        finally:
            self.line, self._apart, self._last = line, False, time.monotonic()
            self.beats += 1

    @property
    def settled(self) -> bool:
        """Whether the pace of the loop is known."""
        return self._in_loop and not self._apart and self._steps >= WARM_STEPS

    @property
    def patience(self) -> float:
        """Seconds that may pass until the next beat."""
        if not self.settled:
            return seconds_from("SAE_RANKS_WAIT", 600.0)
        return max(seconds_from("SAE_RANKS_PATIENCE", 15.0), SLACK * self._longest)


PULSE = Pulse()
"""That of this process."""
