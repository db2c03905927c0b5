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

from sae.config import ConfigError, OptimConfig
from sae.models.autoencoder import Autoencoder
from sae.models.recipe import Recipe
from sae.modules.losses import Term
from sae.training.optimizers import Adam, Optimizer
from sae.training.routes.autograd import AutogradRoute
from sae.training.routes.base import Route, StepContext, StepOutcome
from sae.training.routes.fused import FusedRoute
from sae_kernels import fused_backend

__all__ = [
    "AutogradRoute",
    "FusedRoute",
    "Route",
    "StepContext",
    "StepOutcome",
    "check_weights",
    "choose_route",
    "takes_fused",
]


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
    if _able(config, compute, model.W_enc) and FusedRoute.fits(model, terms, site_widths):
        assert isinstance(optimizer, Adam)
        return FusedRoute(model, optimizer, config, auxk, autograd)
    return autograd


def _able(config: OptimConfig, compute: torch.dtype, tensor: torch.Tensor) -> bool:
    return config.optimizer == "adam" and (compute == torch.float32 or fused_backend(tensor) == "gpu")


def takes_fused(recipe: Recipe, config: OptimConfig, compute: torch.dtype, device: torch.device) -> bool:
    """Whether `choose_route` will give a recipe's model the fused route on a device."""
    able = _able(config, compute, torch.empty(0, device=device))
    return able and FusedRoute.fits(recipe.model, recipe.terms, recipe.target_widths)


def check_weights(recipe: Recipe, config: OptimConfig, compute: torch.dtype, device: torch.device) -> None:
    """Refuse weights in fewer bits where the fused route is not taken: whole gradients would need them in float32.

    Raises:
        ConfigError: names the variant and the precision.
    """
    if config.weights != "float32" and not takes_fused(recipe, config, compute, device):
        raise ConfigError(
            f"--weights {config.weights}: needs the fused step, which does not take variant {recipe.config.variant} "
            f"with products in {str(compute).removeprefix('torch.')} on a {device.type}"
        )
