"""Samples through a VAE's decoder."""

from __future__ import annotations

import pytest
import torch

from sae.book.generate.diffusion import DiffusionConfig
from sae.book.generate.latent import from_prior, train_latent_diffusion
from sae.config import ConfigError
from sae.runs.images import ImageRun, decode_dense, dense_codes


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_samples_of_a_vae_are_decoded_draws_of_the_prior(vae: ImageRun) -> None:
    z = torch.randn(9, 4, generator=seeded())
    model = from_prior(vae)
    assert torch.equal(model.sample(9, seeded()), decode_dense(vae.model, z))
    assert (model.evaluations, model.encodes) == (1, True)
    assert model.seconds > 0
    head = vae.model.head
    assert head is not None
    assert model.parameters == (4 + 1) * head.dim + sum(p.numel() for p in head.parameters())


def test_a_model_without_a_prior_is_refused(vqvae: ImageRun) -> None:
    with pytest.raises(ConfigError, match="--variant vqvae has no prior; expected a VAE"):
        from_prior(vqvae)


def test_latent_diffusion_gives_latents_that_are_spread_as_the_data_s(vae: ImageRun) -> None:
    codes = dense_codes(vae.model, vae.images("train").all())
    config = DiffusionConfig(times=100, sampling=20, steps=200, batch=64, lr=3e-3)
    model = train_latent_diffusion(vae, config, seed=0, hidden=32)
    found = model.diffusion.sample(500, seeded())
    assert ((found.mean(0) - codes.mean(0)).abs() < 0.3 * codes.std(0)).all()
    assert ((found.std(0) / codes.std(0)).log().abs() < 0.3).all()
    assert torch.equal(model.sample(5, seeded()), decode_dense(vae.model, model.diffusion.sample(5, seeded())))
    assert model.evaluations == 21
    assert model.seconds > model.diffusion.seconds
