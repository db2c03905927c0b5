"""The command that writes a report. Heavy packages are imported inside `run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from sae.cli.options import Json


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one page about runs: numbers beside their controls, stability, steering, names, latents, provenance.

    Delta CE is shown by position and class of the token, and runs that were evaluated on the same documents in pairs.
    What was not measured is listed with the command that measures it. The page needs no network. Figures are also
    written as SVG and PNG, and a model card for every run. A run that was not evaluated yet is evaluated with the
    defaults of `sae eval`.
    """

    run_folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders on text, or on files of activations."""
    out: Path = Path("report")
    """Folder of the page; an earlier report in it is replaced."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.reporting.report import report

        return report(self.run_folders, self.out)
