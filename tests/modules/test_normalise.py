"""Input normalisation: the sizes its maps leave, and inputs that leave nothing to scale."""

from __future__ import annotations

import pytest
import torch

from sae.config import ConfigError
from sae.modules.normalise import fit, layer_norm


def rows(n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, d + 1) + 3


@pytest.mark.parametrize(("name", "size"), [("scale", 6), ("centre", 6), ("whiten", 4), ("layer_norm", 5)])
def test_mean_squares_are_as_the_module_says(name: str, size: int) -> None:
    x = rows(400, 6)
    if name == "whiten":
        x[:, 4:] = x[:, :2]  # rank 4
    mapped = layer_norm(x)[0] if name == "layer_norm" else fit(name, x, [6]).apply(x)
    assert mapped.square().sum(1).mean().item() == pytest.approx(size, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "x"),
    [
        ("scale", torch.zeros(9, 6)),
        ("centre", torch.full((9, 6), 0.1)),
        ("whiten", torch.full((9, 6), 0.1)),
        ("whiten", torch.zeros(9, 6)),
    ],
)
def test_inputs_that_do_not_vary_are_refused(name: str, x: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=f"--normalise {name}: nothing varies in 9 rows of site 0; expected none"):
        fit(name, x, [6])
    assert fit("none", x, [6]).apply(x).equal(x)


def test_a_site_that_does_not_vary_is_named() -> None:
    x = torch.cat([rows(9, 2), torch.zeros(9, 4)], 1)
    with pytest.raises(ConfigError, match="--normalise scale: nothing varies in 9 rows of site 1"):
        fit("scale", x, [2, 4])
    assert fit("whiten", x, [2, 4]).apply(x).isfinite().all()
    constant = torch.full((9, 4), 0.1)
    assert fit("scale", constant, [4]).apply(constant).square().sum(1).mean().item() == pytest.approx(4)
