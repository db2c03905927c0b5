"""Ends a rank whose launcher has gone, or whose launcher's store no longer answers.

A call of the store has no time limit of its own: where the launcher's machine lost its power, it waits for ever, and so
does the thread that called. This thread makes no such call.
"""

from __future__ import annotations

import os
import threading

from sae.base.launcher import rank_number

TICK = 1.0  # seconds
UNANSWERED = 20.0  # seconds that the store may take to answer


class Guard:
    """Watches from its making on until `stop`.

    Seconds are those in which this process itself ran, so a job that is suspended as a whole goes on unharmed.
    """

    def __init__(self) -> None:
        self.launcher = os.getppid()
        """Process id of the launcher."""
        self._left = float("inf")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)
        self._thread.start()

    def expect_answer(self, seconds: float = UNANSWERED) -> None:
        """The store has answered, and will answer again within so many seconds."""
        self._left = seconds

    def stop(self) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(TICK):
            self._left -= TICK
            # a process whose parent has gone is given another one
            if os.getppid() != self.launcher:
                self._end("the launcher has gone")
            elif self._left < 0:
                self._end("the launcher's store does not answer")

    def _end(self, why: str) -> None:
        # one write, so that the lines of several ranks do not mix
        os.write(2, f"error: rank {rank_number()} ends, because {why}\n".encode())
        os._exit(1)
