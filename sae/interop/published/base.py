"""One published set of autoencoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

PILE = "monology/pile-uncopyrighted"


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """Autoencoders of one repository that differ in layer and variant alone."""

    repository: str
    """Hub id."""
    path: str
    """Place of one of them in the repository, a file or folder, with `{layer}` and `{variant}`."""
    format: str
    """The format that reads it, a key of `READERS`, or of `REFUSED` where none can."""
    model: str
    """Hub id of the language model."""
    variants: Mapping[str, Sequence[int]]
    """Variant -> layers; "" where there is one kind alone, no layers where it belongs to none."""
    site: str | None = None
    """Where it reads, with `{layer}`; None where the files say so."""
    target: str | None = None
    """Where its reconstruction belongs, if elsewhere."""
    short: str = ""
    """What stands behind the set's name in a short name; `path` by default."""
    also: tuple[str, ...] = ()
    """Further files that it consists of, with `{layer}` and `{variant}`."""
    further: str = ""
    """Regular expression of variants beside the listed ones, which only the repository knows."""
    canonical: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """Width -> layer -> the average L0 of the autoencoder that `canonical` stands for."""
    width: str = ""
    """Number of latents, as the authors write it; by default what the variant says."""
    licence: str | None = None
    bos: bool | None = None
    """Whether contexts began with BOS; None where nothing says so."""
    context: int | None = None
    """Tokens a context."""
    dataset: str | None = None
    left_out: str | None = None
    """Tokens that they were not trained on."""
    notes: tuple[str, ...] = ()

    def place(self, pattern: str, layer: int | None, variant: str) -> str:
        """A pattern of this set with layer and variant filled in."""
        width, _, last = variant.partition("/")
        if last == "canonical" and layer is not None:
            variant = f"{width}/average_l0_{self.canonical[width][layer]}"
        return pattern.format(layer=layer, variant=variant)
