"""Denoising diffusion: noise is added in T small steps, a network learns to tell it, and sampling takes it off again.

diffusion = train_diffusion(x, lambda: MLPDenoiser(64), DiffusionConfig(), seed=0)
diffusion.sample(64, torch.Generator().manual_seed(0))      # [64, D] in the units of x
diffusion.with_steps(10)                                    # the same network, called ten times a sample
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sae.book.generate.base import count, minibatches, seeded, set_rate
from sae.config import check, unknown_choice
from sae.training.schedules import course

LARGEST_BETA = 0.999  # of one step of the cosine schedule (Nichol & Dhariwal 2021, section 3.2)
Denoise = Callable[[Tensor, Tensor], Tensor]
"""x_t [N, D], t/T [N] -> the noise in x_t [N, D]."""


def cosine(steps: int) -> Tensor:
    """ᾱ_t ∝ cos²(π/2 (t/T + s)/(1 + s)), s = .008, t = 1 to T (Nichol & Dhariwal 2021, eq. 17), float64 [T]."""
    times = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008
    level = torch.cos(times * torch.pi / 2).square()
    return torch.cumprod((level[1:] / level[:-1]).clamp_min(1 - LARGEST_BETA), 0)


def linear(steps: int) -> Tensor:
    """ᾱ_t = Π (1 - β), β rising evenly from 1e-4 to .02 for T = 1000 (Ho et al. 2020, section 4), float64 [T].

    For other T the rates are scaled by 1000/T, so that it ends as noisy.
    """
    rates = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * 1000 / steps
    return torch.cumprod(1 - rates.clamp_max(LARGEST_BETA), 0)


SCHEDULES: dict[str, Callable[[int], Tensor]] = {"cosine": cosine, "linear": linear}


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """How a diffusion model is trained and sampled from."""

    schedule: str = "cosine"
    """In `SCHEDULES`."""
    times: int = 1000
    """T, the steps in which noise is added."""
    sampling: int = 50
    """Steps in which it is taken off again."""
    noise: float = 0.0
    """η: 0 takes it off without new noise (DDIM); 1 with as much as DDPM adds, which with T steps it is."""
    steps: int = 2000
    """Of training."""
    batch: int = 128
    lr: float = 1e-3
    """Adam's, falling to zero over the second half."""

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown_choice("--schedule", self.schedule, SCHEDULES)
        check(self.times >= 2, "times", self.times, "at least 2")
        check(1 <= self.sampling <= self.times, "sampling", self.sampling, f"1 to {self.times}, the noise levels")
        check(0 <= self.noise <= 1, "noise", self.noise, "0 (DDIM) to 1 (DDPM)")
        check(self.steps >= 1, "steps", self.steps, "at least 1")
        check(self.batch >= 1, "batch", self.batch, "at least 1")
        check(self.lr > 0, "lr", self.lr, "more than 0")


