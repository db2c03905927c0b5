"""VAE-GAN: each part is moved by its own losses alone; it learns, and repeats by seed."""

from __future__ import annotations

import pytest
import torch

from sae.book.generate.gan import VAEGANConfig, train_vaegan
from sae.book.generate.latent import VAESampler
from sae.config import ConfigError, VisionConfig
from sae.data.images import open_images
from sae.models.autoencoder import Autoencoder
from sae.models.stems import MLPStem
from sae.models.vision import recipe_of

SHAPE = (1, 8, 8)


def model(variant: str = "vae") -> Autoencoder:
    return recipe_of(VisionConfig(variant=variant, width=8, hidden=(64,)), SHAPE, 256).model


def digits() -> torch.Tensor:
    return open_images("digits", limit=256).all()


def train(steps: int, seed: int = 0, gamma: float = 0.02) -> VAESampler:
    config = VAEGANConfig(steps=steps, lr=2e-3, gamma=gamma)
    return train_vaegan(digits(), model(), MLPStem(64, [64]), config, seed=seed)


def test_reconstructions_come_nearer_to_the_images_than_the_mean_and_samples_are_pixels() -> None:
    x = digits()
    hybrid = train(400)
    error = (x - hybrid.reconstruct(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert error < 0.8
    found = hybrid.sample(20, torch.Generator().manual_seed(0))
    assert found.shape == (20, 64)
    assert ((found >= 0) & (found <= 1)).all()
    assert hybrid.encodes
    assert hybrid.evaluations == 1


def test_the_same_seed_gives_the_same_model() -> None:
    draws = [train(5, seed).sample(4, torch.Generator().manual_seed(0)) for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_gamma_moves_the_decoder_and_leaves_the_encoders_first_step_alone() -> None:
    """The encoder has no part in the game, and γ none in the encoder's loss."""
    one, other = (train(1, gamma=gamma).model for gamma in (0.0, 100.0))
    assert torch.equal(one.W_enc, other.W_enc)
    assert one.stem is not None
    assert other.stem is not None
    for a, b in zip(one.stem.parameters(), other.stem.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.dictionary.W, other.dictionary.W)


def test_only_a_gaussian_code_will_do() -> None:
    with pytest.raises(ConfigError, match=r"expected a Gaussian code \(--variant vae\), got 'identity'"):
        train_vaegan(digits(), model("ae"), MLPStem(64, [64]), VAEGANConfig(steps=1), seed=0)
