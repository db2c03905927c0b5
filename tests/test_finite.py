"""Finite numbers are told from others wherever they stand, in every precision."""

from __future__ import annotations

import pytest
import torch

from sae.base.finite import all_finite, first_not_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(dtype: torch.dtype, bad: float) -> None:
    # sums of these exceed the range of their precision
    x = torch.full((5, 67), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(x)
    assert all_finite(-x.T)
    for place in range(x.numel()):
        y = x.clone()
        y.view(-1)[place] = bad
        assert not all_finite(y), place
        assert not all_finite(y.T), place
        assert first_not_finite(y) == place // 67


def test_nothing_is_finite_and_so_are_whole_numbers() -> None:
    assert all_finite(torch.zeros(0, 4))
    assert all_finite(torch.tensor(3.0))
    assert all_finite(torch.arange(4))
