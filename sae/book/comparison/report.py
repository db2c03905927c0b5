"""The comparison as a page: all models trained and measured, in one table, with pictures.

    compare(Comparison(out=Path("runs/compare"), data="digits"))

The folder holds comparison.html, comparison.json (everything, with settings and every seed's values) and `runs`. The
same call resumes where the last one ended: finished runs and their measures are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae.base.files import publish_json
from sae.base.progress import Interrupted
from sae.book.chapter.base import Setting, locked_folder
from sae.book.comparison.page import write_page
from sae.book.comparison.plan import FULL, QUICK, SMALLER
from sae.book.comparison.table import brief, record
from sae.book.comparison.tiers import Tier, run_tiers
from sae.config import check

PAGE, RECORD = "comparison.html", "comparison.json"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The data, seeds and folder of a comparison."""

    out: Path
    """Folder of the page, of comparison.json, and of the runs."""
    data: str = "dsprites"
    """Images of the pixel tier."""
    seeds: int = 5
    """Seeds of every training, from 0 on."""
    quick: bool = False
    """Few models and epochs."""
    language_run: str | None = None
    """A language model's run whose activations are read; by default the demo model's."""
    tell: Callable[[str], None] = field(default=lambda text: None)
    """Reports progress."""

    def __post_init__(self) -> None:
        check(self.seeds >= 2, "seeds", self.seeds, "at least 2: intervals and cosines are over seeds")


def compare(comparison: Comparison) -> dict[str, Any]:
    """Run the comparison, or what is left of it, and write its page.

    Returns:
        JSON values: the table in brief, what was left out and why, and where page and record are.

    Raises:
        ConfigError, DataError: a setting or data set cannot be used.
        Interrupted: SIGINT or SIGTERM; what is finished is kept.
    """
    with locked_folder(comparison.out):
        begun = time.perf_counter()
        setting = Setting(
            out=comparison.out,
            data=SMALLER.get(comparison.data, comparison.data),
            seeds=tuple(range(comparison.seeds)),
            quick=comparison.quick,
            tell=comparison.tell,
        )
        scale = QUICK if comparison.quick else FULL
        try:
            tiers, left_out = run_tiers(setting, scale, comparison.language_run)
        except Interrupted as stopped:
            hint = "the same command resumes; finished runs and their measures are kept"
            raise Interrupted(stopped.exit_status - 128, hint) from None
        seconds = round(time.perf_counter() - begun, 1)
        settings = {
            "data": setting.data,
            "seeds": list(setting.seeds),
            "quick": comparison.quick,
            "language_run": comparison.language_run,
            "scale": scale._asdict(),
        }
        write_page(comparison.out / PAGE, tiers, left_out, settings, seconds)
        publish_json(comparison.out / RECORD, _record(tiers, left_out, settings, seconds))
    return {
        "table": brief([row for tier in tiers for row in tier.rows]),
        "left_out": left_out or None,
        "page": str(comparison.out / PAGE),
        "record": str(comparison.out / RECORD),
        "seconds": seconds,
    }


def _record(tiers: list[Tier], left_out: dict[str, str], settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    grounds = [
        {
            "tier": tier.ground.tier,
            "data": tier.ground.data,
            "train_rows": len(tier.ground.train),
            "heldout_rows": len(tier.ground.heldout),
            "dimensions": tier.ground.train.shape[1],
            "matched_bits": [b if b == b else None for b in tier.ground.budgets],
            "pca_curve": [list(point) for point in tier.ground.pca],
        }
        for tier in tiers
    ]
    rows = record([row for tier in tiers for row in tier.rows])
    return {"settings": settings, "grounds": grounds, "left_out": left_out, "rows": rows, "seconds": seconds}
