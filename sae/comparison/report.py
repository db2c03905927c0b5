"""The comparison as a page: everybody trained, measured and put into one table, with its pictures.

    compare(Comparison(out=Path("runs/compare"), data="digits"))

The folder holds comparison.html, comparison.json (everything, with settings and every seed's values) and `runs`. The
same call again goes on where it ended: finished runs and their measures are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae.chapter.base import Setting
from sae.comparison.controls import pca_controls, random_controls
from sae.comparison.grounds import Ground, pixel_ground, planted_ground
from sae.comparison.members import Tour, control_rows, image_rows
from sae.comparison.plan import FULL, QUICK, SMALLER, pixel_members, planted_members
from sae.comparison.table import Row, record, table
from sae.fields import check
from sae.files import publish_json
from sae.pictures.page import Page
from sae.training.run_folder import run_lock

PAGE, RECORD = "comparison.html", "comparison.json"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, and where."""

    out: Path
    """Folder of the page, of comparison.json, and of the runs."""
    data: str = "digits"
    """Images of the pixel tier."""
    seeds: int = 5
    quick: bool = False
    language_run: str | None = None
    """A language model's run whose activations are read; by default the demo model's."""
    tell: Callable[[str], None] = field(default=lambda text: None)

    def __post_init__(self) -> None:
        check(self.seeds >= 2, "seeds", self.seeds, "at least 2: intervals and cosines are over seeds")


def compare(asked: Comparison) -> dict[str, Any]:
    """Run the comparison, or what is left of it, and write its page.

    Returns:
        JSON values: the table, and where page and record are.

    Raises:
        ConfigError, DataError: a setting or data set cannot be used.
        Interrupted: SIGINT or SIGTERM; what is finished is kept.
    """
    asked.out.mkdir(parents=True, exist_ok=True)
    with run_lock(asked.out):
        return _compare_locked(asked)


def _compare_locked(asked: Comparison) -> dict[str, Any]:
    begun = time.perf_counter()
    setting = Setting(
        out=asked.out,
        data=SMALLER.get(asked.data, asked.data),
        seeds=tuple(range(asked.seeds)),
        quick=asked.quick,
        tell=asked.tell,
    )
    scale = QUICK if asked.quick else FULL
    planted, pixels = planted_members(quick=asked.quick), pixel_members(quick=asked.quick)
    tour = Tour(setting, asked.seeds * (len(planted) + len(pixels) + 4) + 6)
    grounds = [planted_ground(scale), pixel_ground(setting.data, scale)]
    rows: list[Row] = []
    for ground, members in zip(grounds, (planted, pixels), strict=True):
        limit = len(ground.train)
        epochs = scale.planted_epochs if ground.atoms is not None else scale.epochs(limit)
        found, _ = image_rows(tour, ground, members, epochs=epochs, limit=limit)
        rows += found + _controls(tour, ground, quick=asked.quick)
    page = Page("Sparse and image autoencoders on common ground", f"{setting.data}, {asked.seeds} seeds")
    page.section("The table")
    page.table(table(rows))
    page.write(asked.out / PAGE)
    publish_json(asked.out / RECORD, {"rows": record(rows), "seconds": round(time.perf_counter() - begun, 1)})
    return {"table": table(rows), "page": str(asked.out / PAGE), "record": str(asked.out / RECORD)}


def _controls(tour: Tour, ground: Ground, *, quick: bool) -> list[Row]:
    seeds = tour.setting.seeds
    k, width, dense = (8, 64, 16) if quick else (8, 256, 32)
    random = control_rows(
        tour,
        ground,
        lambda seed: random_controls(ground, width=width, k=k, dense=dense, seed=seed),
        seeds=seeds,
        family="control",
    )
    pca = control_rows(tour, ground, lambda seed: pca_controls(ground, (8, dense)), seeds=seeds[:1], family="PCA")
    return pca + random
