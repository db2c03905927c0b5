"""Bounds on the likelihood of held-out samples, and the active latents of a variational autoencoder.

bounds(model, config, x, samples=64, generator=...)      # nats a sample
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sae.config import ConfigError, VisionConfig
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import Gaussian, drawn
from sae.modules.divergences import gaussian_log_density, kl_per_latent
from sae.modules.likelihoods import bernoulli_nll, gaussian_nll

ACTIVE_VARIANCE = 0.01
"""Var(μ_j) over samples above which a latent is active (Burda et al. 2016, section 5.3)."""
CHUNK_NUMBERS = 20_000_000  # pixels decoded at a time


class Bounds(NamedTuple):
    """Of every sample [N], nats."""

    nll: Tensor
    """-log p(x|z) at one draw z."""
    kl: Tensor
    """KL(q(z|x) || p(z))."""
    elbo: Tensor
    """-(nll + kl): a lower bound on log p(x), estimated with one draw (Kingma & Welling 2014, eq. 3)."""
    importance: Tensor | None
    """The importance-weighted bound with K draws (Burda et al. 2016, eq. 8): between the ELBO and log p(x)."""


class Activity(NamedTuple):
    """Of every latent [F]."""

    kl: Tensor
    """Mean KL from the prior, nats."""
    variance: Tensor
    """Variance of the mean μ_j(x) over samples."""

    @property
    def active(self) -> int:
        """Number of active latents."""
        return int((self.variance > ACTIVE_VARIANCE).sum())


def negative_log_likelihood(config: VisionConfig, outputs: Tensor, x: Tensor) -> Tensor:
    """-log p(x|z) [N] from the head's outputs [N, D], nats; a squared error counts as the Gaussian of variance 1/2."""
    if config.likelihood == "bernoulli":
        return bernoulli_nll(outputs, x)
    mean = torch.sigmoid(outputs) if config.output == "sigmoid" else outputs
    variance = config.variance if config.likelihood == "gaussian" else 0.5
    return gaussian_nll((x - mean).square().sum(1), x.shape[1], variance)


@torch.no_grad()
def bounds(model: Autoencoder, config: VisionConfig, x: Tensor, *, samples: int, generator: torch.Generator) -> Bounds:
    """Bounds for x [N, D]; the importance-weighted one with exactly `samples` draws, None for 0.

    Raises:
        ValueError: the code is no Gaussian.
    """
    mean, log_variance = moments(model, x)
    nll = nll_at(model, config, drawn(mean, log_variance, generator), x)
    kl = kl_per_latent(mean, log_variance).sum(1)
    importance = _importance(model, config, x, mean, log_variance, samples, generator) if samples else None
    return Bounds(nll, kl, -(nll + kl), importance)


@torch.no_grad()
def moments(model: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and log-variances [N, F] of q(z|x).

    Raises:
        ValueError: the code is no Gaussian.
    """
    return gaussian_code(model).moments(model.select(model.embed(x)))


def gaussian_code(model: Autoencoder) -> Gaussian:
    """The autoencoder's code.

    Raises:
        ValueError: it is no Gaussian.
    """
    if not isinstance(model.code, Gaussian):
        raise ValueError(f"expected a Gaussian code, got {model.code.name!r}")
    return model.code


def activity(mean: Tensor, log_variance: Tensor) -> Activity:
    """KL and variance of the latents, from the moments [N, F] of many samples.

    Raises:
        ConfigError: fewer than two samples, over which nothing can vary.
    """
    if len(mean) < 2:
        raise ConfigError(f"mean: expected the moments of two samples or more, over which they vary, got {len(mean)}")
    return Activity(kl_per_latent(mean, log_variance).mean(0), mean.var(0))


def nll_at(model: Autoencoder, config: VisionConfig, z: Tensor, x: Tensor) -> Tensor:
    """-log p(x|z) [N] at latents z [N, F], nats; differentiable in z."""
    return negative_log_likelihood(config, model.outputs(model.dictionary.decode_dense(z)), x)


def _importance(
    model: Autoencoder,
    config: VisionConfig,
    x: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    samples: int,
    generator: torch.Generator,
) -> Tensor:
    """log 1/K Σ_k p(x|z_k) p(z_k) / q(z_k|x) [N], as many draws at a time as memory is meant for."""
    at_once = max(1, min(samples, CHUNK_NUMBERS // x.numel()))
    total = torch.full((len(x),), -torch.inf, dtype=torch.float64)
    zero = torch.zeros(())
    for start in range(0, samples, at_once):
        n = min(at_once, samples - start)
        m, v = mean.repeat(n, 1), log_variance.repeat(n, 1)
        z = drawn(m, v, generator)
        log_prior = gaussian_log_density(z, zero, zero).sum(1)
        log_q = gaussian_log_density(z, m, v).sum(1)
        weights = -nll_at(model, config, z, x.repeat(n, 1)) + log_prior - log_q
        total = torch.logaddexp(total, weights.double().cpu().view(n, -1).logsumexp(0))
    return total - math.log(samples)
