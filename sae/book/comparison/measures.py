"""Everything the table says of one trained model, or of a control, on one ground.

found = measure(coder, ground)
found.values["fvu"], found.curve, found.importance
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.book.chapter.measure import fvu
from sae.book.comparison.coders import Coder
from sae.book.comparison.grounds import Ground
from sae.book.measures.disentanglement import disentanglement
from sae.book.measures.rate import rate_distortion, stack
from sae.book.measures.rate_curve import RatePoint, bits_at, fvu_at
from sae.evaluation.probing import full_probe, probing_task, sparse_probe
from sae.evaluation.synthetic.metrics import match

SLACK = 0.01  # share of the variance that quantisation may cost where the bits of a code are named
PROBED = (1, 5, 16)  # latents
CHUNK = 4096
COLUMNS_OF_CODES = (
    *("fvu", "bits", "fvu_low", "fvu_high", "native_bits", "l0", "dead", "active", "parameters", "seconds", "mcc"),
    *("disentanglement", "completeness", "informativeness", "modularity", "mig"),
    *("probe_full", *(f"probe_{k}" for k in PROBED)),
)
"""Names of what is measured of one seed."""


class Measured(NamedTuple):
    """One model of one seed. All of it is JSON values, so that a finished one is kept."""

    values: dict[str, float | None]
    """Column of the table -> its value; None where it has no meaning here."""
    curve: list[list[float]]
    """Rate and distortion: [step, bits, FVU, L0, unseen] a point."""
    rates: list[float]
    """Share of held-out rows in which each latent is not at its resting value, [F]."""
    importance: list[list[float]]
    """DCI's, of live latents, [L][K]; empty without factors."""

    @property
    def points(self) -> list[RatePoint]:
        """The curve as it was measured."""
        return [RatePoint(*point) for point in self.curve]


def measure(coder: Coder, ground: Ground, *, seed: int = 0) -> Measured:
    """Measure one code; `seed` is of the trees and the draws of the measures."""
    with torch.no_grad():
        train, held = coder.encode(ground.train), coder.encode(ground.heldout)
        x_hat = torch.cat([coder.decode(part) for part in held.split(CHUNK)])
    moves = held.amax(0) > held.amin(0)
    own = fvu(ground.heldout, x_hat.float())
    curve = rate_distortion(stack(train.split(CHUNK)), stack(held.split(CHUNK)), ground.heldout, coder.decode,
                            gain=coder.gain)  # fmt: skip
    values: dict[str, float | None] = {
        "fvu": own,
        "bits": _finite(bits_at(curve, own + SLACK)),
        "fvu_low": _finite(fvu_at(curve, ground.budgets[0])),
        "fvu_high": _finite(fvu_at(curve, ground.budgets[1])),
        "native_bits": None if coder.native_bits is None else coder.native_bits(ground.heldout),
        "l0": (held != 0).sum(1).double().mean().item(),
        "dead": 1 - moves.double().mean().item(),
        "active": float(moves.sum() if coder.active is None else coder.active(ground.heldout)),
        "parameters": float(coder.parameters),
        "seconds": coder.seconds,
        "mcc": _mcc(coder, ground),
    }
    scores, importance = _disentangled(held, ground, seed)
    rates = (held != 0).double().mean(0)
    return Measured(
        values | scores | _probed(train, held, ground),
        [list(point) for point in curve],
        rates.tolist(),
        importance,
    )


def _mcc(coder: Coder, ground: Ground) -> float | None:
    """Mean |cos| to the true atoms, each of which has its own latent; one without counts as 0."""
    if ground.atoms is None or coder.atoms is None:
        return None
    return match(coder.atoms, ground.atoms).cosines.abs().sum().item() / len(ground.atoms)


def _disentangled(held: Tensor, ground: Ground, seed: int) -> tuple[dict[str, float | None], list[list[float]]]:
    names = ("disentanglement", "completeness", "informativeness", "modularity", "mig")
    if ground.known is None:
        return dict.fromkeys(names), []
    codes = held[: len(ground.known.values)]
    # one kind of trees for all, dense or sparse: values of two kinds differ
    found = disentanglement(codes, ground.known.values, trees="extra", seed=seed)
    live = (codes.amax(0) > codes.amin(0)).numpy()
    return {name: getattr(found, name) for name in names}, found.importance[live].tolist()


def _probed(train: Tensor, held: Tensor, ground: Ground) -> dict[str, float | None]:
    names = ["probe_full", *(f"probe_{k}" for k in PROBED)]
    if ground.labels is None or not (train.amax(0) > train.amin(0)).any():
        return dict.fromkeys(names)
    task = probing_task(train, ground.labels[0], held, ground.labels[1])
    few: dict[str, Any] = {
        f"probe_{k}": sparse_probe(task, k).accuracy if k <= train.shape[1] else None for k in PROBED
    }
    return {"probe_full": full_probe(task), **few}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
