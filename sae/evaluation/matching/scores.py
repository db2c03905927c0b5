"""A stability score for every latent, kept beside the run's features in `stability.npz`.

scores = stability_of(place, pairs, ...)
write_scores(folder, scores)
read_scores(folder, weights)             # None where there are none of these weights
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae.base.files import CorruptError
from sae.base.npz import read_arrays, write_arrays
from sae.evaluation.matching.assignment import Nearest
from sae.evaluation.synthetic.metrics import RECOVERED

FILE = "stability.npz"
FORMAT = 1
ARRAYS = ("stability", "nearest", "cosine", "correlation", "activity")


class Scores(NamedTuple):
    """How stable the F latents of one run are over R other runs."""

    stability: np.ndarray
    """Mean over the other runs of the latent's best match there: the largest |cosine| of its atom with an atom of that
    run or, where atoms cannot be compared, the largest |correlation| of its activations; float32 [F], from 0 to 1. NaN
    for a latent that never fired on the tokens compared, whose atom says nothing."""
    nearest: np.ndarray
    """The best match in every other run, int32 [R, F]; -1 for a latent without one."""
    cosine: np.ndarray
    """Signed cosine with the best match, float32 [R, F]; NaN where atoms cannot be compared."""
    correlation: np.ndarray
    """Signed, of the latent's activations with those of the latent they correlate with most, float32 [R, F]; NaN where
    activations were not compared."""
    activity: np.ndarray
    """Mean over the other runs of the largest |correlation|, float32 [F]: the score by activations; NaN likewise."""
    info: dict[str, Any]
    """JSON values: "weights" (SHA-256 of the run's), "runs" (name, folder and weights of the others), "chance" (what
    19 in 20 latents stay below by chance), "chance_mean", "by" (atoms or activations), "tokens"."""


class Against(NamedTuple):
    """What one other run gives for the latents of this one."""

    name: str
    folder: str
    weights: str
    latents: Tensor
    """Numbers of this run's latents that took part, int64 [n]; the same against every run."""
    others: Tensor
    """Numbers of the other run's latents that took part, int64 [m]."""
    atoms: Nearest | None
    """By place among `latents` and `others`."""
    activations: Nearest | None
    chance: Tensor
    """Largest |similarity| of each of `latents` to a random dictionary (to permuted activations) [n]."""


def stability_of(width: int, weights: str, against: list[Against], tokens: int) -> Scores:
    """The scores of a run of `width` latents; see `Scores`. Runs that cannot be compared at all are to be left out."""
    shape = (len(against), width)
    best, nearest = np.full(shape, np.nan, np.float32), np.full(shape, -1, np.int32)
    cosine, correlation = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    for place, other in enumerate(against):
        latents = other.latents.numpy()
        match = other.atoms or other.activations
        assert match is not None, "a run that cannot be compared is left out"
        best[place, latents] = match.strength.numpy()
        nearest[place, latents] = other.others[match.index].numpy()
        if other.atoms is not None:
            cosine[place, latents] = other.atoms.similarity.numpy()
        if other.activations is not None:
            correlation[place, latents] = other.activations.similarity.numpy()
    chance = torch.stack([other.chance for other in against]).double().mean(0).numpy()
    return Scores(
        best.mean(0),
        nearest,
        cosine,
        correlation,
        np.abs(correlation).mean(0),
        {
            "weights": weights,
            "runs": [{name: getattr(o, name) for name in ("name", "folder", "weights")} for o in against],
            "by": "atoms" if all(other.atoms is not None for other in against) else "activations",
            "chance": round(float(np.quantile(chance, 0.95)), 4),
            "chance_mean": round(float(chance.mean()), 4),
            "tokens": tokens,
        },
    )


def summary(scores: Scores) -> dict[str, Any]:
    """JSON values: how many latents have a score, its mean, quartiles, and the shares over 0.9 and over chance."""
    known = scores.stability[np.isfinite(scores.stability)].astype(float)
    low, median, high = np.quantile(known, [0.25, 0.5, 0.75])
    return {
        "latents": len(scores.stability),
        "compared": len(known),
        "mean": float(known.mean()),
        "quartiles": [float(low), float(median), float(high)],
        "over_0.9": float((known > RECOVERED).mean()),
        "over_chance": float((known > scores.info["chance"]).mean()),
        "chance": scores.info["chance"],
        "chance_mean": scores.info["chance_mean"],
    }


def write_scores(folder: Path, scores: Scores) -> None:
    """Write `stability.npz` into a run folder, replacing an earlier one."""
    arrays = {name: getattr(scores, name) for name in ARRAYS}
    write_arrays(folder / FILE, {"format": FORMAT, **scores.info}, arrays)


def read_scores(folder: Path, weights: str) -> Scores | None:
    """The scores of a run with these weights (SHA-256); None where there are none, or they are of other weights.

    Raises:
        CorruptError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    remedy = "it can be deleted: sae match writes it anew"
    info, arrays = read_arrays(path, remedy)
    if info.get("format") != FORMAT:
        raise CorruptError(f"{path}: not the format that this version reads, {FORMAT}; {remedy}")
    if set(arrays) != set(ARRAYS):
        raise CorruptError(f"{path}: holds {', '.join(sorted(arrays))}, expected {', '.join(ARRAYS)}; {remedy}")
    runs, width = len(info["runs"]), len(arrays["stability"])
    if any(a.shape != ((width,) if name in ("stability", "activity") else (runs, width)) for name, a in arrays.items()):
        raise CorruptError(f"{path}: arrays of different shapes; {remedy}")
    return Scores(**arrays, info=info) if info["weights"] == weights else None
