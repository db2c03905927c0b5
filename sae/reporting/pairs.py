"""Several runs in pairs: differences on the same documents, and ranks as far as the data tell them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

from sae.evaluation.paired import LEVEL, Estimate, holm, less, over_replicates, rank_ranges
from sae.evaluation.replicates import Replicate
from sae.pictures.ranges import draw_ranges
from sae.reporting.figures import IllustratedPage
from sae.reporting.subjects import Subject

TITLE = "Runs compared in pairs"
NUMBERS: dict[str, tuple[str, Literal[-1, 1]]] = {
    "fvu": ("FVU", -1),
    "cosine": ("cosine", 1),
    "downstream.delta_ce": ("delta CE", -1),
}
"""Number that is compared -> its name, and the sign of the better direction."""


def pairs(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """A table of ranks, and differences of every two runs with their intervals."""
    if len(subjects) < 2:
        return
    alike = {key: of for key in NUMBERS if len(of := _on_the_same_documents(subjects, key)) > 1}
    if not alike:
        page.leave_out(TITLE, "sae eval RUN, for every run with the same --tokens, --dataset and --seed")
        return
    page.section(
        TITLE,
        "The runs below were evaluated on the same documents, so what the documents do to all of them cancels in the "
        "difference. A rank is a range where the data leave it open: ranks are 95% together, over all pairs (Holm). "
        "They are about these runs: another seed of the same settings may differ as much (see sae match).",
    )
    ranks: dict[str, dict[str, Any]] = {}
    for key, of in alike.items():
        name, better = NUMBERS[key]
        for subject, rank in zip(of, rank_ranges(list(of.values()), better=better), strict=True):
            ranks.setdefault(subject.name, {"run": subject.name})[f"rank by {name}"] = str(rank)
    heads = ["run", *(f"rank by {NUMBERS[key][0]}" for key in alike)]
    page.table([{head: row.get(head) for head in heads} for row in ranks.values()])
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    rows = []
    for key, of in alike.items():
        name, better = NUMBERS[key]
        places = list(itertools.combinations(of, 2))
        differences = [less(of[first], of[second]) for first, second in places]
        for (first, second), difference, p in zip(
            places, differences, holm([d.p_value() for d in differences]), strict=True
        ):
            interval = difference.interval().to_json()
            pair = f"{first.name} less {second.name}"
            panels.setdefault(name, {}).setdefault("difference", {})[pair] = interval
            winner = first if better * difference.value > 0 else second
            verdict = f"{winner.name} is better" if p <= LEVEL else "not told apart"
            rows.append({"pair": pair, "number": name, "difference": interval, "p (Holm)": p, "verdict": verdict})
    for key in alike:
        name, better = NUMBERS[key]
        page.illustrate(
            f"pairs_{name.replace(' ', '_')}",
            draw_ranges({"": panels[name]}, x=f"Difference in {name}"),
            f"The difference in {name} of every two runs on the same documents, with its 95% interval; one that covers "
            f"0 does not tell the two apart. {'Left' if better < 0 else 'Right'} of 0 the first is better.",
        )
    page.table(rows)


def _on_the_same_documents(subjects: Sequence[Subject], key: str) -> dict[Subject, Estimate]:
    """The largest group of runs whose numbers are over resamples of the same documents."""
    groups: dict[str, dict[Subject, Estimate]] = {}
    for subject in subjects:
        if (replicate := subject.replicates.get(key)) is not None:
            groups.setdefault(replicate.documents, {})[subject] = _estimate(replicate)
    return max(groups.values(), key=len, default={})


def _estimate(replicate: Replicate) -> Estimate:
    """One training, so that its seed says nothing of the spread over seeds."""
    return over_replicates([replicate.value], [replicate.draws], (), factor=replicate.factor, groups=replicate.groups)
