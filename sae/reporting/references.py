"""Published numbers on real models, with the setting of each: what a reader may hold a run against.

They are shown beside the runs only as orientation: another model, site, text or L0 makes another number.
"""

from __future__ import annotations

from typing import NamedTuple


class Reference(NamedTuple):
    """One published autoencoder."""

    source: str
    """Authors and year, or the release."""
    model: str
    site: str
    """In our spelling."""
    latents: int
    l0: float
    """Midpoint where a range was published."""
    fvu: float
    """1 - explained variance as published."""
    delta_ce: float | None = None
    """Nats a token, where it was published."""


_WIDTHS = (768, 1536, 3072, 6144, 12_288, 24_576, 49_152, 98_304)
_EXPLAINED = (0.61, 0.67, 0.72, 0.76, 0.77, 0.79, 0.81, 0.82)

REFERENCES: tuple[Reference, ...] = (
    *(
        Reference("Bloom 2024, feature splitting set", "gpt2", "resid_pre.8", width, 39.5, round(1 - explained, 3))
        for width, explained in zip(_WIDTHS, _EXPLAINED, strict=True)
    ),
    *(
        Reference("Gao et al. 2024, v5", "gpt2", f"resid_mid.{layer}", 32_768, 32, fvu)
        for layer, fvu in ((0, 0.032), (1, 0.039), (2, 0.043))
    ),
    *(
        Reference("dictionary_learning, 2024", "pythia-70m-deduped", f"resid_post.{layer}", 32_768, l0, fvu, delta_ce)
        for layer, l0, fvu, delta_ce in ((1, 54, 0.15, 0.45), (3, 68, 0.04, 0.58), (5, 72, 0.10, 0.55))
    ),
)
"""Explained variance from the release notes and papers that `source` names."""
