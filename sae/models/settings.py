"""Settings that a run would ignore, each with the reason: a flag that does nothing is refused, not accepted.

    refuse_ignored(config.sae, ignored(config.sae, find_variant(config.sae)))

Only new runs are asked: the settings of a run that was begun are its own, and are loaded as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from sae.config import SPARSE, OptimConfig, SAEConfig, VisionConfig
from sae.models.language import VARIANTS, revival_of
from sae.models.variants.base import Variant
from sae.models.vision import OWN, completed

Ignored = dict[str, str]
"""Name of a setting -> why it would do nothing."""


def ignored(config: SAEConfig, variant: Variant) -> Ignored:
    """What a sparse variant, complete with its base, does not read of its settings."""
    does_not = f"--variant {_called(config)}"
    names = SPARSE if isinstance(config, VisionConfig) else VARIANTS
    found = _of_others(config, {name: VARIANTS[name].reads for name in VARIANTS}, variant.reads, names)
    aimed = any(term.name == "l0_target" for term in variant.terms(config))
    if variant.penalty(config) is None:
        found["sparsity_warmup"] = f"{does_not} has no penalty whose weight would move"
        if not aimed:
            found |= dict.fromkeys(("l0_target", "sparsity"), f"{does_not} has no penalty; it keeps --k")
    elif config.sparsity is not None and config.l0_target is not None:
        found["sparsity"] = "a fixed weight, and --l0-target asks for another; give one"
    if not hasattr(variant.code(config, 1), "k"):
        found |= dict.fromkeys(("k_start", "k_anneal"), f"{does_not} has no k to anneal")
    elif config.k_start is None:
        found["k_anneal"] = "it is the share over which k falls from --k-start, which is missing"
    return found | _revival(config, revival_of(dataclasses.replace(config, auxk_weight=1.0), variant))


def _revival(config: SAEConfig, revival: str) -> Ignored:
    """Settings of the ways to revive dead latents that are not taken."""
    found: Ignored = {}
    if revival != "pre_activation":
        found["pre_activation_weight"] = f"expected with --revival pre_activation, and here it is {revival}"
    if revival != "auxk":
        found |= dict.fromkeys(("auxk", "auxk_weight"), f"expected with --revival auxk, and here it is {revival}")
    elif not config.auxk_weight:
        found["auxk"] = "--auxk-weight 0 turns that loss off"
    return found


def ignored_by_images(config: VisionConfig, shape: tuple[int, ...]) -> Ignored:
    """What an image variant does not read of its settings, for images of the shape [C, H, W]."""
    whole = completed(config, shape)
    row = OWN.get(config.variant)
    tables = {name: own.reads for name, own in OWN.items()}
    found = _of_others(config, tables, () if row is None else row.reads, OWN)
    parts = {whole.stem, whole.head}
    if row is None:
        sparse = VARIANTS[config.variant]
        found |= ignored(config, sparse)
        if whole.head != "none":
            found |= dict.fromkeys(("revival",), f"what revives dead latents knows of no --head {whole.head}")
            found |= _revival(config, "none")
    else:
        names = [field.name for field in dataclasses.fields(SAEConfig)]
        common = ("variant", "width", "normalise", "dead_after")
        why = f"--variant {config.variant} has no sparse code; it is of {', '.join(SPARSE)}"
        found |= dict.fromkeys((name for name in names if name not in common), why)
    if "mlp" not in parts:
        found["hidden"] = f"it is of --stem mlp and --head mlp, and here they are {whole.stem} and {whole.head}"
    if not parts & {"convolutional", "two_level"}:
        found["channels"] = f"it is of convolutional ones, and --stem is {whole.stem}, --head {whole.head}"
    if whole.head not in ("convolutional", "two_level"):
        found["upsampling"] = f"it is of convolutional heads, and --head is {whole.head}"
    if config.beta is None:
        found.setdefault("beta_per", "it is of --beta, which is missing")
    if whole.likelihood != "gaussian":
        found["variance"] = f"it is of --likelihood gaussian, and here it is {whole.likelihood}"
    if whole.corruption == "none":
        found["corruption_level"] = "expected with --corruption, and here it is none"
    return found


def ignored_by_optimizer(config: OptimConfig) -> Ignored:
    """What an optimizer does not read of its settings."""
    if config.optimizer != "signsgd":
        return {}
    does_not = {
        "beta2": "has no second moment",
        "eps": "has no second moment",
        "clip": "takes the gradient's sign, whatever its norm",
        "decay": "averages in the place of a decay",
    }
    return {name: f"--optimizer signsgd {why}" for name, why in does_not.items()}


def _of_others(
    config: SAEConfig, tables: Mapping[str, tuple[str, ...]], reads: tuple[str, ...], names: Iterable[str]
) -> Ignored:
    """Settings that some variants' rows read and this one does not; `names` are the variants that could be chosen."""
    found: Ignored = {}
    for name in dict.fromkeys(field for fields in tables.values() for field in fields if field not in reads):
        owners = ", ".join(variant for variant in names if name in tables[variant]) or "no variant of this kind"
        found[name] = f"--variant {_called(config)} does not read it; it is of {owners}"
    return found


def _called(config: SAEConfig) -> str:
    return config.variant if config.base is None else f"{config.variant} --base {config.base}"
