"""Every setting of the toolkit: frozen dataclasses that are Python API, command-line flags and JSON at once.

The field names are the flags (`checkpoint_every` is `--checkpoint-every`), the text under a field is its help, the
checks in `__post_init__` run before anything is loaded. Nothing here imports torch.

    config = TrainConfig(harvest=HarvestConfig(model="demo", dataset="demo", layer=9), out=Path("runs/first"))
    from_json(TrainConfig, to_json(config)) == config
"""

from sae.config.features import CollectConfig, ExplainConfig, SteerConfig, SteerMeasureConfig
from sae.config.fields import TYPED, ConfigError, built, check, from_json, refuse_ignored, to_json, unknown_choice
from sae.config.image_variants import SPARSE, VisionConfig
from sae.config.images import ImageDataConfig, ImageEvalConfig, ImageTrainConfig, usual_epochs
from sae.config.imports import ImportConfig
from sae.config.matching import CompareConfig, L0Config, MatchConfig
from sae.config.measuring import MeasureConfig
from sae.config.run import Device, OptimConfig, RunConfig
from sae.config.tensors import TensorDataConfig, TensorTrainConfig, is_tensor_data
from sae.config.text import EvalConfig, HarvestConfig, StoreConfig, TrainConfig
from sae.config.variants import SAEConfig

__all__ = [
    "SPARSE",
    "TYPED",
    "CollectConfig",
    "CompareConfig",
    "ConfigError",
    "Device",
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
    "RunConfig",
    "SAEConfig",
    "SteerConfig",
    "SteerMeasureConfig",
    "StoreConfig",
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
