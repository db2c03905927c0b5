"""The variational code: every latent a Gaussian, whose mean and log-variance the encoder gives."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.modules.codes.base import Code, dense, register
from sae_kernels import SparseCodes

LOG_VARIANCE_LIMITS = (-12.0, 12.0)  # outside, exp() leaves what a squared error can use and gradients explode


@register
class Gaussian(Code):
    """z = μ + σ ε, ε ~ N(0, 1), with (μ, log σ²) = W x + b (Kingma & Welling 2014, section 2.4).

    The encoder has 2 F rows: means first, log-variances (clamped to ±12) behind. A training step decodes a draw;
    `activate`, and with it everything after training, gives the mean.
    """

    name = "gaussian"
    rows = 2
    stochastic = True

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """See `Code`; lists 2 F numbers a token, means and log-variances."""
        return dense(x, W_enc, b_enc, b_pre)

    def moments(self, listed: SparseCodes) -> tuple[Tensor, Tensor]:
        """Listed pre-activations -> means [N, F] and log-variances [N, F] of q(z|x)."""
        mean, log_variance = listed.values.float().chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE_LIMITS)

    def activate(self, listed: SparseCodes) -> SparseCodes:
        """See `Code`; the means."""
        mean, _ = self.moments(listed)
        return SparseCodes.dense(mean)

    def sample(self, listed: SparseCodes, generator: torch.Generator) -> SparseCodes:
        """See `Code`; gradients go through the draw to mean and variance, ε being the noise."""
        return SparseCodes.dense(drawn(*self.moments(listed), generator))

    def rescaled(self, factors: Tensor) -> None:
        """See `Code`; the prior fixes the scale."""
        del factors


def drawn(mean: Tensor, log_variance: Tensor, generator: torch.Generator) -> Tensor:
    """μ + σ ε, ε ~ N(0, 1) of the generator, entry by entry; gradients go to mean and variance."""
    noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean.device)
    return mean + (0.5 * log_variance).exp() * noise
