"""Variants that keep a number of latents: of a token, of a batch, in nested dictionaries, along a residual."""

from __future__ import annotations

from sae.config import SAEConfig
from sae.models.variants.base import Variant
from sae.modules import penalties  # noqa: F401  makes the terms known
from sae.modules.codes import BatchTopK, MatchingPursuit, TopK
from sae.modules.losses import Term

TOPK = Variant(
    code=lambda config, dim: TopK(config.k),
    terms=lambda config: [Term("squared_error")],
)

BATCHTOPK = Variant(
    code=lambda config, dim: BatchTopK(config.k),
    terms=lambda config: [Term("squared_error")],
)


def prefixes(config: SAEConfig) -> list[int]:
    """Nested dictionary sizes: the width halved `groups` - 1 times (Bussmann et al. 2025, section 4), rising."""
    return sorted({max(1, config.width >> halvings) for halvings in range(config.groups)})


MATRYOSHKA = Variant(
    code=lambda config, dim: BatchTopK(config.k),
    terms=lambda config: [Term("nested_error", 1.0, {"prefixes": prefixes(config)})],
    reads=("groups",),
)

# two levels, and a contrast between neighbours on the upper one (Bhalla et al. 2025)
TEMPORAL = Variant(
    code=lambda config, dim: BatchTopK(config.k),
    terms=lambda config: [
        Term("nested_error", 1.0, {"prefixes": [upper(config), config.width]}),
        Term("contrast", config.contrast, {"latents": upper(config), "temperature": 0.1}),
    ],
    neighbours=True,
    reads=("contrast",),
)


def upper(config: SAEConfig) -> int:
    """Latents that a temporal autoencoder keeps alike between neighbours: a fifth."""
    return max(1, config.width // 5)


MATCHING_PURSUIT = Variant(
    code=lambda config, dim: MatchingPursuit(config.k),
    terms=lambda config: [Term("squared_error")],
    revival="resample",
)
