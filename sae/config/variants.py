"""Settings of the sparse autoencoders: a class for each set of variants that share them. Imports no torch.

`SETTINGS` says which class a variant reads; the variant's row, in `sae/models/variants/`, takes an object of that class
and nothing else. `SAEConfig` holds the fields of all classes side by side: they are the flags of `sae train` and the
keys of config.json. A setting that the variant does not read is refused by name (`SAEConfig.ignored`).

    SAEConfig(variant="jumprelu", width=4096, bandwidth=0.5)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from sae.config.fields import check


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """Settings of every autoencoder."""

    variant: str = "topk"
    """Kind of autoencoder."""
    width: int = 4608
    """Number of latents."""
    normalise: Literal["scale", "centre", "layer_norm", "whiten", "none"] = "scale"
    """How activations are normalised before encoding; undone after decoding, folded into the weights where possible."""
    dead_after: int | None = None
    """Tokens without firing after which a latent counts as dead; by default 10M, or a tenth of a shorter run."""

    def __post_init__(self) -> None:
        check(self.width >= 1, "width", self.width, "at least 1 latent")
        check(self.dead_after is None or self.dead_after >= 1, "dead_after", self.dead_after, "at least 1 token")

    def ignored(self) -> dict[str, str]:
        """Settings that have no effect beside the other ones, each with the reason; for `refuse_ignored`."""
        return {}


@dataclass(frozen=True, kw_only=True)
class SparseSettings(CommonSettings):
    """Settings of every sparse autoencoder."""

    k: int = 32
    """Active latents per token; of penalised variants the average, unless --l0-target or --sparsity is given."""
    revival: Literal["auto", "auxk", "resample", "pre_activation", "none"] = "auto"
    """How dead latents are revived; auto is resample for matching_pursuit and auxk for all others."""
    pre_activation_weight: float = 3e-6
    """Weight of the loss of --revival pre_activation."""
    auxk_weight: float = 1 / 32
    """Weight of the loss of --revival auxk; 0 turns it off."""
    auxk: int | None = None
    """Dead latents per token in the loss of --revival auxk; by default half the width of the activations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.k >= 1, "k", self.k, "at least 1")
        check(self.pre_activation_weight > 0, "pre_activation_weight", self.pre_activation_weight, "more than 0")
        check(self.auxk_weight >= 0, "auxk_weight", self.auxk_weight, "0 or more")
        check(self.auxk is None or self.auxk >= 1, "auxk", self.auxk, "at least 1")


@dataclass(frozen=True, kw_only=True)
class PenaltySettings(SparseSettings):
    """Settings of variants that penalise activity."""

    l0_target: float | None = None
    """Average number of active latents per token, reached by adjusting the penalty's weight; by default --k."""
    sparsity: float | None = None
    """Fixed weight of the penalty, in place of one that is adjusted."""
    sparsity_warmup: float = 0.3
    """Share of the steps over which the target falls from the first step's L0, or a fixed weight rises from zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.l0_target is None or 0 < self.l0_target <= self.width, "l0_target", self.l0_target, "1 to --width")
        check(self.sparsity is None or self.sparsity > 0, "sparsity", self.sparsity, "more than 0")
        check(0 <= self.sparsity_warmup < 1, "sparsity_warmup", self.sparsity_warmup, "a share of the steps, below 1")

    def ignored(self) -> dict[str, str]:
        """A fixed weight beside a target."""
        both = self.sparsity is not None and self.l0_target is not None
        why = "a fixed weight, and --l0-target asks for another; give one"
        return ({"sparsity": why} if both else {}) | super().ignored()


@dataclass(frozen=True, kw_only=True)
class ReLUSettings(PenaltySettings):
    """Settings of relu."""

    penalty: Literal["l1", "tanh"] = "l1"
    """Penalty on the latents' values."""


