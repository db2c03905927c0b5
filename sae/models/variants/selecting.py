"""Variants that keep k latents: of a token, of the average token, in nested dictionaries, along a residual."""

from __future__ import annotations

import dataclasses
from typing import Any

from sae.config.variants import MatryoshkaSettings, SelectingSettings, SparseSettings, TemporalSettings
from sae.models.variants.base import Variant
from sae.modules import penalties  # noqa: F401  makes the terms known
from sae.modules.codes import BatchTopK, MatchingPursuit, TopK
from sae.modules.losses import Term

TOPK: Variant[SelectingSettings] = Variant(
    code=lambda config, dim: TopK(config.k),
    terms=lambda config: [Term("squared_error")],
)

BATCHTOPK: Variant[SelectingSettings] = Variant(
    code=lambda config, dim: BatchTopK(config.k),
    terms=lambda config: [Term("squared_error")],
)


def prefixes(config: MatryoshkaSettings) -> list[int]:
    """Nested dictionary sizes: the width halved `groups` - 1 times (Bussmann et al. 2025, section 4), rising."""
    return sorted({max(1, config.width >> halvings) for halvings in range(config.groups)})


MATRYOSHKA: Variant[MatryoshkaSettings] = Variant(
    code=lambda config, dim: BatchTopK(config.k),
    terms=lambda config: [Term("nested_error", 1.0, {"prefixes": prefixes(config)})],
)

# two levels, and a contrast between neighbours on the upper one (Bhalla et al. 2025)
TEMPORAL: Variant[TemporalSettings] = Variant(
    code=lambda config, dim: BatchTopK(config.k),
    terms=lambda config: [
        Term("nested_error", 1.0, {"prefixes": [upper(config), config.width]}),
        Term("contrast", config.contrast, {"latents": upper(config), "temperature": 0.1}),
    ],
    neighbours=True,
)


def upper(config: SparseSettings) -> int:
    """Number of latents that a temporal autoencoder keeps alike between neighbours: a fifth."""
    return max(1, config.width // 5)


MATCHING_PURSUIT: Variant[SelectingSettings] = Variant(
    code=lambda config, dim: MatchingPursuit(config.k),
    terms=lambda config: [Term("squared_error")],
    revival="resample",
)

SELECTING: dict[str, Variant[Any]] = {
    "topk": TOPK,
    "batchtopk": BATCHTOPK,
    "matryoshka": MATRYOSHKA,
    "matching_pursuit": MATCHING_PURSUIT,
    "temporal": TEMPORAL,
    "transcoder": dataclasses.replace(TOPK, base="topk", transcodes=True),
    # beside the linear map fewer than k of a token's pre-activations are positive: k of the average token are
    "skip_transcoder": dataclasses.replace(BATCHTOPK, base="batchtopk", transcodes=True, skip=True),
    "crosscoder": dataclasses.replace(BATCHTOPK, base="batchtopk", several_sites=True),
}
