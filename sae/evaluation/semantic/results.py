"""What `sae measure` leaves in a run: rows of numbers, each with its interval, beside the same number of controls.

for row in read_semantic("runs/demo"):
    print(row.measure, row.task, row.subject, row.k, row.value, row.low, row.high)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sae.base.files import CorruptError
from sae.base.tables import number
from sae.models.saved import read_report

RECORD = "semantic.json"
"""File in the run folder."""
SAE = "SAE"
"""`Row.subject` of the autoencoder itself; every other subject is a control."""

STAR = "differs from the SAE: the 95% interval of the paired difference leaves out 0"

_AUDIT = 'Chanin 2026, "Are Sparse Autoencoder Benchmarks Reliable?" (arXiv:2605.18229)'
CAVEATS: dict[str, str] = {
    "probing": "A probe on few latents tells which concepts have a latent of their own, not whether latents beat the "
    "full probe: on real tasks they rarely do (Kantamneni et al. 2025, arXiv:2502.16681). The texts are short and made "
    "from templates, but for the task of languages; scores of near variants differ less than by chance of the training "
    f"({_AUDIT}).",
    "absorption": "Absorption is counted on one task, first letters of words that are one token, and only for letters "
    "whose probe works; an absorbing latent is known by its atom's cosine with the probe, for whatever reason. "
    "A dictionary without latents for letters scores low without being better.",
    "scr": f"Do not rank autoencoders by SCR: {_AUDIT} finds it noisy and, with many latents, negatively correlated "
    "with the recovery of known features. Read it beside its controls, as a check of this one autoencoder.",
    "tpp": f"Do not rank autoencoders by TPP: {_AUDIT} finds that it falls while training goes on and that reseeding "
    "moves it as much as what is compared. Read it beside its controls, as a check of this one autoencoder.",
    "attributes": "Latents are chosen by their variance between the attribute's values, without the learnt masks of "
    "RAVEL (Huang et al. 2024, arXiv:2402.17700), at the last token of the name alone, on entities that this model "
    "knows: a lower bound of what its latents could do. 0.5 is what doing nothing scores, and swapping everything.",
}
"""Measure's family -> what must be read beside its numbers, in every table and page."""


class Row(NamedTuple):
    """One number of one subject, with 95% intervals over the held-out texts, words or entities."""

    measure: str
    """`family.number`, such as probing.accuracy or absorption.fraction; families are the keys of `CAVEATS`."""
    task: str
    """What is told apart, removed or moved: language, first_letter, country, ..."""
    subject: str
    """`SAE`, or the control's name."""
    k: int | None
    """Latents (channels, components) that were used; of a control that always uses all it has, those of the SAE that it
    is compared with; None where the measure chooses none."""
    value: float
    low: float | None
    """None, like `high`, where the spread is unknown."""
    high: float | None
    difference: float | None
    """This subject's value less the SAE's, on the same texts; None for the SAE."""
    difference_low: float | None
    """Of the paired difference's interval."""
    difference_high: float | None
    n: int
    """Held-out units (texts, words, pairs) behind the number."""
    caveat: str
    """The family's, from `CAVEATS`."""

    @property
    def family(self) -> str:
        """probing, absorption, scr, tpp or attributes."""
        return self.measure.partition(".")[0]


def rows_of(report: Mapping[str, Any], where: str = RECORD) -> list[Row]:
    """The rows of a report, as `sae.measure` returns it.

    Raises:
        CorruptError: it is no such report.
    """
    try:
        rows = [Row(**row) for row in report["rows"]]
    except (KeyError, TypeError) as error:
        raise CorruptError(f"{where}: expected rows of {', '.join(Row._fields)} ({error!r})") from error
    if unknown := sorted({row.family for row in rows} - set(CAVEATS)):
        raise CorruptError(f"{where}: measures {', '.join(unknown)} are unknown (known: {', '.join(CAVEATS)})")
    return rows


def read_semantic(run: str | Path) -> list[Row]:
    """The rows that `sae measure` left in a run folder; none where it was not measured.

    Raises:
        CorruptError: the file is damaged, edited by hand, or of other weights.
    """
    folder = Path(run)
    return rows_of(read_report(folder, RECORD), str(folder / RECORD)) if (folder / RECORD).is_file() else []


def caveats_of(rows: Iterable[Row]) -> dict[str, str]:
    """Family -> caveat, of the families that occur, in the order of `CAVEATS`."""
    present = {row.family for row in rows}
    return {family: text for family, text in CAVEATS.items() if family in present}


def readable(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report as it is printed: one table a measure, subjects side by side, caveats underneath."""
    rows = rows_of(report)
    subjects = list(dict.fromkeys(row.subject for row in rows))
    tables: dict[str, Any] = {}
    for measure in dict.fromkeys(row.measure for row in rows):
        lines: dict[tuple[str, int | None], dict[str, Any]] = {}
        for row in (row for row in rows if row.measure == measure):
            line = lines.setdefault((row.task, row.k), {measure: row.task, "k": row.k, "n": row.n})
            line[row.subject] = cell(row)
        present = [subject for subject in subjects if any(subject in line for line in lines.values())]
        tables[measure] = [
            {**{name: line[name] for name in (measure, "k", "n")}, **{name: line.get(name, "-") for name in present}}
            for line in lines.values()
        ]
    seconds = {family: measured["seconds"] for family, measured in report["measured"].items()}
    others = {"site": report["site"], "seconds": seconds, "left out": report["left_out"], "*": STAR}
    return {"run": report["run"], **tables, **others, **caveats_of(rows)}


def cell(row: Row) -> str:
    """A value with half the width of its interval; * where it differs from the SAE's surely."""
    if math.isnan(row.value):
        return "-"
    spread = "" if row.low is None or row.high is None else f" ±{(row.high - row.low) / 2:.1g}"
    return f"{number(round(row.value, 3))}{spread}{'*' if differs(row) else ''}"


def differs(row: Row) -> bool:
    """Whether the interval of a control's paired difference from the SAE leaves out zero."""
    low, high = row.difference_low, row.difference_high
    return low is not None and high is not None and (low > 0 or high < 0)
