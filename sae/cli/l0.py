"""`sae choose-l0`: runs are judged, or trained first in a sweep, and the curve is drawn.

choose_and_draw(["runs/k8", "runs/k16", "runs/k32"], L0Config(out=Path("runs/l0")))
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae.base.files import publish_file, publish_json
from sae.cli.sweep import run_sweep
from sae.config import ConfigError, EvalConfig, L0Config, TrainConfig
from sae.evaluation.l0.run import RECORD, choose_l0
from sae.pictures.l0 import draw_choice

PICTURE = "l0.svg"


def choose_and_draw(runs: Sequence[str | Path], config: L0Config | None = None) -> dict[str, Any]:
    """`sae.choose_l0`; with `out`, its record and the picture of its curves are written there."""
    config = config or L0Config()
    if config.out is not None and config.out.exists():
        raise ConfigError(f"--out {config.out}: exists already; give a new folder")
    return _written(choose_l0(runs, dataclasses.replace(config, out=None)), config.out)


def sweep_and_choose(out: Path, members: Sequence[TrainConfig], evaluation: EvalConfig) -> dict[str, Any]:
    """Train the members that are not finished on one harvest, compare them as `sae sweep` does, and judge their L0."""
    run_sweep(out, members, evaluation)
    return _written(choose_l0([member.out for member in members], L0Config(device=evaluation.device)), out)


def _written(report: dict[str, Any], out: Path | None) -> dict[str, Any]:
    if out is None:
        return report
    publish_json(out / RECORD, report)
    picture = io.BytesIO()
    draw_choice(report).savefig(picture, format="svg", metadata={"Date": None})
    publish_file(out / PICTURE, picture.getvalue())
    return {**report, "picture": str(out / PICTURE)}
