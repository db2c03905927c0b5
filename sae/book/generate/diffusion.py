"""Denoising diffusion: noise is added in T small steps, a network learns to predict it, and sampling removes it again.

diffusion = train_diffusion(x, lambda: MLPDenoiser(64), DiffusionConfig(), seed=0)
diffusion.sample(64, torch.Generator().manual_seed(0))      # [64, D] in the units of x
diffusion.with_steps(10)                                    # the same network, called ten times a sample
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sae.book.generate.base import Sampler, StepsConfig, count, fit, minibatches, seeded
from sae.config import check

LARGEST_BETA = 0.999  # of one step (Nichol & Dhariwal 2021, section 3.2)
Denoise = Callable[[Tensor, Tensor], Tensor]
"""x_t [N, D], t/T [N] -> the noise in x_t [N, D]."""


def cosine(steps: int) -> Tensor:
    """ᾱ_t ∝ cos²(π/2 (t/T + s)/(1 + s)), s = .008, t = 1 to T (Nichol & Dhariwal 2021, eq. 17), float64 [T]."""
    times = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008
    level = torch.cos(times * torch.pi / 2).square()
    return torch.cumprod((level[1:] / level[:-1]).clamp_min(1 - LARGEST_BETA), 0)


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(StepsConfig):
    """How a diffusion model is trained and sampled from."""

    times: int = 1000
    """T, the steps in which noise is added."""
    sampling: int = 50
    """Steps in which it is removed."""
    noise: float = 0.0
    """η: 0 adds no new noise on the way back (DDIM); 1 as much as DDPM adds, and with T steps it is DDPM."""
    batch: int = 128
    lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.times >= 2, "times", self.times, "at least 2")
        check(1 <= self.sampling <= self.times, "sampling", self.sampling, f"1 to {self.times}, the noise levels")
        check(0 <= self.noise <= 1, "noise", self.noise, "0 (DDIM) to 1 (DDPM)")


def diffuse(x: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """x_t = √ᾱ_t x + √(1 - ᾱ_t) ε (Ho et al. 2020, eq. 4), of x and ε [N, D] and `signal` ᾱ_t [N]."""
    signal = signal[:, None]
    return signal.sqrt() * x + (1 - signal).sqrt() * noise


class Parametrised(nn.Module):
    """ε̂ = √(1 - ᾱ_t) x_t + √ᾱ_t v(x_t, t), v the network (Salimans & Ho 2022, arXiv:2202.00512, section 4).

    From nearly pure noise it predicts the noise almost exactly, whatever the network's output; with plain ε̂ = v an
    error remains there, which the way back divides by √ᾱ_t.
    """

    signal: Tensor
    """ᾱ_t [T]."""

    def __init__(self, network: nn.Module, signal: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("signal", signal.float())

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x_t [N, D], t/T [N] -> the noise in x_t [N, D]."""
        signal = self.signal[(time * len(self.signal)).round().long() - 1][:, None]
        return (1 - signal).sqrt() * x + signal.sqrt() * self.network(x, time)


@torch.no_grad()
def walk_back(
    denoise: Denoise,
    x: Tensor,
    signal: Tensor,
    *,
    sampling: int,
    noise: float = 0.0,
    limit: float | None = None,
    generator: torch.Generator,
) -> Tensor:
    """From x_T to x_0 in `sampling` steps (DDIM: Song et al. 2021, eq. 12 and 16).

    x_s = √ᾱ_s x̂ + √(1 - ᾱ_s - σ²) ε̂ + σ ε, x̂ = (x_t - √(1 - ᾱ_t) ε̂) / √ᾱ_t,
    σ = η √((1 - ᾱ_s) / (1 - ᾱ_t)) √(1 - ᾱ_t / ᾱ_s).

    Args:
        denoise: predicts the noise.
        x: noise [N, D].
        signal: ᾱ_t of all times, [T].
        sampling: number of times visited, evenly from the last to the first.
        noise: η.
        limit: x̂ is clamped to [-limit, limit], the range of the data; None if they have no bound.
        generator: of ε.
    """
    times = torch.linspace(len(signal) - 1, 0, sampling).round().long()
    ends = [*times[1:].tolist(), None]
    for now, then in zip(times.tolist(), ends, strict=True):
        level, after = float(signal[now]), 1.0 if then is None else float(signal[then])
        predicted = denoise(x, torch.full((len(x),), (now + 1) / len(signal)))
        guess = (x - (1 - level) ** 0.5 * predicted) / level**0.5
        if limit is not None:
            guess = guess.clamp(-limit, limit)
            predicted = (x - level**0.5 * guess) / (1 - level) ** 0.5
        spread = noise * ((1 - after) / (1 - level) * (1 - level / after)) ** 0.5
        x = after**0.5 * guess + max(0.0, 1 - after - spread**2) ** 0.5 * predicted
        if spread:
            x = x + spread * torch.randn(x.shape, generator=generator)
    return x


@dataclass(frozen=True, eq=False, kw_only=True)
class Diffusion(Sampler):
    """A trained diffusion model of rows x = centre + scale · x_0."""

    network: nn.Module
    config: DiffusionConfig
    centre: Tensor
    """[D]."""
    scale: Tensor
    """[D]."""
    limit: float
    """Bound of |x_0|: that of the training rows."""

    def with_steps(self, sampling: int, noise: float = 0.0) -> Diffusion:
        """The same model, sampled from in another number of steps."""
        config = dataclasses.replace(self.config, sampling=sampling, noise=noise)
        return dataclasses.replace(self, config=config, evaluations=sampling)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples [n, D], in the units of x."""
        config = self.config
        start = torch.randn(n, len(self.centre), generator=generator)
        rows = walk_back(
            self.network,
            start,
            cosine(config.times),
            sampling=config.sampling,
            noise=config.noise,
            limit=self.limit,
            generator=generator,
        )
        return self.centre + self.scale * rows


def train_diffusion(
    x: Tensor, make: Callable[[], nn.Module], config: DiffusionConfig, *, seed: int, pixels: bool = True
) -> Diffusion:
    """Train a network to predict the noise: E ||ε - ε̂(x_t, t)||², t uniform (Ho et al. 2020, eq. 14).

    Args:
        x: rows [N, D], float32.
        make: builds the network, of noisy rows [N, D] and t/T [N] (see `Parametrised`).
        config: the settings.
        seed: of every random draw.
        pixels: whether rows are pixels in [0, 1], which are brought to [-1, 1]; others are standardised dimension by
            dimension. Samples stay within the largest magnitude that this gives.

    Raises:
        ConfigError: fewer rows than a batch.
    """
    half = torch.full((x.shape[1],), 0.5)
    centre, scale = (half, half) if pixels else (x.mean(0), x.std(0).clamp_min(1e-6))
    rows = (x - centre) / scale
    network = Parametrised(seeded(make, seed), cosine(config.times))

    def losses() -> Iterator[Tensor]:
        for clean, generator in minibatches(rows, config, seed=seed):
            times = torch.randint(config.times, (len(clean),), generator=generator)
            noise = torch.randn(clean.shape, generator=generator)
            predicted = network(diffuse(clean, noise, network.signal[times]), (times + 1) / config.times)
            yield (noise - predicted).square().sum(1).mean()

    return Diffusion(
        network=network,
        config=config,
        centre=centre,
        scale=scale,
        limit=rows.abs().max().item(),
        seconds=fit(network, losses(), config),
        parameters=count(network),
        evaluations=config.sampling,
    )
