"""Settings of `sae measure`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sae.config.fields import Count, Limited, Resamples, WholeNumber, check, refuse_ignored, unknown_choice
from sae.config.run import Device

MEASURES = ("probing", "absorption", "scr", "tpp", "attributes")
ON_TEXTS = ("probing", "scr", "tpp")
"""Measures that read labelled texts."""
READERS = {
    "labels": ON_TEXTS,
    "documents": ON_TEXTS,
    "document_tokens": ON_TEXTS,
    "k": ("probing",),
    "latents": ("scr", "tpp", "attributes"),
    "words": ("absorption",),
    "pairs": ("attributes",),
}
"""Setting -> the measures that read it."""


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(Limited):
    """What is measured of the meaning and the effect of a run's latents."""

    measures: tuple[str, ...] = MEASURES
    """Any of probing, absorption, scr, tpp and attributes, with commas; what others gave before is kept."""
    labels: Path | None = None
    """Labelled texts for probing, tpp and scr in place of the built-in ones: a .jsonl file of {"text", "label"} and,
    for scr, "other", a second attribute."""
    documents: Count = 80
    """Texts of each class, at most."""
    document_tokens: Count = 48
    """Tokens of each text, at most."""
    k: tuple[Count, ...] = (1, 2, 5, 16)
    """probing: latents that a probe reads."""
    latents: tuple[Count, ...] = (2, 10, 50)
    """scr, tpp, attributes: latents that are ablated or moved."""
    words: Count = 2_000
    """absorption: words, at most."""
    pairs: Count = 40
    """attributes: pairs of entities, at most."""
    controls: Literal["fast", "all"] = "fast"
    """fast is random latents, raw channels, PCA, shuffled and random atoms; all adds random atoms with an encoder that
    is trained on --control-tokens first."""
    control_tokens: Count = 8_192
    """Training tokens to which PCA and random dictionaries are fitted."""
    resamples: Resamples = 1000
    """Bootstrap resamples over held-out texts, words or pairs, for the 95% intervals."""
    seed: WholeNumber = 0
    """Seed of the splits into training and held-out texts, of random controls, and of the bootstrap."""
    device: Device = "auto"
    """Where to compute: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        measures = tuple(name.strip() for part in self.measures for name in part.split(","))
        for name in measures:
            if name not in MEASURES:
                raise unknown_choice("--measures", name, MEASURES)
        object.__setattr__(self, "measures", tuple(name for name in MEASURES if name in measures))
        for name in ("k", "latents"):
            values = getattr(self, name)
            check(len(values) >= 1, name, values, "at least one number")
            object.__setattr__(self, name, tuple(sorted(set(values))))
        unread = {
            name: f"applies to --measures {', '.join(readers)}; --measures {','.join(self.measures)} does not read it"
            for name, readers in READERS.items()
            if not set(readers) & set(self.measures)
        }
        refuse_ignored(self, unread)
