"""Loss terms that hold a code to a distribution: nats a sample, summed over latents.

A Gaussian code q(z|x) is held to the prior p(z) = N(0, 1), wholly or in parts: with q(z) the codes' aggregate,

    KL(q(z|x) || p) = I(x; z) + KL(q(z) || Π_j q(z_j)) + Σ_j KL(q(z_j) || p(z_j))       (Chen et al. 2018, eq. 2)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sae.modules.codes import Gaussian, Quantised, Sigmoid
from sae.modules.losses import term
from sae.modules.views import Entries, Everything


@term
def gaussian_kl(entries: Entries, free_bits: float = 0.0) -> Tensor:
    """KL(q(z|x) || N(0, 1)) = -½ Σ_j 1 + log σ_j² - μ_j² - σ_j² (Kingma & Welling 2014, appendix B), [N].

    With `free_bits` λ (nats a latent) a latent whose mean over the batch is below λ counts λ and has no gradient
    (Kingma et al. 2016, eq. 15).
    """
    kl = kl_per_latent(*_gaussian(entries).moments(entries.listed))
    if free_bits:
        kl = torch.where(kl.mean(0) < free_bits, free_bits, kl)
    return kl.sum(1)


def kl_per_latent(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) || N(0, 1)) of every latent [N, F], nats."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp())


@term
def capacity(entries: Entries, nats: float, over: float = 1.0) -> Tensor:
    """|KL - C|, C rising from 0 to `nats` over a share `over` of the steps (Burgess et al. 2018, eq. 8), alike in [N].

    KL is the batch's mean, as the published code has it.
    """
    at = nats * min(1.0, entries.progress / over)
    mean = gaussian_kl(entries).mean()
    return (mean - at).abs().expand(entries.listed.tokens)


@term
def total_correlation(entries: Entries, samples: int) -> Tensor:
    """log q(z) - Σ_j log q(z_j) at the drawn z, by minibatch-weighted sampling (Chen et al. 2018, eq. S3), [N].

    q(z) is estimated from the batch as Σ_m q(z|x_m) / (N M), M = `samples` in the data set.
    """
    mean, log_variance = _gaussian(entries).moments(entries.listed)
    log_q = gaussian_log_density(entries.codes.values.unsqueeze(1), mean.unsqueeze(0), log_variance.unsqueeze(0))
    weight = math.log(len(mean) * samples)
    joint = log_q.sum(2).logsumexp(1) - weight
    return joint - (log_q.logsumexp(1) - weight).sum(1)


def gaussian_log_density(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(z; μ, σ²), entry by entry, nats."""
    return -0.5 * (math.log(2 * math.pi) + log_variance + (z - mean).square() * (-log_variance).exp())


@term
def rate_kl(entries: Entries, rate: float) -> Tensor:
    """Σ_j KL(ρ || ρ̂_j) of Bernoulli rates, ρ̂_j the latents' mean value (Ng 2011, section 3), alike for all [N].

    ρ̂ is the batch's mean, or, where the trainer keeps a running one, that mean with the batch's gradient.
    """
    if not isinstance(entries.code, Sigmoid):
        raise ValueError(f"rate_kl: expected a code between 0 and 1 (sigmoid); got {entries.code.name!r}")
    found = entries.codes.values.float().mean(0)
    if entries.running is not None:
        found = entries.running + found - found.detach()
    found = found.clamp(1e-6, 1 - 1e-6)
    kl = rate * (rate / found).log() + (1 - rate) * ((1 - rate) / (1 - found)).log()
    return kl.sum().expand(entries.listed.tokens)


@term
def commitment(everything: Everything) -> Tensor:
    """||x - sg(e)||², which keeps the encoder near the atoms it chooses (van den Oord et al. 2017, eq. 3), [N P]."""
    return (everything.x - _atoms(everything).detach()).float().square().sum(1)


@term
def codebook(everything: Everything) -> Tensor:
    """||sg(x) - e||², which brings atoms to the rows that choose them (van den Oord et al. 2017, eq. 3), [N P]."""
    return (everything.x.detach() - _atoms(everything)).float().square().sum(1)


def _gaussian(entries: Entries) -> Gaussian:
    if not isinstance(entries.code, Gaussian):
        raise ValueError(f"a divergence from the prior needs a Gaussian code; got {entries.code.name!r}")
    return entries.code


def _atoms(everything: Everything) -> Tensor:
    if not isinstance(everything.entries.code, Quantised) or everything.decoded is None:
        raise ValueError(f"a codebook's terms need a quantised code; got {everything.entries.code.name!r}")
    return everything.decoded
