"""The command that measures what latents mean and do. Heavy packages are imported inside `run`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from sae.cli.options import Json
from sae.config import MeasureConfig


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Measure what latents mean and do: sparse probing, absorption, SCR, TPP, causal attributes, beside controls.

    The rows are kept in the run's semantic.json.
    """

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a hub repository that holds one, or what `sae import` reads, if its text is known."""
    config: MeasureConfig = dataclasses.field(default_factory=MeasureConfig)
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.evaluation.semantic.run import measure

        return measure(self.run_folder, self.config)

    def table(self, report: dict[str, Any]) -> dict[str, Any]:
        """What people are shown of it."""
        from sae.evaluation.semantic.results import readable

        return readable(report)
