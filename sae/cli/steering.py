"""`sae steer RUN --measure`: what steering does over the strength. Heavy packages are imported inside `run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from sae.cli.options import Json
from sae.config import SteerMeasureConfig

COLUMNS = {
    "method": "method",
    "dose": "dose",
    "response": "response",
    "fires": "texts it fires in",
    "loss_added": "loss added, nats",
    "over_random": "response over random latents",
}


@dataclass(frozen=True, kw_only=True)
class SteerMeasure:
    """Measure what steering with latents does: dose and response, fluency, beside controls of the same length.

    The results are kept in the run, whose page shows them. Without --measure, `sae steer` generates one text.
    """

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder with collected features, or a hub repository that holds one."""
    config: SteerMeasureConfig
    measure: tyro.conf.FlagCreatePairsOff[bool] = False
    """Measure, instead of generating one text."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.features.steer.measure import measure_steering

        result = measure_steering(self.run_folder, self.config)
        if self.json:
            return result
        tables = {
            f"latent {one['latent']}": [{head: row[key] for key, head in COLUMNS.items()} for row in one["rows"]]
            for one in result.get("latents", ())
        }
        proposals = {
            f"proposed for {one['latent']}": f"{one['proposed']['dose'] or 'none'}: {one['proposed']['why']}"
            for one in result.get("latents", ())
        }
        return {"run": self.run_folder, **tables, **proposals}
