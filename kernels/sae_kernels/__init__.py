"""Sparse operations for sparse autoencoders: a PyTorch reference and faster backends, picked by device.

Symbols: N tokens in a batch, d model width, F latents, K active latents a token. Weights are latent-major: row j of
W_enc and W_dec [F, d] belongs to latent j. This package imports nothing of `sae`.
"""

from sae_kernels.adam_step.naive import Adam, fill_numbers
from sae_kernels.adam_step.op import adam_step, clip_scale
from sae_kernels.batch_topk_encode.op import batch_topk_encode
from sae_kernels.buffers import Workspace
from sae_kernels.codes import SparseCodes
from sae_kernels.dispatch import backends_used, last_backend, use_backend
from sae_kernels.formats.naive import zero_moment
from sae_kernels.fused_step.op import (
    Copies,
    Parameters,
    RowGradients,
    StepForward,
    StepResult,
    copies_of,
    fused_backend,
    fused_forward,
    fused_update,
)
from sae_kernels.latent_sweep.op import SweepGradients, latent_sweep
from sae_kernels.pursue.op import pursue
from sae_kernels.sparse_decode.op import sparse_decode
from sae_kernels.threshold_encode.op import threshold_encode
from sae_kernels.topk_encode.op import topk_encode

__all__ = [
    "Adam",
    "Copies",
    "Parameters",
    "RowGradients",
    "SparseCodes",
    "StepForward",
    "StepResult",
    "SweepGradients",
    "Workspace",
    "adam_step",
    "backends_used",
    "batch_topk_encode",
    "clip_scale",
    "copies_of",
    "fill_numbers",
    "fused_backend",
    "fused_forward",
    "fused_update",
    "last_backend",
    "latent_sweep",
    "pursue",
    "sparse_decode",
    "threshold_encode",
    "topk_encode",
    "use_backend",
    "zero_moment",
]
