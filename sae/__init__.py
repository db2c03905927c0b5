"""Sparsight: train sparse autoencoders on language-model activations, prove how good they are, look inside.

    import sae
    model = sae.load("runs/demo")
    codes = model.encode(x)          # x [N, d] -> SparseCodes
    x_hat = model.decode(codes)

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
    "load": "sae.models.saved",
    "attach": "sae.harvest.attach",
    "Autoencoder": "sae.models.autoencoder",
    "SparseCodes": "sae_kernels",
    "train": "sae.training.run",
    "evaluate": "sae.evaluation.run",
    "TrainConfig": "sae.config",
    "EvalConfig": "sae.config",
}
__all__ = ["Autoencoder", "EvalConfig", "SparseCodes", "TrainConfig", "attach", "evaluate", "load", "train"]

if TYPE_CHECKING:
    from sae.config import EvalConfig, TrainConfig
    from sae.evaluation.run import evaluate
    from sae.harvest.attach import attach
    from sae.models.autoencoder import Autoencoder
    from sae.models.saved import load
    from sae.training.run import train
    from sae_kernels import SparseCodes


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sae' has no attribute {name!r}; it offers {', '.join(sorted(_LAZY))}")
    return getattr(importlib.import_module(_LAZY[name]), name)
