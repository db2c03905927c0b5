"""What the page shows of one latent, as JSON values: the server answers with it, an exported page holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sae.browser.opened import BrowsedRun, View
from sae.evaluation.matching.scores import Scores
from sae.features.store.annotations import EMPTY
from sae.features.store.keys import FeatureError
from sae.features.store.related import coactive

MATCHES = 3  # nearest latents shown of another run


def full_record(view: View, latent: int) -> dict[str, Any]:
    """A latent's record with its row of the table, its explanation and its scores, its annotation and its steering."""
    record = view.store.record(latent)
    return {
        **record,
        "examples": [_shown(example) for example in record["examples"]],
        "row": view.listing.row(latent, view.marks),
        "explanation": view.marks.names.get(latent),
        "annotation": EMPTY | view.marks.notes.get(latent, {}),
        "steering": view.marks.steering.get(latent),
        "scores": view.marks.scores.get(latent),
        "stability": None if view.scores is None else stability(view.scores, latent),
    }


def stability(scores: Scores, latent: int) -> dict[str, Any]:
    """A latent's stability with what it rests on: its best match in every other run, and what chance gives.

    A latent's page finds the other run among the opened ones by its "weights".
    """
    runs = [
        {
            "name": Path(run["name"]).name,
            "weights": run["weights"],
            "latent": int(scores.nearest[place, latent]) if scores.nearest[place, latent] >= 0 else None,
            "cosine": _known(scores.cosine[place, latent]),
            "correlation": _known(scores.correlation[place, latent]),
        }
        for place, run in enumerate(scores.info["runs"])
    ]
    known = scores.stability[np.isfinite(scores.stability)]
    score = _known(scores.stability[latent])
    return {
        "score": score,
        "activity": _known(scores.activity[latent]),
        "below": None if score is None else float((known < scores.stability[latent]).mean()),
        **{name: scores.info[name] for name in ("by", "chance", "chance_mean", "tokens")},
        "runs": runs,
    }


def _known(value: Any) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _shown(example: dict[str, Any]) -> dict[str, Any]:
    """An example as the page shows it; a window has 255 levels, so four digits suffice."""
    values = [float(f"{value:.4g}") if value else 0 for value in example["values"]]
    return {**{name: value for name, value in example.items() if name != "key"}, "values": values}


def brief(view: View, latent: int) -> dict[str, Any]:
    """What a link to a latent shows."""
    row = view.listing.row(latent, view.marks)
    return {name: row[name] for name in ("latent", "token", "density", "max", "name", "label")}


def with_briefs(view: View, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items that name a latent, each with what a link to it shows."""
    return [{**item, **brief(view, item["latent"])} for item in items]


def exported_record(view: View, latent: int) -> dict[str, Any]:
    """Everything that the page of one latent asks the server for."""
    try:
        logits = view.store.logits(latent)
    except FeatureError:  # no unembedding reads atoms of this site
        logits = None
    return {
        "record": full_record(view, latent),
        "logits": logits,
        "neighbours": with_briefs(view, view.store.neighbours(latent)),
        "coactive": with_briefs(view, coactive(view.store, latent)),
    }


def match(run: BrowsedRun, latent: int, index: int, other: BrowsedRun) -> dict[str, Any]:
    """The latents of another run whose atoms have the largest cosine with this latent's atom."""
    answer: dict[str, Any] = {"run": index, "name": other.name, "latents": [], "reason": None}
    try:
        view = other.view()
    except FeatureError as error:
        return {**answer, "reason": str(error)}
    here = run.view()
    if view.store.info["kind"] != here.store.info["kind"]:
        return {**answer, "reason": "it reads something else: one of the two runs is on images"}
    mine, theirs = here.store.lens.atoms()[latent], view.store.lens.atoms()
    if len(mine) != theirs.shape[1]:
        return {**answer, "reason": f"its atoms have {theirs.shape[1]} dimensions, these {len(mine)}"}
    nearest = (theirs @ mine).topk(min(MATCHES, len(theirs)))
    pairs = zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True)
    return {**answer, "latents": [{"cosine": cosine, **brief(view, i)} for i, cosine in pairs]}
