"""The game's losses by hand, and a GAN that learns a small set and repeats by seed."""

from __future__ import annotations

import math

import pytest
import torch

from sae.book.generate.gan import (
    Discriminator,
    GANConfig,
    Generator,
    discriminator_loss,
    generator_loss,
    train_gan,
)
from sae.config import ConfigError
from sae.models.heads import ConvolutionalHead, MLPHead
from sae.models.stems import ConvolutionalStem, MLPStem


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_losses_are_the_papers() -> None:
    """-log D(x) - log(1 - D(G)), and -log D(G)."""
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])
    p, q = torch.sigmoid(real), torch.sigmoid(fake)
    assert discriminator_loss(real, fake).item() == pytest.approx((-p.log() - (1 - q).log()).mean().item())
    assert generator_loss(fake).item() == pytest.approx(-q.log().mean().item())


def test_a_discriminator_that_knows_nothing_loses_two_logs_of_two() -> None:
    zero = torch.zeros(3)
    assert discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))


def test_samples_come_near_the_data() -> None:
    """Data of one point: after training, samples are nearer to it than at the start by far."""
    x = torch.full((64, 4), 0.9)
    x[:, 0] = 0.1

    def distance(steps: int) -> float:
        config = GANConfig(latents=4, steps=steps, batch=32, lr=5e-3)
        gan = train_gan(x, MLPStem(4, [16]), MLPHead(4, [16], True), config, seed=0)
        return (gan.sample(100, seeded()) - x[0]).square().sum(1).mean().item()

    assert distance(150) < 0.2 * distance(1)


def test_the_same_seed_gives_the_same_samples_and_pixels_stay_in_range() -> None:
    shape = (1, 8, 8)
    x = torch.rand(64, 64, generator=seeded())

    def train(seed: int) -> torch.Tensor:
        stem, head = ConvolutionalStem(shape, [4, 8]), ConvolutionalHead(shape, [4, 8], True, True)
        gan = train_gan(x, stem, head, GANConfig(latents=5, steps=12, batch=16), seed=seed)
        assert gan.parameters == sum(p.numel() for p in head.parameters()) + (5 + 1) * head.dim
        return gan.sample(10, seeded())

    torch.manual_seed(7)
    first = train(0)
    torch.manual_seed(8)
    assert torch.equal(first, train(0))
    assert not torch.equal(first, train(1))
    assert first.shape == (10, 64)
    assert ((first >= 0) & (first <= 1)).all()


def test_training_leaves_the_global_generator_alone() -> None:
    x, stem, head = torch.rand(8, 4), MLPStem(4, [4]), MLPHead(4, [4], True)
    before = torch.random.get_rng_state()
    train_gan(x, stem, head, GANConfig(steps=2, batch=4), seed=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--batch 64: expected at most 8"):
        train_gan(torch.rand(8, 4), MLPStem(4, [4]), MLPHead(4, [4], True), GANConfig(), seed=0)
    with pytest.raises(ConfigError, match="expected one row a sample, got 4"):
        Discriminator(ConvolutionalStem((1, 4, 4), [4], rows=3), 0)


def test_parts_of_one_seed_start_from_different_draws() -> None:
    stems = [MLPStem(64, (8,)) for _ in range(2)]
    maker, critic = Generator(8, MLPHead(64, (8,), True), seed=0), Discriminator(stems[0], seed=0)
    other = Discriminator(stems[1], seed=1)
    starts = [part.flatten()[:8] for part in (maker.linear.weight, maker.head.layers[0].weight, critic.out.weight,
              stems[0].layers[0].weight, other.out.weight, stems[1].layers[0].weight)]  # fmt: skip
    # a start is uniform up to a bound of its own: signs tell whether two streams are one
    signs = {tuple((start > 0).tolist()) for start in starts}
    assert len(signs) == len(starts)
