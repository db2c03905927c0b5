"""`sae explain RUN`: a name for every latent that fires, and what the names predict on text they were not made from.

report = explain("runs/demo", ExplainConfig(score=("detection", "fuzzing")))
report["score"]["value"], report["control"]["value"], report["scores"]

A rule's "score" is its AUROC on tokens of held-out documents: firings from all quantiles of the activation against
tokens at which the latent is silent, some random and some where its neighbours fire. The control gives every latent
another one's rule. Rules need no key and no network. With `score`, names are also scored by whole texts (see `score`).

Names and scores are saved as they come, with the weights' SHA-256, so that an interrupted run resumes and a new
collection keeps them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae.base.files import remove_leftovers
from sae.base.locks import locked
from sae.base.progress import Progress, StopSignal
from sae.config import ConfigError, ExplainConfig
from sae.features.explain.models import Models
from sae.features.explain.naming_pass import SCORES
from sae.features.explain.scoring import mean_interval
from sae.features.explain.scoring_pass import summary as score_summary
from sae.features.explain.work import Work
from sae.features.store.store import FeatureStore
from sae.models.saved import locate_run, publish_report
from sae.runs.base import check_language

REPORT = "explain.json"


def explain(run: str | Path, config: ExplainConfig | None = None) -> dict[str, Any]:
    """Name and score the latents of a run whose features are collected.

    Args:
        run: run folder.
        config: which latents, and who explains.

    Returns:
        JSON values, also written to the run's explain.json: "live" latents, "named", "scored" (with enough held-out
        examples), "score" and "control" (mean held-out AUROC over scored latents, {"value", "low", "high"}, latents
        resampled), "score_random" and "score_neighbours" (against either kind of silent tokens alone), "precision",
        "recall", "clear" (share of scored latents whose interval excludes 0.5); "scores" and "agreement", the rows of
        `scoring_pass.summary`; "endpoint", what it says it has computed. With `estimate` only "estimate".

    Raises:
        FeatureError: the features are not collected, or the run has no such latent.
        ConfigError, ModelError, ExplainerError: the run is on images, or the explainer cannot be used.

    Example:
        >>> import sae
        >>> sae.explain("runs/demo")["method"]
        'rules'
    """
    config = config or ExplainConfig()
    check_language(run, "naming latents from text")
    folder = locate_run(run)
    store = FeatureStore(folder)
    begun = time.perf_counter()
    models = Models(config)
    live = np.flatnonzero(store.scalars["count"] > 0)
    wanted = _wanted(config, live, store.width)
    hint = f"what was saved is kept; continue with the same command: sae explain {run} ..."
    with locked(folder, "explain", "naming the latents of this run"), StopSignal() as stop, Progress() as progress:
        remove_leftovers(folder, REPORT)
        work = Work(store, config, models, stop, progress, hint)
        if config.estimate:
            return {"run": str(run), "method": models.method, "estimate": work.estimate(wanted).to_json(config.price)}
        work.name(wanted)
        work.score(wanted)
    names = store.annotations.names()
    report = {"run": str(run), "method": models.method}
    report |= summary([names[i] for i in live.tolist() if i in names], len(live))
    report["scores"], report["agreement"] = score_summary(store.annotations.scores())
    if models.usage is not None:
        report["endpoint"] = models.usage._asdict()
    report["seconds"] = round(time.perf_counter() - begun, 1)
    publish_report(folder, REPORT, report)
    return report


def summary(names: Sequence[dict[str, Any]], live: int) -> dict[str, Any]:
    """The report of `explain` on some names, where `live` latents fire."""
    scored = [name for name in names if name["score"] is not None]
    report: dict[str, Any] = {"live": live, "named": len(names), "scored": len(scored)}
    for field in SCORES:
        values = np.array([name[field] for name in scored if name.get(field) is not None], dtype=np.float64)
        if len(values):
            report[field] = mean_interval(values)
    if scored:
        report["clear"] = sum(name["low"] > 0.5 for name in scored) / len(scored)
    return report


def _wanted(config: ExplainConfig, live: np.ndarray, width: int) -> list[int]:
    if not config.latents:
        return live.tolist()
    fires = set(live.tolist())
    for latent in config.latents:
        if not 0 <= latent < width:
            raise ConfigError(f"--latents {latent}: the run has latents 0 to {width - 1}")
        if latent not in fires:
            raise ConfigError(f"--latents {latent}: it never fired in the collected tokens, so it has no examples")
    return list(dict.fromkeys(config.latents))
