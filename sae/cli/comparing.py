"""`sae compare`: variants with several seeds in one table. Heavy packages are imported inside `run`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from sae.cli.options import Json
from sae.config import CompareConfig


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare variants over their seeds: means, paired differences, what they can detect, ranks, beside controls.

    Runs that differ in their seed alone are one variant. All must have been evaluated on the same tokens, by
    `sae sweep` or `sae eval`; no language model runs here.
    """

    run_folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SWEEP | RUN RUN [RUN ...]")]
    """The folder of a sweep, or run folders."""
    config: CompareConfig = dataclasses.field(default_factory=CompareConfig)
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.reporting.variants import compare

        result = compare(self.run_folders, self.config)
        # every number behind the tables is for programs
        return result if self.json else {name: value for name, value in result.items() if name != "record"}
