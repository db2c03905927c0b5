"""The forward process and DDIM against closed forms of a Gaussian; training against what it should give back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sae.book.generate.denoisers import ConvolutionalDenoiser, MLPDenoiser
from sae.book.generate.diffusion import (
    Denoise,
    Diffusion,
    DiffusionConfig,
    cosine,
    diffuse,
    train_diffusion,
    walk_back,
)
from sae.config import ConfigError

MEAN, SPREAD = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([0.1, 0.7, 1.0])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def truth(kept: Tensor) -> Denoise:
    """E[ε | x_t] for data N(MEAN, SPREAD²)."""

    def denoise(x: Tensor, time: Tensor) -> Tensor:
        level = kept[(time * len(kept)).round().long() - 1].float()[:, None]
        return (1 - level).sqrt() * (x - level.sqrt() * MEAN) / (level * SPREAD**2 + 1 - level)

    return denoise


def test_the_share_of_signal_falls_from_all_to_almost_none() -> None:
    for steps in (50, 1000):
        kept = cosine(steps)
        assert kept.shape == (steps,)
        assert (kept.diff() < 0).all()
        assert kept[0] > 0.9
        assert 0 < kept[-1] < 1e-3


def test_the_schedule_is_the_paper_s() -> None:
    """Half of the angle is a half, but for the offset s."""
    s = 0.008
    level = math.cos((0.5 + s) / (1 + s) * math.pi / 2) ** 2 / math.cos(s / (1 + s) * math.pi / 2) ** 2
    assert cosine(1000)[499].item() == pytest.approx(level)


def test_the_forward_process_has_the_variance_of_its_closed_form() -> None:
    generator = seeded()
    clean = MEAN + SPREAD * torch.randn(40_000, 3, generator=generator)
    for level in (0.9, 0.3):
        noisy = diffuse(clean, torch.randn(clean.shape, generator=generator), torch.full((len(clean),), level))
        torch.testing.assert_close(noisy.mean(0), level**0.5 * MEAN, atol=0.02, rtol=0)
        torch.testing.assert_close(noisy.var(0), level * SPREAD**2 + 1 - level, atol=0.02, rtol=0)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_sampling_with_the_true_noise_gives_the_gaussian_back(noise: float) -> None:
    kept = cosine(200)
    start = torch.randn(8_000, 3, generator=seeded())
    found = walk_back(truth(kept), start, kept, sampling=200, noise=noise, generator=seeded(1))
    torch.testing.assert_close(found.mean(0), MEAN, atol=0.04, rtol=0)
    torch.testing.assert_close(found.std(0), SPREAD, atol=0.04, rtol=0.02)


def test_without_noise_the_way_back_is_a_function_of_the_start_alone() -> None:
    kept = cosine(100)
    start = torch.randn(16, 3, generator=seeded())
    one, two = (walk_back(truth(kept), start, kept, sampling=20, generator=seeded(s)) for s in (1, 2))
    assert torch.equal(one, two)
    one, two = (walk_back(truth(kept), start, kept, sampling=20, noise=1.0, generator=seeded(s)) for s in (1, 2))
    assert not torch.equal(one, two)


def test_the_network_is_called_as_often_as_said() -> None:
    calls = []
    network = torch.nn.Identity()
    network.register_forward_hook(lambda *_: calls.append(1))

    class Zero(torch.nn.Module):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            assert time.shape == (len(x),)
            return 0 * network(x)

    model = Diffusion(
        network=Zero(),
        config=DiffusionConfig(times=100, sampling=7),
        centre=torch.zeros(3),
        scale=torch.ones(3),
        limit=1.0,
        seconds=0.0,
        parameters=0,
        evaluations=7,
    )
    for sampler in (model, model.with_steps(13)):
        calls.clear()
        sampler.sample(4, seeded())
        assert len(calls) == sampler.evaluations


def test_training_learns_two_points_and_repeats_by_seed() -> None:
    """Data at (.1, .9) and (.9, .1) alone: samples are near one of them, and near each about as often."""
    corners = torch.tensor([[0.1, 0.9], [0.9, 0.1]]).repeat(64, 1)
    config = DiffusionConfig(times=100, sampling=20, steps=200, batch=64, lr=3e-3)
    models = [train_diffusion(corners, lambda: MLPDenoiser(2, 32, 2), config, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (model.sample(200, seeded()) for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    distance = torch.cdist(first, corners[:2])
    assert (distance.min(1).values < 0.15).float().mean() > 0.75
    assert 0.3 < (distance.argmin(1) == 0).float().mean() < 0.7


def test_rows_that_are_no_pixels_come_back_in_their_own_units() -> None:
    rows = 100 + 7 * torch.randn(256, 2, generator=seeded())
    config = DiffusionConfig(times=100, sampling=20, steps=150, batch=64)
    found = train_diffusion(rows, lambda: MLPDenoiser(2, 32, 2), config, seed=0, pixels=False).sample(500, seeded())
    torch.testing.assert_close(found.mean(0), rows.mean(0), atol=2.0, rtol=0)
    torch.testing.assert_close(found.std(0), rows.std(0), atol=2.0, rtol=0)


def test_the_convolutional_network_keeps_the_shape_and_starts_without_noise() -> None:
    network = ConvolutionalDenoiser((3, 12, 8), width=8)
    x = torch.randn(5, 3 * 12 * 8)
    assert torch.equal(network(x, torch.rand(5)), torch.zeros_like(x))
    with pytest.raises(ConfigError, match="multiples of 4"):
        ConvolutionalDenoiser((1, 10, 8))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--sampling 11: expected 1 to 10"):
        DiffusionConfig(times=10, sampling=11)
    with pytest.raises(ConfigError, match=r"--batch 128: expected at most 3"):
        train_diffusion(torch.zeros(3, 2), lambda: MLPDenoiser(2), DiffusionConfig(), seed=0)
