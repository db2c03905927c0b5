"""Gemma Scope on Gemma 2, and Gemma Scope 2 on Gemma 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sae.interop.published.base import PILE, PublishedSet
from sae.interop.published.canonical import CANONICAL

SPECIAL = "BOS, EOS and padding"

KINDS = {"res": "resid_post.{layer}", "mlp": "mlp_out.{layer}", "att": "layers.{layer}.self_attn.o_proj:in"}
"""Kind of Gemma Scope -> site. Those of the attention read what the heads put out, before its output projection."""


def _gemma_scope() -> dict[str, PublishedSet]:
    """Gemma Scope (Lieberum et al. 2024) on Gemma 2."""
    common: dict[str, Any] = {
        "format": "gemma_scope",
        "licence": "cc-by-4.0",
        "bos": True,
        "context": 1024,
        "left_out": SPECIAL,
        "further": r"width_\d+[km]/average_l0_\d+",
    }
    sets = {}
    for name, widths in CANONICAL.items():
        size, kind, site = name.split("-")[2], name.split("-")[3], name.split("-")[4]
        sets[name] = PublishedSet(
            repository=f"google/{name}",
            path="layer_{layer}/{variant}",
            model=f"google/gemma-2-{size}" + ("-it" if kind == "it" else ""),
            variants={f"{width}/canonical": tuple(layers) for width, layers in widths.items()},
            canonical=widths,
            site=KINDS[site],
            **common,
        )
    for size, l0s in {"2b": (6, 21, 44, 111), "9b": (7, 14, 22, 80)}.items():
        sets[f"gemma-scope-{size}-pt-res/embedding"] = PublishedSet(
            repository=f"google/gemma-scope-{size}-pt-res",
            path="embedding/{variant}",
            short="{variant}",
            model=f"google/gemma-2-{size}",
            variants={f"width_4k/average_l0_{l0}": () for l0 in l0s},
            site="resid_pre.0",
            **common,
        )
    # one for each layer is listed
    l0s = "76 65 49 54 88 87 95 70 52 72 88 5 6 8 8 8 10 12 13 12 11 13 15 25 37 41".split()
    variants: dict[str, tuple[int, ...]] = {}
    for layer, l0 in enumerate(l0s):
        variant = f"width_16k/average_l0_{l0}"
        variants[variant] = (*variants.get(variant, ()), layer)
    sets["gemma-scope-2b-pt-transcoders"] = PublishedSet(
        repository="google/gemma-scope-2b-pt-transcoders",
        path="layer_{layer}/{variant}",
        model="google/gemma-2-2b",
        variants=variants,
        site="mlp_in.{layer}",
        target="mlp_out.{layer}",
        **common,
    )
    return sets


GEMMA_3 = {
    "270m": (18, (5, 9, 12, 15)),
    "1b": (26, (7, 13, 17, 22)),
    "4b": (34, (9, 17, 22, 29)),
    "12b": (48, (12, 24, 31, 41)),
    "27b": (62, (16, 31, 40, 53)),
}
"""Size of Gemma 3 -> its layers, and those of which more widths are published."""
FOLDERS = {"res": "resid_post", "mlp": "mlp_out", "att": "attn_out", "transcoders": "transcoder"}
"""Kind of Gemma Scope 2 -> folder."""


def _gemma_scope_2() -> dict[str, PublishedSet]:
    """Gemma Scope 2 (McDougall et al. 2025) on Gemma 3."""
    sets = {}
    for size, (depth, subset) in GEMMA_3.items():
        for tuning in ("pt", "it"):
            for kind, folder in FOLDERS.items():
                for suffix in ("", "_all"):
                    variants = _gemma_3_variants(size, tuning, kind, subset, range(depth) if suffix else None)
                    if not variants:
                        continue
                    transcodes = kind == "transcoders"
                    name = f"gemma-scope-2-{size}-{tuning}-{kind}" + suffix.replace("_", "-")
                    sets[name] = PublishedSet(
                        repository=f"google/gemma-scope-2-{size}-{tuning}",
                        path=f"{folder}{suffix}/layer_{{layer}}_{{variant}}",
                        short="layer_{layer}_{variant}",
                        format="gemma_scope_2",
                        # the smallest base model has no suffix
                        model=f"google/gemma-3-{size}" + ("" if (size, tuning) == ("270m", "pt") else f"-{tuning}"),
                        variants=variants,
                        site="mlp_in.{layer}" if transcodes else KINDS[kind],
                        target="mlp_out.{layer}" if transcodes else None,
                        bos=True,
                        context=1024,
                        dataset=PILE,
                    )
    return sets


def _gemma_3_variants(
    size: str, tuning: str, kind: str, subset: Sequence[int], every: Sequence[int] | None
) -> dict[str, Sequence[int]]:
    """Variant -> layers of one folder; `every` are the layers of a folder that ends in _all."""
    ends = ("", "_affine") if kind == "transcoders" else ("",)
    if (size, tuning) == ("27b", "pt") and (kind in ("mlp", "att") or (kind == "transcoders" and every is None)):
        return {}
    if (size, tuning, kind, every) == ("270m", "pt", "transcoders", None):
        return {"width_16k_l0_small_affine": (9,), "width_262k_l0_big_affine": (15,)}
    widths, l0s = (("16k", "262k"), ("small", "big"))
    if every is None:
        wide = kind == "res" or (kind == "mlp" and size == "1b")
        widths, l0s = ("16k", "65k", "262k", *(("1m",) if wide else ())), ("small", "medium", "big")
    layers = subset if every is None else every
    variants = {f"width_{w}_l0_{l0}{end}": layers for w in widths for l0 in l0s for end in ends}
    if kind == "res" and every is None:
        variants["width_262k_l0_medium_seed_1"] = layers
    if size == "27b" and kind == "transcoders" and every is not None:
        for variant, missing in {"width_16k_l0_big": (4, 43), "width_16k_l0_small": (4, 5, 43)}.items():
            variants[variant] = tuple(layer for layer in layers if layer not in missing)
    return variants


def _cross_layer() -> dict[str, PublishedSet]:
    """Gemma Scope 2's cross-layer transcoders, a file a layer; the names of one repository are known."""
    return {
        "gemma-scope-2-1b-pt-clt": PublishedSet(
            repository="google/gemma-scope-2-1b-pt",
            path="clt/{variant}/params_layer_{layer}.safetensors",
            short="{variant}/layer_{layer}",
            format="gemma_scope_2",
            model="google/gemma-3-1b-pt",
            variants=dict.fromkeys(("width_262k_l0_medium", "width_262k_l0_medium_affine"), range(26)),
            further=r"width_\d+[km]_l0_[a-z_]+",
            bos=True,
            context=1024,
            dataset=PILE,
        )
    }


GEMMA = {**_gemma_scope(), **_gemma_scope_2(), **_cross_layer()}
