"""Variants that pay for activity: a term whose weight sets how many latents fire."""

from __future__ import annotations

import math

from sae.config import SAEConfig
from sae.models.variants.base import Variant
from sae.modules import penalties  # noqa: F401  makes the terms known
from sae.modules.codes import Gated, JumpReLU, ReLU
from sae.modules.losses import Term

TANH_SCALE = 4.0
"""c of tanh(c f ||w||) (Conerly et al. 2025)."""
WINDOW_EVERY = 4
"""Of how many tokens one lists the wide window below its thresholds (see `JumpReLU`). With 1 a step costs 2.6 times
TopK's, with 4 1.4; on layer 9 of the demo model (1,024 latents, 291 steps) FVU was .286 with 1 and .289 with 4."""

RELU = Variant(
    code=lambda config, dim: ReLU(),
    terms=lambda config: [Term("squared_error"), _relu_penalty(config)],
    penalty=lambda config: config.penalty,
    reads=("penalty",),
)


def _relu_penalty(config: SAEConfig) -> Term:
    return Term("tanh", 1.0, {"scale": TANH_SCALE}) if config.penalty == "tanh" else Term("l1")


P_ANNEAL = Variant(
    code=lambda config, dim: ReLU(),
    terms=lambda config: [Term("squared_error"), Term("lp")],
    penalty=lambda config: "lp",
)

GATED = Variant(
    code=lambda config, dim: Gated(config.width),
    terms=lambda config: [Term("squared_error"), Term("gate_error"), Term("gate_l1")],
    penalty=lambda config: "gate_l1",
)


def _threshold(config: SAEConfig, dim: int) -> JumpReLU:
    """Thresholds as the recipe starts them.

    DeepMind's are stated for mean ||x||² = 1, ours is d: all lengths are sqrt(d) times as long, and so is a step of θ.
    Their window, 0.001, is for runs of many thousand steps. In hundreds it sees too few entries: on a world of 16
    features one seed of three ended at MCC .87, with 0.01 all at 1.00; on the demo task FVU was .166 against .161.
    """
    if config.recipe == "anthropic":
        return JumpReLU(config.width, config.bandwidth or 2.0, 0.1, through=True, every=WINDOW_EVERY)
    unit = math.sqrt(dim)
    return JumpReLU(config.width, config.bandwidth or 0.01 * unit, 0.001 * unit, rate=unit)


def _threshold_penalty(config: SAEConfig) -> Term:
    if config.recipe == "anthropic":
        return Term("tanh", 1.0, {"scale": TANH_SCALE})
    if config.recipe == "target":
        return Term("l0_target", config.sparsity or 1.0, {"target": config.l0_target or config.k})
    return Term("l0")


JUMPRELU = Variant(
    code=_threshold,
    terms=lambda config: [Term("squared_error"), _threshold_penalty(config)],
    penalty=lambda config: None if config.recipe == "target" else _threshold_penalty(config).name,
    reads=("recipe", "bandwidth"),
)
