"""What a row of the table of variants says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sae.config import SAEConfig
from sae.modules.codes import Code
from sae.modules.losses import Term


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table."""

    code: Callable[[SAEConfig, int], Code]
    """Builds the code from the settings, for inputs of a width d with mean ||x||² = d."""
    terms: Callable[[SAEConfig], Sequence[Term]]
    """The loss, without what revives dead latents."""
    penalty: Callable[[SAEConfig], str | None] = lambda config: None
    """The term whose weight sets L0: --sparsity fixes it, else a controller moves it until L0 is --l0-target."""
    revival: str = "auxk"
    """How dead latents are revived unless --revival says otherwise."""
    beta1: float = 0.9
    """Adam's decay of the first moment unless --beta1 says otherwise."""
    transcodes: bool = False
    """Whether it reconstructs another site (--target-site)."""
    skip: bool = False
    """Whether a linear map of the inputs is added to the reconstruction."""
    several_sites: bool = False
    """Whether it reads and reconstructs several sites at once."""
    neighbours: bool = False
    """Whether it learns from pairs of neighbouring tokens."""
    reads: tuple[str, ...] = ()
    """Fields of `SAEConfig` that `code`, `terms` or `penalty` read and other variants do not: for all who lack them a
    value other than the default is refused."""
    base: str | None = None
    """For a row that only changes where another reads and writes: the row it builds on unless --base names one."""
