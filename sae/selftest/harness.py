"""What every harness of `sae selftest` is given and returns.

A harness NAME is a line of `sae.selftest.run.HARNESSES` and a module `sae/selftest/NAME.py` with
`run(task: Task) -> Outcome`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sae.base.progress import Progress

if TYPE_CHECKING:
    from sae.selftest.world import World


class Harness(NamedTuple):
    """One claim and how often it is tried."""

    claim: str
    """What holds if no trial fails."""
    n: int
    """Trials, by default."""
    unit: str
    """What is counted, in the plural."""
    breaks: Mapping[str, str]
    """What --break takes -> the protection that it takes away: the harness must then fail."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a harness is asked to do."""

    folder: Path
    """An empty folder to work in."""
    n: int
    """Trials."""
    seed: int
    """Of every random draw."""
    broken: str | None
    """The protection to take away, a key of the harness's `breaks`; None for none."""
    keep: Path | None
    """Folder for the inputs of failed trials; None to keep none."""
    progress: Progress
    """Bars with rate and time left."""

    @cached_property
    def world(self) -> World:
        """The tiny model and the texts, made when they are first asked for."""
        from sae.selftest.world import make_world

        return make_world(self.folder / "world")


@dataclass(frozen=True)
class Outcome:
    """What a harness observed."""

    n: int
    """Trials that were made."""
    failures: tuple[str, ...]
    """One line for every failed trial: what was tried, what went wrong, the file that was kept."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How the trials ended, or what they consisted of -> how many."""


@dataclass(frozen=True, kw_only=True)
class HarnessResult:
    """One row of the table of `sae selftest`."""

    name: str
    """The harness."""
    claim: str
    """What it claims."""
    n: int
    """Trials that were made."""
    unit: str
    """What they are."""
    failures: int
    """Failed trials."""
    bound: float | None
    """Upper end of the 95% interval of the share that fails, 3 / n, where none failed; None where some did."""
    seconds: float
    """How long it took."""
    seed: int
    """Of every random draw."""
    broken: str | None
    """The protection that was taken away."""
    counts: Mapping[str, int]
    """How the trials ended, or what they consisted of -> how many."""
    failed: tuple[str, ...]
    """The failures, one line each."""

    def row(self) -> dict[str, Any]:
        """The row as it is printed."""
        return {
            "harness": self.name,
            "claim": self.claim,
            "trials": f"{self.n:,} {self.unit}",
            "failures": self.failures,
            "failing at most (95%)": "-" if self.bound is None else f"{self.bound:.2g}",
            "seconds": round(self.seconds, 1),
        }
