"""Sparse operations for sparse autoencoders: a PyTorch reference and faster backends, chosen by device.

Symbols: N tokens in a batch, d model width, F latents, K active latents a token. Weights are latent-major: row j of
W_enc and W_dec [F, d] belongs to latent j. This package knows nothing of `sae`.
"""

from sae_kernels.adam_step.op import adam_step
from sae_kernels.codes import SparseCodes
from sae_kernels.dispatch import backends_used, last_backend, use_backend
from sae_kernels.sparse_decode.op import sparse_decode
from sae_kernels.topk_encode.op import topk_encode

__all__ = [
    "SparseCodes",
    "adam_step",
    "backends_used",
    "last_backend",
    "sparse_decode",
    "topk_encode",
    "use_backend",
]
