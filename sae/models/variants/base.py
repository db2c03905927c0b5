"""A row of the table of variants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sae.config.variants import SparseSettings
from sae.modules.codes import Code
from sae.modules.losses import Term

S = TypeVar("S", bound=SparseSettings)


@dataclass(frozen=True, kw_only=True)
class Variant(Generic[S]):
    """One row of the table, for the settings S that the variant reads (`sae.config.variants.SETTINGS`)."""

    code: Callable[[S, int], Code]
    """Builds the code from the settings, for inputs of width d with mean ||x||² = d."""
    terms: Callable[[S], Sequence[Term]]
    """The loss, without the term that revives dead latents."""
    penalty: Callable[[S], str | None] = lambda config: None
    """The term whose weight sets L0: fixed by --sparsity, else adjusted until L0 is --l0-target."""
    revival: str = "auxk"
    """How dead latents are revived, unless --revival is given."""
    transcodes: bool = False
    """Whether it reconstructs another site (--target-site)."""
    skip: bool = False
    """Whether a linear map of the inputs is added to the reconstruction."""
    several_sites: bool = False
    """Whether it reads and reconstructs several sites at once."""
    neighbours: bool = False
    """Whether it learns from pairs of neighbouring tokens."""
    base: str | None = None
    """For a row that only changes which sites are read and written: the variant it builds on unless --base is given."""
