"""Image settings that name parts which don't go together are refused, and named."""

from __future__ import annotations

from typing import Any

import pytest

from sae.config import ConfigError, VisionConfig
from sae.models.vision import completed

SHAPE = (1, 16, 16)


@pytest.mark.parametrize("part", ["stem", "head"])
@pytest.mark.parametrize("variant", ["ae", "vae", "topk"])
def test_two_levels_are_of_codebooks_alone(part: str, variant: str) -> None:
    with pytest.raises(ConfigError, match=f"--{part} two_level: arranges the rows of a codebook"):
        completed(VisionConfig(**{"variant": variant, part: "two_level"}), SHAPE)
    assert completed(VisionConfig(variant="vqvae", stem="two_level", head="two_level"), SHAPE).stem == "two_level"


@pytest.mark.parametrize(
    "given",
    [
        {"variant": "topk", "likelihood": "gaussian", "normalise": "scale"},
        {"variant": "linear", "likelihood": "gaussian", "normalise": "whiten"},
        {"variant": "vae", "stem": "none", "head": "none", "likelihood": "gaussian", "normalise": "centre"},
        {"variant": "vae", "stem": "none", "head": "none", "likelihood": "squared_error", "normalise": "scale"},
    ],
)
def test_a_likelihood_is_of_the_pixels_themselves(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"--normalise {given['normalise']}: a likelihood is of the pixels"):
        completed(VisionConfig(**given), SHAPE)
    assert completed(VisionConfig(**(given | {"normalise": "auto"})), SHAPE).normalise == "none"
    assert completed(VisionConfig(variant="topk"), SHAPE).normalise == "scale"
