"""Two ways to take an optimizer step. They differ in how gradients are made, not in what is computed.

- `AutogradRoute`: any code, any loss terms, any precision, any optimizer; whole gradients, then the optimizer.
- `FusedRoute`: Adam on a code that lists few entries, in float32 on a CPU and in any precision on a GPU: one
  latent-major sweep makes the gradients of both matrices and updates them, and no F x d gradient is ever written (see
  `sae_kernels.fused_step`). What is particular to a variant is differentiated on the listed entries alone, a few
  numbers a token.

`choose_route` picks one; the run's log names it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sae.config import OptimConfig
from sae.models.autoencoder import Autoencoder
from sae.modules.losses import Term
from sae.training.optimizers import Adam, Optimizer
from sae.training.routes.autograd import AutogradRoute
from sae.training.routes.base import Route, StepContext, StepOutcome
from sae.training.routes.fused import FusedRoute
from sae_kernels import fused_backend

__all__ = ["AutogradRoute", "FusedRoute", "Route", "StepContext", "StepOutcome", "choose_route"]


def choose_route(
    model: Autoencoder,
    optimizer: Optimizer,
    terms: Sequence[Term],
    config: OptimConfig,
    *,
    auxk: int,
    compute: torch.dtype,
    site_widths: Sequence[int],
) -> Route:
    """The fused route for Adam, if it fits the model and the precision and can build every term's view."""
    autograd = AutogradRoute(model, optimizer, config, auxk, compute, site_widths)
    able = compute == torch.float32 or fused_backend(model.W_enc) == "gpu"
    if able and isinstance(optimizer, Adam) and FusedRoute.fits(model, terms, site_widths):
        return FusedRoute(model, optimizer, config, auxk, autograd)
    return autograd
