"""Settings of the commands that compare runs: `sae match`, `sae compare`, `sae choose-l0`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sae.config.fields import Count, Limited, Resamples, Share, WholeNumber, refuse_ignored
from sae.config.run import Device


@dataclass(frozen=True, kw_only=True)
class MatchConfig(Limited):
    """How the latents of several runs are matched."""

    out: Path | None = None
    """New folder for match.json and the table match.md; without it nothing but the runs' stability is written."""
    tokens: WholeNumber = 32_768
    """Held-out tokens (or rows, or images) on which activations are compared, where the runs have text, rows or images
    in common; 0 compares atoms alone."""
    dataset: str | None = None
    """Text on which activations are compared; by default the held-out part of the first run's."""
    text_field: str | None = None
    """Column of that data set."""
    same: Share = 0.7
    """|cosine| of two atoms from which they count as the same latent (Paulo and Belrose 2025)."""
    pool: Path | None = None
    """New run folder with the stable latents of the first run alone."""
    at_least: Share = 0.8
    """pool: the stability from which a latent is kept."""
    resamples: Resamples = 1000
    """Bootstrap resamples, for the 95% intervals."""
    seed: WholeNumber = 0
    """Seed of the bootstrap and of the chance levels."""
    device: Device = "auto"
    """Where to compute activations: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool is None:
            refuse_ignored(self, {"at_least": "applies to --pool, which is not given"})
        if not self.tokens:
            why = "--tokens 0 compares atoms alone"
            refuse_ignored(self, {"dataset": why, "text_field": why})


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Limited):
    """How variants are compared."""

    reference: str | None = None
    """Variant that the others are compared with, by its name in the table; by default the first one."""
    out: Path | None = None
    """Folder for variants.md, .json, .html and the figure; by default that of the sweep, where one is given."""


@dataclass(frozen=True, kw_only=True)
class L0Config(Limited):
    """How runs of several L0 are compared."""

    out: Path | None = None
    """New folder for l0.json and the picture l0.svg."""
    tokens: Count = 16_384
    """Held-out tokens (or rows) on which L0 and dead latents are measured."""
    resamples: Resamples = 1000
    """Bootstrap resamples over seeds and latents."""
    seed: WholeNumber = 0
    """Seed of the bootstrap."""
    device: Device = "auto"
    """Where to compute activations: auto takes a GPU where there is one."""
