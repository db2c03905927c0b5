"""Settings that a new run would ignore, each with the reason: a flag without effect is refused, not accepted.

    refuse_ignored(config.sae, ignored(config.sae, find_variant(config.sae)))

`SAEConfig.ignored` knows which settings a variant reads; here is what depends on the variant's row and on the parts
that `auto` stands for. A resumed run keeps the settings that it was started with, whether they have an effect or not.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sae.config import ConfigError, OptimConfig, SAEConfig, VisionConfig, refuse_ignored
from sae.models.language import VARIANTS, revival_of
from sae.models.variants.base import Variant

Ignored = dict[str, str]
"""Name of a setting -> why it would have no effect."""


def ignored(config: SAEConfig, variant: Variant[Any]) -> Ignored:
    """Settings that a sparse variant ignores; `variant` is what `find_variant` gave."""
    revival = revival_of(dataclasses.replace(config, auxk_weight=1.0), variant)
    return _other_revivals(config, revival) | config.ignored()


def _other_revivals(config: SAEConfig, revival: str) -> Ignored:
    """Settings of the ways to revive dead latents, but for the one that is used."""
    reasons: Ignored = {}
    if revival != "pre_activation":
        reasons["pre_activation_weight"] = f"expected with --revival pre_activation, and here it is {revival}"
    if revival != "auxk":
        reasons |= dict.fromkeys(("auxk", "auxk_weight"), f"expected with --revival auxk, and here it is {revival}")
    elif not config.auxk_weight:
        reasons["auxk"] = "--auxk-weight 0 turns that loss off"
    return reasons


def ignored_by_images(config: VisionConfig, shape: tuple[int, ...]) -> Ignored:
    """Settings that an image variant ignores, for images of shape [C, H, W]."""
    from sae.models.vision import OWN, completed  # brings what images alone need

    whole = completed(config, shape)
    here = f"here --stem is {whole.stem} and --head {whole.head}"
    reasons: Ignored = {}
    if config.variant not in OWN:
        if whole.head == "none":
            reasons |= ignored(config, VARIANTS[config.variant])
        else:
            reasons |= _other_revivals(config, "none")
            reasons["revival"] = f"dead latents cannot be revived behind --head {whole.head}"
    if "mlp" not in (whole.stem, whole.head):
        reasons["hidden"] = f"expected with --stem mlp or --head mlp; {here}"
    if not {whole.stem, whole.head} & {"convolutional", "two_level"}:
        reasons["channels"] = f"expected with --stem or --head convolutional; {here}"
    if whole.head not in ("convolutional", "two_level"):
        reasons["upsampling"] = f"expected with --head convolutional, and here it is {whole.head}"
    if whole.likelihood != "gaussian":
        reasons["variance"] = f"expected with --likelihood gaussian, and here it is {whole.likelihood}"
    if whole.corruption == "none":
        reasons["corruption_level"] = "expected with --corruption, and here it is none"
    return reasons | config.ignored()


def refuse_unread(sae: SAEConfig, optim: OptimConfig, variant: Variant[Any]) -> None:
    """Refuse settings that the variant or the optimizer does not read.

    Raises:
        ConfigError: names them, with the reasons.
    """
    refuse_ignored(sae, ignored(sae, variant))
    refuse_ignored(optim, optim.ignored())


def check_together(sae: SAEConfig, optim: OptimConfig, variant: Variant[Any], target_site: str | None = None) -> None:
    """Refuse settings that do not go together.

    Raises:
        ConfigError: names the flag.
    """
    if variant.transcodes != (target_site is not None):
        expected = "needs --target-site" if variant.transcodes else "has no --target-site (a transcoder has)"
        raise ConfigError(f"--variant {sae.variant}: {expected}")
    if sae.normalise == "layer_norm" and (variant.transcodes or variant.several_sites):
        raise ConfigError(f"--normalise layer_norm: undone with the input's own mean; not for --variant {sae.variant}")
    tied = variant.code(sae, 1).tied
    if tied and (sae.normalise == "whiten" or variant.several_sites):
        raise ConfigError(f"--variant {sae.variant}: atoms must keep equal norms; expected --normalise scale or centre")
    if sae.revival == "auxk" and tied:
        raise ConfigError(f"--revival auxk: --variant {sae.variant} has no pre-activations; expected resample or none")
    if variant.neighbours and (optim.batch or 2) % 2:
        raise ConfigError(f"--batch {optim.batch}: --variant {sae.variant} reads pairs; expected an even number")