@dataclass(frozen=True, kw_only=True)
class JumpReLUSettings(PenaltySettings):
    """Settings of jumprelu."""

    recipe: Literal["deepmind", "anthropic", "target"] = "deepmind"
    """What is penalised: L0 (deepmind), tanh of the values (anthropic), or the distance of L0 from its target."""
    bandwidth: float | None = None
    """Width of the window around a threshold in which it learns; by default 0.01 sqrt(d), or 2 (recipe anthropic)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.bandwidth is None or self.bandwidth > 0, "bandwidth", self.bandwidth, "more than 0")

    def ignored(self) -> dict[str, str]:
        """The loss of --recipe target has both a weight and a target, and neither moves."""
        ineffective = super().ignored()
        if self.recipe == "target":
            ineffective.pop("sparsity", None)
            ineffective["sparsity_warmup"] = "--recipe target has neither a weight nor a target that moves"
        return ineffective


@dataclass(frozen=True, kw_only=True)
class SelectingSettings(SparseSettings):
    """Settings of variants that keep k latents."""

    k_start: int | None = None
    """Active latents per token at the first step; their number then falls to --k."""
    k_anneal: float = 0.2
    """Share of the steps over which the number of active latents falls from --k-start to --k."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"--k {self.k} to --width {self.width}"
        check(self.k_start is None or self.k <= self.k_start <= self.width, "k_start", self.k_start, expected)
        check(0 < self.k_anneal <= 1, "k_anneal", self.k_anneal, "a share of the steps")

    def ignored(self) -> dict[str, str]:
        """The duration of a fall that does not take place."""
        why = "the share over which k falls from --k-start, which is missing"
        return ({"k_anneal": why} if self.k_start is None else {}) | super().ignored()


@dataclass(frozen=True, kw_only=True)
class MatryoshkaSettings(SelectingSettings):
    """Settings of matryoshka."""

    groups: int = 5
    """Number of nested dictionaries, each half as wide as the next."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.groups <= 20, "groups", self.groups, "1 to 20")


@dataclass(frozen=True, kw_only=True)
class TemporalSettings(SelectingSettings):
    """Settings of temporal."""

    contrast: float = 1.0
    """Weight of the contrastive loss between neighbouring tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.contrast >= 0, "contrast", self.contrast, "0 or more")


@dataclass(frozen=True, kw_only=True)
class BasedSettings(SelectingSettings):
    """Settings of variants that take code and loss from another one, and that one's settings with them."""

    base: str | None = None
    """Variant whose code and loss are used; by default topk for transcoder, batchtopk for the others."""


SETTINGS: dict[str, type[SparseSettings]] = {
    "relu": ReLUSettings,
    "p_anneal": PenaltySettings,
    "gated": PenaltySettings,
    "jumprelu": JumpReLUSettings,
    "topk": SelectingSettings,
    "batchtopk": SelectingSettings,
    "matryoshka": MatryoshkaSettings,
    "matching_pursuit": SelectingSettings,
    "temporal": TemporalSettings,
    "transcoder": BasedSettings,
    "skip_transcoder": BasedSettings,
    "crosscoder": BasedSettings,
}
"""Variant -> the settings that it reads."""


def names_of(settings: type[CommonSettings]) -> frozenset[str]:
    """Names of the fields of a class of settings."""
    return frozenset(field.name for field in dataclasses.fields(settings))


@dataclass(frozen=True, kw_only=True)
class SAEConfig(ReLUSettings, JumpReLUSettings, MatryoshkaSettings, TemporalSettings, BasedSettings):
    """The autoencoder. `sae train --variant NAME --help` shows the settings of one variant alone."""

    @classmethod
    def readers(cls) -> dict[str, frozenset[str]]:
        """Variant -> the names of the settings that it reads."""
        return {variant: names_of(settings) for variant, settings in SETTINGS.items()}

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.k <= self.width or "k" not in self.readers().get(self.variant, {"k"})
        check(fits, "k", self.k, f"at most the number of latents, --width {self.width}")

    def ignored(self) -> dict[str, str]:
        """Settings that the variant does not read, or that have no effect beside the other ones, with the reasons."""
        readers, title = self.readers(), self.variant
        read = readers[self.variant]
        if self.base is not None and "base" in read:
            read, title = readers[self.base] | {"base"}, f"{self.variant} --base {self.base}"
        unread: dict[str, str] = {}
        for name in names_of(type(self)) - read:
            variants = ", ".join(variant for variant, names in readers.items() if name in names)
            unread[name] = f"applies to --variant {variants}, not to {title}" if variants else "applies to text alone"
        return super().ignored() | unread
