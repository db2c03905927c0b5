"""Sparsight: train sparse autoencoders on language-model activations, prove how good they are, look inside.

    import sae
    model = sae.load("runs/demo")
    codes = model.encode(x)          # x [N, d] -> SparseCodes
    x_hat = model.decode(codes)
    with sae.attach(language_model, {"resid_post.9": model}, mode="splice"): ...

Importing this package imports no torch; each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sae.base.threads import keep_to_quota

# before torch is loaded, which reads its number of threads once
keep_to_quota()

__version__ = "0.1.0"

_LAZY = {
    "load": "sae.interop.opening:load",
    "verify": "sae.models.saved:verify",
    "train": "sae.training.run:train",
    "harvest_store": "sae.harvest.harvesting:harvest_store",
    "sweep": "sae.training.sweep:sweep",
    "evaluate": "sae.evaluation.run:evaluate",
    "match": "sae.evaluation.matching.run:match",
    "compare": "sae.reporting.variants:compare",
    "choose_l0": "sae.evaluation.l0.run:choose_l0",
    "measure": "sae.evaluation.semantic.run:measure",
    "collect": "sae.features.collect.collect:collect",
    "explain": "sae.features.explain.explain:explain",
    "steer": "sae.features.steer.steer:steer_run",
    "measure_steering": "sae.features.steer.measure:measure_steering",
    "attach": "sae.harvest.attach:attach",
    "report": "sae.reporting.report:report",
    "Run": "sae.run:Run",
    "Autoencoder": "sae.models.autoencoder:Autoencoder",
    "SparseCodes": "sae_kernels:SparseCodes",
    "TrainConfig": "sae.config:TrainConfig",
    "HarvestConfig": "sae.config:HarvestConfig",
    "SAEConfig": "sae.config:SAEConfig",
    "OptimConfig": "sae.config:OptimConfig",
    "TensorTrainConfig": "sae.config:TensorTrainConfig",
    "TensorDataConfig": "sae.config:TensorDataConfig",
    "ImageTrainConfig": "sae.config:ImageTrainConfig",
    "ImageDataConfig": "sae.config:ImageDataConfig",
    "VisionConfig": "sae.config:VisionConfig",
    "EvalConfig": "sae.config:EvalConfig",
    "ImageEvalConfig": "sae.config:ImageEvalConfig",
    "CollectConfig": "sae.config:CollectConfig",
    "CompareConfig": "sae.config:CompareConfig",
    "ExplainConfig": "sae.config:ExplainConfig",
    "SteerConfig": "sae.config:SteerConfig",
    "SteerMeasureConfig": "sae.config:SteerMeasureConfig",
    "StoreConfig": "sae.config:StoreConfig",
    "ImportConfig": "sae.config:ImportConfig",
    "MatchConfig": "sae.config:MatchConfig",
    "MeasureConfig": "sae.config:MeasureConfig",
    "L0Config": "sae.config:L0Config",
}
"""Name -> where it is."""
__all__ = [
    "Autoencoder",
    "CollectConfig",
    "CompareConfig",
    "EvalConfig",
    "ExplainConfig",
    "HarvestConfig",
    "ImageDataConfig",
    "ImageEvalConfig",
    "ImageTrainConfig",
    "ImportConfig",
    "L0Config",
    "MatchConfig",
    "MeasureConfig",
    "OptimConfig",
    "Run",
    "SAEConfig",
    "SparseCodes",
    "SteerConfig",
    "SteerMeasureConfig",
    "StoreConfig",
    "TensorDataConfig",
    "TensorTrainConfig",
    "TrainConfig",
    "VisionConfig",
    "attach",
    "choose_l0",
    "collect",
    "compare",
    "evaluate",
    "explain",
    "harvest_store",
    "load",
    "match",
    "measure",
    "measure_steering",
    "report",
    "steer",
    "sweep",
    "train",
    "verify",
]

if TYPE_CHECKING:
    from sae.config import (
        CollectConfig,
        CompareConfig,
        EvalConfig,
        ExplainConfig,
        HarvestConfig,
        ImageDataConfig,
        ImageEvalConfig,
        ImageTrainConfig,
        ImportConfig,
        L0Config,
        MatchConfig,
        MeasureConfig,
        OptimConfig,
        SAEConfig,
        SteerConfig,
        SteerMeasureConfig,
        StoreConfig,
        TensorDataConfig,
        TensorTrainConfig,
        TrainConfig,
        VisionConfig,
    )
    from sae.evaluation.l0.run import choose_l0
    from sae.evaluation.matching.run import match
    from sae.evaluation.run import evaluate
    from sae.evaluation.semantic.run import measure
    from sae.features.collect.collect import collect
    from sae.features.explain.explain import explain
    from sae.features.steer.measure import measure_steering
    from sae.features.steer.steer import steer_run as steer
    from sae.harvest.attach import attach
    from sae.harvest.harvesting import harvest_store
    from sae.interop.opening import load
    from sae.models.autoencoder import Autoencoder
    from sae.models.saved import verify
    from sae.reporting.report import report
    from sae.reporting.variants import compare
    from sae.run import Run
    from sae.training.run import train
    from sae.training.sweep import sweep
    from sae_kernels import SparseCodes


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sae' has no attribute {name!r}; it offers {', '.join(sorted(_LAZY))}")
    module, _, attribute = _LAZY[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
