"""One table over all tiers: means over seeds with their intervals.

rows = [Row("pixels", "topk-w64-k8", "topk", [seed_0, seed_1])]
table(rows)[0]["FVU"]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sae.base.tables import number
from sae.book.chapter.measure import Spread, over_seeds, plain
from sae.book.comparison.measures import COLUMNS, Measured
from sae.evaluation.bootstrap import Interval
from sae.evaluation.stability import over_pairs


class Row(NamedTuple):
    """One model or control, all seeds."""

    tier: str
    data: str
    name: str
    family: str
    """The variant, or PCA or control."""
    seeds: Sequence[Measured]
    """One for every seed; a code without a seed has one."""
    stability: Sequence[float] = ()
    """Cosine of the dictionaries of every pair of seeds; none for a single seed."""
    settings: dict[str, Any] | None = None
    """Settings of a trained model."""

    def spread(self, measure: str) -> Spread | None:
        """Mean over seeds with its interval; None if a seed has no such value."""
        if measure == "stability":
            return over_pairs(self.stability) if self.stability else None
        values = [seed.values.get(measure) for seed in self.seeds]
        present = [value for value in values if value is not None]
        return over_seeds(present) if values and len(present) == len(values) else None


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows for readers, by the columns' headings; means with their intervals."""
    return [
        {"tier": row.tier, "model": row.name, **{head: plain(row.spread(name)) for name, head in COLUMNS.items()}}
        for row in rows
    ]


BRIEF = ("fvu", "bits", "fvu_low", "l0", "dead", "disentanglement", "modularity", "mcc", "probe_5", "stability")
"""Measures shown in the terminal; the page and the record have all."""


def brief(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The table for a terminal: mean ± half its interval."""

    def shown(value: Spread | None) -> str:
        if isinstance(value, Interval):
            return f"{value.value:.3g} ± {value.high - value.value:.2g}"
        return number(value)

    return [
        {"tier": row.tier, "model": row.name, **{COLUMNS[name]: shown(row.spread(name)) for name in BRIEF}}
        for row in rows
    ]


def record(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All measures as JSON values: means, and those of every seed."""
    return [
        {
            "tier": row.tier,
            "data": row.data,
            "model": row.name,
            "family": row.family,
            "settings": row.settings,
            "means": {name: plain(row.spread(name)) for name in COLUMNS},
            "seeds": [seed.values for seed in row.seeds],
            "curves": [seed.curve for seed in row.seeds],
            "firing_rates": [seed.rates for seed in row.seeds],
            "stability_by_pair": list(row.stability),
        }
        for row in rows
    ]
