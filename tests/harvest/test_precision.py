"""In which precision activations wait: what fits, what rounds too much, and several sites in one store."""

from __future__ import annotations

import re

import pytest
import torch

from sae.harvest.precision import Kept, choose_precision, rounding_cost


def kept(scale: float = 1.0, offset: float = 0.0, limit: float | None = 1e3) -> Kept:
    return Kept(torch.randn(200, 16, generator=torch.Generator().manual_seed(0)) * scale + offset, limit)


@pytest.mark.parametrize(
    ("sites", "name", "says"),
    [
        ({"a": kept()}, "float16", "norms up to the limit fit"),
        ({"a": kept(3e4, limit=3e5)}, "bfloat16", "norms up to 3e\\+05 are kept of a, over float16's 65504"),
        ({"a": kept(), "b": kept(limit=7e4)}, "bfloat16", "norms up to 7e\\+04 are kept of b, over float16's 65504"),
        ({"a": kept(limit=None)}, "bfloat16", "tokens of any norm are kept of a, and float16 ends at 65504"),
        ({"a": kept(1e-9)}, "bfloat16", "float16 rounds away 1 of the variance of a"),
        ({"a": kept(0.0)}, "float16", "fit"),
        # a mean that is large against what varies about it: neither of two bytes leaves enough of that
        ({"a": kept(2.0, 6e4, 1e6)}, "float32", "norms up to .*; bfloat16 rounds away .* of the variance of a"),
        ({"a": kept(1e5, limit=1e7), "b": kept(0.1, 50.0)}, "float32", "kept of a, .*; bfloat16 rounds away .* of b"),
        ({"a": kept(1e36, limit=1e38)}, "bfloat16", "norms up to 1e\\+38"),
    ],
)
def test_the_first_precision_is_taken_that_fits_and_rounds_little(sites: dict[str, Kept], name: str, says: str) -> None:
    choice = choose_precision(sites)
    assert choice.name == name
    assert re.search(says, choice.reason), choice.reason


def test_the_cost_of_rounding_is_a_share_of_the_variance() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.0 + 2**-9]])
    error = (2**-9) ** 2  # bfloat16 has 8 bits: 2 + 2^-9 becomes 2
    assert rounding_cost(rows, torch.bfloat16) == pytest.approx(error / rows.sub(rows.mean()).square().sum().item())
    assert rounding_cost(rows, torch.float32) == 0
