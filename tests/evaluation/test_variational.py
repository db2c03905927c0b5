"""What latents of a Gaussian code carry: their variance over samples, and how many samples that takes."""

from __future__ import annotations

import math

import pytest
import torch

from sae.config import ConfigError
from sae.evaluation.variational import activity


def test_activity_is_the_variance_of_the_means_over_samples() -> None:
    mean = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    found = activity(mean, torch.zeros(2, 2))
    assert found.variance.tolist() == [2.0, 0.0]
    assert found.kl.tolist() == pytest.approx([(0.5 + 4.5) / 2, 0])
    assert found.active == 1


def test_one_sample_has_no_activity() -> None:
    with pytest.raises(ConfigError, match=r"expected the moments of two samples or more, .* got 1"):
        activity(torch.ones(1, 3), torch.full((1, 3), math.log(0.5)))
