"""`sae selftest`: the command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from sae.cli.options import Json


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """Damage files, break off writes and feed hostile input on this machine; print how often it went unnoticed.

    The exit status is 1 if any trial failed.
    """

    what: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="HARNESS")] = "all"
    """The harness, or all of them."""
    n: int | None = None
    """Trials; by default each harness's own number."""
    seed: int = 0
    """Seed of every random draw."""
    broken: Annotated[str | None, tyro.conf.arg(name="break", metavar="WHAT")] = None
    """Take a protection away first, to see that the harness notices."""
    keep: Path | None = None
    """Work in this new folder and leave the inputs of failed trials there, with selftest.json and selftest.md."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.selftest.run import run_selftest

        return run_selftest(self.what, **self.given())

    def given(self) -> dict[str, Any]:
        """The flags that differ from their defaults."""
        flags = {"n": self.n, "seed": self.seed or None, "broken": self.broken, "keep": self.keep}
        return {name: value for name, value in flags.items() if value is not None}
