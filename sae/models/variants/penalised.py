"""Variants with a penalty on activity, whose weight sets how many latents fire."""

from __future__ import annotations

import math
from typing import Any

from sae.config.variants import JumpReLUSettings, PenaltySettings, ReLUSettings
from sae.models.variants.base import Variant
from sae.modules import penalties  # noqa: F401  makes the terms known
from sae.modules.codes import Gated, JumpReLU, ReLU
from sae.modules.losses import Term

TANH_SCALE = 4.0
"""c of tanh(c f ||w||) (Conerly et al. 2025)."""
WINDOW_EVERY = 4
"""One token in so many lists the wide window below its thresholds (see `JumpReLU`). With 1 a step takes 2.6 times as
long as TopK's, with 4 1.4 times; on layer 9 of the demo model (1,024 latents, 291 steps) FVU was .286 and .289."""

RELU: Variant[ReLUSettings] = Variant(
    code=lambda config, dim: ReLU(),
    terms=lambda config: [Term("squared_error"), _relu_penalty(config)],
    penalty=lambda config: config.penalty,
)


def _relu_penalty(config: ReLUSettings) -> Term:
    return Term("tanh", 1.0, {"scale": TANH_SCALE}) if config.penalty == "tanh" else Term("l1")


P_ANNEAL: Variant[PenaltySettings] = Variant(
    code=lambda config, dim: ReLU(),
    terms=lambda config: [Term("squared_error"), Term("lp")],
    penalty=lambda config: "lp",
)

GATED: Variant[PenaltySettings] = Variant(
    code=lambda config, dim: Gated(config.width),
    terms=lambda config: [Term("squared_error"), Term("gate_error"), Term("gate_l1")],
    penalty=lambda config: "gate_l1",
)


def _threshold(config: JumpReLUSettings, dim: int) -> JumpReLU:
    """Thresholds with the recipe's initial values.

    DeepMind's are stated for mean ||x||² = 1, ours is d: all lengths are sqrt(d) times as long, and so is a step of θ.
    Their window, 0.001, is for runs of many thousand steps. In a few hundred steps it contains too few entries: on a
    synthetic world of 16 features one seed of three ended at MCC .87, with 0.01 all at 1.00; on the demo task FVU was
    .166 against .161.
    """
    if config.recipe == "anthropic":
        return JumpReLU(config.width, config.bandwidth or 2.0, 0.1, through=True, every=WINDOW_EVERY)
    unit = math.sqrt(dim)
    return JumpReLU(config.width, config.bandwidth or 0.01 * unit, 0.001 * unit, rate=unit)


def _threshold_penalty(config: JumpReLUSettings) -> Term:
    if config.recipe == "anthropic":
        return Term("tanh", 1.0, {"scale": TANH_SCALE})
    if config.recipe == "target":
        return Term("l0_target", config.sparsity or 1.0, {"target": config.l0_target or config.k})
    return Term("l0")


JUMPRELU: Variant[JumpReLUSettings] = Variant(
    code=_threshold,
    terms=lambda config: [Term("squared_error"), _threshold_penalty(config)],
    penalty=lambda config: None if config.recipe == "target" else _threshold_penalty(config).name,
)

PENALISED: dict[str, Variant[Any]] = {
    "relu": RELU,
    "p_anneal": P_ANNEAL,
    "gated": GATED,
    "jumprelu": JUMPRELU,
}
