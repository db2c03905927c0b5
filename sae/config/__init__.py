"""Settings: frozen dataclasses whose fields are the flags of the command line. Imports no torch."""

from sae.config.fields import TYPED, ConfigError, built, check, from_json, refuse_ignored, to_json, unknown_choice
from sae.config.images import SPARSE, ImageDataConfig, ImageEvalConfig, ImageTrainConfig, VisionConfig, usual_epochs
from sae.config.tensors import TensorDataConfig, TensorTrainConfig, is_tensor_data
from sae.config.text import (
    CollectConfig,
    Device,
    EvalConfig,
    ExplainConfig,
    HarvestConfig,
    OptimConfig,
    RunConfig,
    SAEConfig,
    SteerConfig,
    TrainConfig,
)

__all__ = [
    "SPARSE",
    "TYPED",
    "CollectConfig",
    "ConfigError",
    "Device",
    "EvalConfig",
    "ExplainConfig",
    "HarvestConfig",
    "ImageDataConfig",
    "ImageEvalConfig",
    "ImageTrainConfig",
    "OptimConfig",
    "RunConfig",
    "SAEConfig",
    "SteerConfig",
    "TensorDataConfig",
    "TensorTrainConfig",
    "TrainConfig",
    "VisionConfig",
    "built",
    "check",
    "from_json",
    "is_tensor_data",
    "refuse_ignored",
    "to_json",
    "unknown_choice",
    "usual_epochs",
]
