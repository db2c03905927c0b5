"""All measures of one trained model, or of a control, on one ground; and one table over all tiers, means over seeds.

measured = measure(coder, ground)
measured.values["fvu"], measured.curve, measured.importance
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.base.tables import number
from sae.book.chapter.measure import Spread, fvu, over_seeds
from sae.book.comparison.coders import Coder
from sae.book.comparison.grounds import Ground
from sae.book.measures.disentanglement import disentanglement, live_latents
from sae.book.measures.rate import bits_at, fvu_at, rate_distortion
from sae.evaluation.bootstrap import Interval, plain
from sae.evaluation.probing import ProbingTask, full_probe, probing_task, sparse_probe
from sae.evaluation.stability import over_pairs
from sae.evaluation.synthetic.metrics import match

SLACK = 0.01  # share of the variance that quantisation may cost at the bits reported for a code
PROBED = (1, 5, 16)  # latents
CHUNK = 4096
DISENTANGLEMENT = ("disentanglement", "completeness", "informativeness", "modularity", "mig")
COLUMNS = {
    "fvu": "FVU",
    "bits": "bits",
    "fvu_low": "FVU at low rate",
    "fvu_high": "FVU at high rate",
    "native_bits": "native bits",
    "l0": "L0",
    "dead": "dead",
    "active": "active",
    "disentanglement": "DCI-D",
    "modularity": "modularity",
    "completeness": "DCI-C",
    "informativeness": "DCI-I",
    "mig": "MIG",
    "mcc": "MCC",
    **{f"probe_{k}": f"probe, {k}" for k in PROBED},
    "probe_full": "probe, all",
    "stability": "seeds' cosine",
    "parameters": "parameters",
    "seconds": "s / epoch",
}
"""Measure -> heading in the table; of the measures of disentanglement, the two that do not punish overcomplete codes
come first."""
NOTHING: dict[str, float | None] = {name: None for name in COLUMNS if name != "stability"}
"""The measures of one seed, none of them taken."""


class Measured(NamedTuple):
    """The measures of one model and seed, all of them JSON values, to be saved."""

    values: dict[str, float | None]
    """Column of the table -> its value; None if it does not apply."""
    curve: list[list[float]]
    """Rate and distortion: [step, bits, FVU, L0, unseen] a point."""
    rates: list[float]
    """Share of held-out rows in which each latent is not at its resting value, [F]."""
    importance: list[list[float]]
    """DCI's, of live latents, [L][K]; empty without factors."""


def measure(coder: Coder, ground: Ground, *, seed: int = 0) -> Measured:
    """Measure one code; `seed` is of the trees and the draws of the measures."""
    with torch.no_grad():
        train, heldout = coder.encode(ground.train), coder.encode(ground.heldout)
        x_hat = torch.cat([coder.decode(part) for part in heldout.split(CHUNK)])
    moves = heldout.amax(0) > heldout.amin(0)
    error = fvu(ground.heldout, x_hat.float())
    curve = rate_distortion(train, heldout, ground.heldout, coder.decode, gain=coder.gain)
    values: dict[str, float | None] = NOTHING | {
        "fvu": error,
        "bits": _finite(bits_at(curve, error + SLACK)),
        "fvu_low": _finite(fvu_at(curve, ground.budgets[0])),
        "fvu_high": _finite(fvu_at(curve, ground.budgets[1])),
        "native_bits": None if coder.native_bits is None else coder.native_bits(ground.heldout),
        "l0": (heldout != 0).sum(1).double().mean().item(),
        "dead": 1 - moves.double().mean().item(),
        "active": float(moves.sum() if coder.active is None else coder.active(ground.heldout)),
        "parameters": float(coder.parameters),
        "seconds": coder.seconds,
        "mcc": _mcc(coder, ground),
    }
    scores, importance = _disentangled(heldout, ground, seed)
    rates = (heldout != 0).double().mean(0)
    values |= scores | _probed(train, heldout, ground)
    return Measured(values, [list(point) for point in curve], rates.tolist(), importance)


def _mcc(coder: Coder, ground: Ground) -> float | None:
    """Mean |cos| to the true atoms of latents matched one to one; an atom without a latent counts as 0."""
    if ground.atoms is None or coder.atoms is None:
        return None
    return match(coder.atoms, ground.atoms).cosines.abs().sum().item() / len(ground.atoms)


def _disentangled(heldout: Tensor, ground: Ground, seed: int) -> tuple[dict[str, float], list[list[float]]]:
    if ground.known is None:
        return {}, []
    codes = heldout[: len(ground.known.values)]
    # one kind of trees for all codes, dense or sparse: values of the two kinds differ
    scores = disentanglement(codes, ground.known.values, trees="extra", seed=seed)
    values = {name: getattr(scores, name) for name in DISENTANGLEMENT}
    return values, scores.importance[live_latents(codes)].tolist()


def _probed(train: Tensor, heldout: Tensor, ground: Ground) -> dict[str, float | None]:
    if ground.labels is None or not (train.amax(0) > train.amin(0)).any():
        return {}
    task = probing_task(train, ground.labels[0], heldout, ground.labels[1])
    return {"probe_full": full_probe(task), **sparse_probes(task, train.shape[1])}


def sparse_probes(task: ProbingTask, width: int) -> dict[str, float | None]:
    """Accuracies of probes on few latents, by column; None for more latents than the code's width."""
    return {f"probe_{k}": sparse_probe(task, k) if k <= width else None for k in PROBED}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
