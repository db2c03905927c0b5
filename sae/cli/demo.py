"""`sae demo`: the main job on a real model and real text, to an evaluated autoencoder that can be looked into."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

from sae.config import CollectConfig, EvalConfig, HarvestConfig, OptimConfig, SAEConfig, TrainConfig
from sae.data.cache import cache_dir
from sae.evaluation.run import evaluate
from sae.features.collect.collect import collect
from sae.training.run import train

LAYER = 9
FEATURE_TOKENS = 262_144


def run_demo(out: Path, *, tokens: int, epochs: int, seed: int) -> dict[str, Any]:
    """Train on layer 9 of the demo model over `tokens` tokens of the demo text, evaluate on held-out documents.

    The activations stay in the cache, so that a second run need not harvest them again.
    """
    begun = time.perf_counter()
    out = free_name(out)
    config = TrainConfig(
        harvest=HarvestConfig(model="demo", dataset="demo", layer=LAYER),
        sae=SAEConfig(variant="topk", width=4608, k=32),
        optim=OptimConfig(),
        out=out,
        tokens=tokens,
        epochs=epochs,
        store=cache_dir() / "stores" / f"demo-resid_post.{LAYER}",
        seed=seed,
    )
    trained = train(config)
    report = evaluate(out, EvalConfig(tokens=32_768, downstream_tokens=4_096, pca_tokens=16_384))
    # from the activations that are there already: one pass of the encoder over them
    features = collect(out, CollectConfig(store=config.store, tokens=min(tokens, FEATURE_TOKENS)))
    downstream, baselines = report["downstream"], report["baselines"]
    return {
        "run": str(out),
        "fvu": report["fvu"],
        "fvu_of_pca_with_as_many_components": baselines["pca_fvu"],
        "pca_components_for_the_same_fvu": baselines["pca_components_for_same_fvu"],
        "l0": report["l0"],
        "dead": report["dead"],
        "delta_ce": downstream["delta_ce"],
        "ce_recovered_mean": downstream["ce_recovered_mean"],
        "tokens_harvested": trained.tokens_held,
        "tokens_trained_on": trained.training_tokens,
        "steps": trained.steps,
        "lr": trained.lr,
        "route": trained.route,
        "backends": trained.backends,
        "seconds": {**trained.seconds, "evaluation": report["seconds"], "all": time.perf_counter() - begun},
        "latents_that_fired": features["fired"],
        "peak_memory_mb": peak_memory_mb(),
        "next": [
            f"sae browse {out}        # every latent's text, in your browser",
            f"sae explain {out}       # names for them, scored on held-out documents",
            f"sae eval {out}",
            "sae train --help",
        ],
    }


def free_name(out: Path) -> Path:
    """`out`, or the first of out-2, out-3, ... that does not exist yet."""
    number, candidate = 1, out
    while candidate.exists():
        number += 1
        candidate = out.with_name(f"{out.name}-{number}")
    return candidate


def peak_memory_mb() -> int:
    """Largest resident size of this process so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)
