"""The variational code: every latent is a Gaussian, whose mean and log-variance the encoder computes."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.modules.codes.base import Code, dense, register
from sae_kernels import SparseCodes

LOG_VARIANCE_LIMITS = (-12.0, 12.0)  # outside, exp() is useless to a squared error and gradients explode


@register
class Gaussian(Code):
    """z = μ + σ ε, ε ~ N(0, 1), with (μ, log σ²) = W x + b (Kingma & Welling 2014, section 2.4).

    The encoder has 2 F rows: the means, then the log-variances (clamped to ±12). A training step decodes a sample;
    `activate`, and with it everything after training, returns the mean.
    """

    name = "gaussian"
    rows = 2
    sparse = False
    stochastic = True

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """Lists 2 F numbers for each token, means and log-variances."""
        return dense(x, W_enc, b_enc, b_pre)

    def moments(self, listed: SparseCodes) -> tuple[Tensor, Tensor]:
        """Listed pre-activations -> means [N, F] and log-variances [N, F] of q(z|x)."""
        mean, log_variance = listed.values.float().chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE_LIMITS)

    def activate(self, listed: SparseCodes) -> SparseCodes:
        """The means."""
        mean, _ = self.moments(listed)
        return SparseCodes.dense(mean)

    def sample(self, listed: SparseCodes, generator: torch.Generator) -> SparseCodes:
        """A draw; gradients pass through it to mean and variance, ε being the noise."""
        return SparseCodes.dense(drawn(*self.moments(listed), generator))

    def rescaled(self, factors: Tensor) -> None:
        del factors  # the prior fixes the scale


def drawn(mean: Tensor, log_variance: Tensor, generator: torch.Generator) -> Tensor:
    """μ + σ ε for every entry, ε ~ N(0, 1) from the generator; gradients reach mean and variance."""
    noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean.device)
    return mean + (0.5 * log_variance).exp() * noise
