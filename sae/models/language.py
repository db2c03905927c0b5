"""The table of variants for language-model activations: each is a code and a list of weighted loss terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sae.config import SAEConfig, unknown_choice
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import Code, TopK


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table."""

    code: Callable[[SAEConfig], Code]
    """Builds the code from the settings."""
    terms: Callable[[SAEConfig], Mapping[str, float]]
    """Weights of the loss terms, by their names in `sae.modules.losses.TERMS`."""


VARIANTS: dict[str, Variant] = {
    "topk": Variant(
        code=lambda config: TopK(config.k),
        terms=lambda config: {"squared_error": 1.0, **({"auxk": config.auxk_weight} if config.auxk_weight else {})},
    ),
}


def find_variant(name: str) -> Variant:
    """The table's row of that name.

    Raises:
        ConfigError: there is none; lists those that exist.
    """
    if name not in VARIANTS:
        raise unknown_choice("--variant", name, VARIANTS)
    return VARIANTS[name]


def build(config: SAEConfig, dim: int) -> Autoencoder:
    """An uninitialised autoencoder of the configured variant for activations of width `dim`."""
    return Autoencoder(dim, config.width, find_variant(config.variant).code(config))
