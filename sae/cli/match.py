"""`sae match`: the latents of several runs, compared."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from sae.cli.options import Json
from sae.config import MatchConfig


@dataclass(frozen=True, kw_only=True)
class Match:
    """Match the latents of several runs: what they share, what is new, gone, split or merged, how stable each is."""

    run_folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN RUN [RUN ...]")]
    """Two or more run folders, checkpoints (RUN/checkpoints/STEP), or what `sae import` reads: of different seeds,
    sizes, layers or tools."""
    config: MatchConfig = dataclasses.field(default_factory=MatchConfig)
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.evaluation.matching.run import match, shown

        report = match(self.run_folders, self.config)
        # the lists of latents are in match.json; a program gets them too
        return report if self.json else shown(report)
