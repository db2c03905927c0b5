"""The variants for language-model activations: from a name and settings to an autoencoder and its loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sae.config import ConfigError, SAEConfig, unknown_choice
from sae.models.autoencoder import Autoencoder
from sae.models.recipe import Recipe
from sae.models.variants.base import Variant
from sae.models.variants.penalised import PENALISED
from sae.models.variants.selecting import SELECTING
from sae.modules.losses import Term

VARIANTS: dict[str, Variant[Any]] = {**PENALISED, **SELECTING}


def find_variant(config: SAEConfig) -> Variant[Any]:
    """The variant's row; of one that builds on another, the other's row with the sites it reads and writes.

    Raises:
        ConfigError: an unknown variant, or settings that do not go together.
    """
    if config.variant not in VARIANTS:
        raise unknown_choice("--variant", config.variant, VARIANTS)
    row = VARIANTS[config.variant]
    if row.base is None:
        if config.base is not None:
            builds = ", ".join(name for name, other in VARIANTS.items() if other.base)
            raise ConfigError(f"--base {config.base}: expected with --variant {builds}, not {config.variant}")
        return row
    name = config.base or row.base
    if name not in VARIANTS or VARIANTS[name].base is not None:
        raise unknown_choice("--base", name, [n for n, other in VARIANTS.items() if other.base is None])
    base = VARIANTS[name]
    if row.transcodes and base.code(config, 1).tied:
        raise ConfigError(f"--base {name}: its encoder is its dictionary, which a {config.variant} cannot have")
    sites = {field: getattr(row, field) for field in ("transcodes", "skip", "several_sites")}
    return dataclasses.replace(base, **sites)


def recipe_of(config: SAEConfig, site_widths: Sequence[int], target_widths: Sequence[int] | None = None) -> Recipe:
    """The configured variant for activations of these widths, side by side; `target_widths` for a transcoder."""
    variant = find_variant(config)
    targets = list(target_widths or site_widths)
    return Recipe(
        config=config,
        model=build(config, sum(site_widths), sum(targets)),
        terms=terms_of(config, variant),
        site_widths=list(site_widths),
        target_widths=targets,
        penalty=variant.penalty(config),
        revival=revival_of(config, variant),
    )


def terms_of(config: SAEConfig, variant: Variant[Any]) -> list[Term]:
    """The whole loss: the variant's terms, and the term that revives dead latents."""
    terms = list(variant.terms(config))
    revival = revival_of(config, variant)
    if revival == "auxk":
        terms.append(Term("auxk", config.auxk_weight))
    elif revival == "pre_activation":
        terms.append(Term("pre_activation", config.pre_activation_weight))
    return terms


def revival_of(config: SAEConfig, variant: Variant[Any]) -> str:
    """How dead latents are revived: auxk, resample, pre_activation or none."""
    revival = variant.revival if config.revival == "auto" else config.revival
    return "none" if revival == "auxk" and not config.auxk_weight else revival


def build(config: SAEConfig, dim: int, dim_out: int | None = None) -> Autoencoder:
    """An uninitialised autoencoder of the configured variant for activations of width `dim`."""
    variant = find_variant(config)
    return Autoencoder(
        dim,
        config.width,
        variant.code(config, dim),
        dim_out=dim_out,
        transcodes=variant.transcodes,
        skip=variant.skip,
        per_token_norm=config.normalise == "layer_norm",
    )