def diffuse(x: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """x_t = √ᾱ_t x + √(1 - ᾱ_t) ε (Ho et al. 2020, eq. 4), of x and ε [N, D] and `kept` ᾱ_t [N]."""
    kept = kept[:, None]
    return kept.sqrt() * x + (1 - kept).sqrt() * noise


class Parametrised(nn.Module):
    """ε̂ = √(1 - ᾱ_t) x_t + √ᾱ_t v(x_t, t), v the network (Salimans & Ho 2022, arXiv:2202.00512, section 4).

    Of nearly pure noise it tells nearly all, whatever the network says; plain ε̂ = v leaves there an error that the way
    back divides by √ᾱ_t.
    """

    kept: Tensor

    def __init__(self, network: nn.Module, kept: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("kept", kept.float())

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x_t [N, D], t/T [N] -> the noise in x_t [N, D]."""
        kept = self.kept[(time * len(self.kept)).round().long() - 1][:, None]
        return (1 - kept).sqrt() * x + kept.sqrt() * self.network(x, time)


@torch.no_grad()
def walk_back(
    denoise: Denoise,
    x: Tensor,
    kept: Tensor,
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
        denoise: tells the noise.
        x: noise [N, D].
        kept: ᾱ_t of all times, [T].
        sampling: how many of them are visited, evenly from the last to the first.
        noise: η.
        limit: x̂ is held between -limit and limit, where the data are; None where they have no bound.
        generator: of ε.
    """
    times = torch.linspace(len(kept) - 1, 0, sampling).round().long()
    ends = [*times[1:].tolist(), None]
    for now, then in zip(times.tolist(), ends, strict=True):
        level, after = float(kept[now]), 1.0 if then is None else float(kept[then])
        told = denoise(x, torch.full((len(x),), (now + 1) / len(kept)))
        guess = (x - (1 - level) ** 0.5 * told) / level**0.5
        if limit is not None:
            guess = guess.clamp(-limit, limit)
            told = (x - level**0.5 * guess) / (1 - level) ** 0.5
        spread = noise * ((1 - after) / (1 - level) * (1 - level / after)) ** 0.5
        x = after**0.5 * guess + max(0.0, 1 - after - spread**2) ** 0.5 * told
        if spread:
            x = x + spread * torch.randn(x.shape, generator=generator)
    return x


@dataclass(frozen=True, eq=False)
class Diffusion:
    """A trained diffusion model of rows x = centre + scale · x_0; see `sae.book.generate.base.Sampler`."""

    network: nn.Module
    config: DiffusionConfig
    centre: Tensor
    """[D]."""
    scale: Tensor
    """[D]."""
    limit: float
    """Bound of |x_0|: that of the training rows."""
    seconds: float
    encodes: bool = False

    @property
    def evaluations(self) -> int:
        """See `Sampler`."""
        return self.config.sampling

    @property
    def parameters(self) -> int:
        """See `Sampler`."""
        return count(self.network)

    def with_steps(self, sampling: int, noise: float = 0.0) -> Diffusion:
        """The same model, sampled from in another number of steps."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, sampling=sampling, noise=noise))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See `Sampler`."""
        start = torch.randn(n, len(self.centre), generator=generator)
        kept = SCHEDULES[self.config.schedule](self.config.times)
        found = walk_back(
            self.network,
            start,
            kept,
            sampling=self.config.sampling,
            noise=self.config.noise,
            limit=self.limit,
            generator=generator,
        )
        return self.centre + self.scale * found


def train_diffusion(
    x: Tensor,
    make: Callable[[], nn.Module],
    config: DiffusionConfig,
    *,
    seed: int,
    pixels: bool = True,
) -> Diffusion:
    """Train a network to tell the noise: E ||ε - ε̂(x_t, t)||², t uniform (Ho et al. 2020, eq. 14).

    Args:
        x: rows [N, D], float32.
        make: builds the network, of noisy rows [N, D] and t/T [N] (see `Parametrised`).
        config: the settings.
        seed: of every random draw.
        pixels: the rows are pixels in [0, 1], brought to [-1, 1]; else they are standardised dimension by dimension.
            Samples are held within the largest number that this gives.

    Raises:
        ConfigError: fewer rows than a batch.
    """
    half = torch.full((x.shape[1],), 0.5)
    centre, scale = (half, half) if pixels else (x.mean(0), x.std(0).clamp_min(1e-6))
    network = Parametrised(seeded(make, seed), SCHEDULES[config.schedule](config.times))
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    begun = time.perf_counter()
    rows = (x - centre) / scale
    for step, (clean, generator) in enumerate(minibatches(rows, batch=config.batch, steps=config.steps, seed=seed)):
        times = torch.randint(config.times, (len(clean),), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        told = network(diffuse(clean, noise, network.kept[times]), (times + 1) / config.times)
        loss = (noise - told).square().sum(1).mean()
        set_rate(optimizer, config.lr * course(step, config.steps, warmup=0.05, decay=0.5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Diffusion(network, config, centre, scale, rows.abs().max().item(), time.perf_counter() - begun)
