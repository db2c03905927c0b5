"""Small finished runs on digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sae.config import ImageDataConfig, ImageTrainConfig, VisionConfig
from sae.runs.images import ImageRun, open_image_run
from sae.training.run import train


def finished(out: Path, *, epochs: int, **vision: Any) -> ImageRun:
    """A run on 256 digits."""
    config = ImageTrainConfig(
        images=ImageDataConfig(data="digits", limit=256), vision=VisionConfig(**vision), epochs=epochs, out=out
    )
    train(config)
    return open_image_run(out)


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> ImageRun:
    """A VAE of 4 latents."""
    return finished(tmp_path_factory.mktemp("runs") / "vae", epochs=20, variant="vae", width=4, hidden=(32,))


@pytest.fixture(scope="session")
def vqvae(tmp_path_factory: pytest.TempPathFactory) -> ImageRun:
    """A VQ-VAE of 4 x 4 codes of 8 atoms."""
    settings = {"variant": "vqvae", "width": 8, "code_dim": 4, "channels": (8,)}
    return finished(tmp_path_factory.mktemp("runs") / "vqvae", epochs=5, **settings)


@pytest.fixture(scope="session")
def vqvae2(tmp_path_factory: pytest.TempPathFactory) -> ImageRun:
    """A VQ-VAE-2 of 2 x 2 and 4 x 4 codes."""
    settings = {"variant": "vqvae2", "width": 8, "code_dim": 4, "channels": (8,)}
    return finished(tmp_path_factory.mktemp("runs") / "vqvae2", epochs=2, **settings)
