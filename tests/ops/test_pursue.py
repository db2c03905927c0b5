"""Matching pursuit: the fast backend equals the reference, and both shorten the residual step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sae_kernels import last_backend, pursue, use_backend
from sae_kernels.pursue import cpu

SHAPES = [
    (1, 1, 1, 1),
    (3, 5, 7, 7),
    (37, 13, 61, 9),
    (5, 16, 64, 64),
    (19, 31, 129, 4),
    (7, 8, 257, 16),
    (300, 9, 65, 3),
]


def case(N: int, d: int, F: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    W = torch.nn.functional.normalize(torch.randn(F, d, generator=draw))
    return torch.randn(N, d, generator=draw), W


def both(x: Tensor, W: Tensor, k: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    results = []
    for backend in ("cpu", "naive"):
        with use_backend(backend):
            codes = pursue(x, W, k)
        assert codes.values.shape == codes.indices.shape == (len(x), k)
        assert codes.indices.dtype == torch.int64
        results.append((codes.values, codes.indices))
    return results[0], results[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_backends_agree(shape: tuple[int, int, int, int]) -> None:
    N, d, F, k = shape
    x, W = case(N, d, F)
    (values, indices), (theirs, others) = both(x, W, k)
    # where inner products tie up to rounding the order may differ; what was reached may not
    assert_close(values, theirs, rtol=1e-4, atol=2e-5)
    certain = values > 1e-3
    assert indices[certain].equal(others[certain])
    assert last_backend("pursue") == "naive"
    pursue(x, W, k)
    assert last_backend("pursue") == "cpu"


@pytest.mark.parametrize("backend", ["cpu", "naive"])
def test_each_atom_is_taken_once_even_where_all_are(backend: str) -> None:
    x, W = case(11, 6, 70)
    with use_backend(backend):
        codes = pursue(x, W, 70)
    assert codes.indices.sort(1).values.equal(torch.arange(70).expand(11, 70))
    assert (codes.values >= 0).all()
    assert torch.isfinite(codes.values).all()


@pytest.mark.parametrize("backend", ["cpu", "naive"])
def test_the_residual_never_grows(backend: str) -> None:
    x, W = case(29, 12, 90)
    with use_backend(backend):
        codes = pursue(x, W, 20)
    residual, norms = x.clone(), [x.norm(dim=1)]
    for step in range(20):
        atom, value = W[codes.indices[:, step]], codes.values[:, step : step + 1]
        # greedy: no atom that is left has a larger inner product than the one selected
        left = residual @ W.T
        left.scatter_(1, codes.indices[:, :step], -torch.inf)
        assert_close(value.squeeze(1), left.max(1).values.relu(), rtol=1e-4, atol=1e-5)
        residual = residual - value * atom
        norms.append(residual.norm(dim=1))
        assert (norms[-1] <= norms[-2] + 1e-5).all()
        # by Pythagoras, what a step takes away is its value
        assert_close(norms[-1] ** 2, norms[-2] ** 2 - value.squeeze(1) ** 2, rtol=1e-3, atol=1e-4)
    assert (norms[-1] < 0.5 * norms[0]).all()


@pytest.mark.parametrize("backend", ["cpu", "naive"])
def test_ties_go_to_the_first_atom_and_zeros_give_zeros(backend: str) -> None:
    W = torch.eye(3).repeat(40, 1)  # atom j equals atom j + 3
    x = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]])
    with use_backend(backend):
        codes = pursue(x, W, 4)
    assert codes.indices[0, :3].tolist() == [1, 2, 0]
    assert codes.values[0].tolist() == [2.0, 2.0, 1.0, 0.0]
    assert not codes.values[1:].any(), "nothing helps"
    assert codes.indices[1].tolist() == [0, 1, 2, 3]


def test_no_tokens_give_no_codes() -> None:
    for values, indices in both(torch.zeros(0, 5), case(1, 5, 9)[1], 3):
        assert values.shape == indices.shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    x, W = case(17, 12, 50)
    codes = pursue(x.to(dtype), W.to(dtype), 3)
    assert codes.values.dtype == dtype
    exact = pursue(x.to(dtype).double(), W.to(dtype).double(), 3)
    assert_close(codes.values.double(), exact.values, rtol=1e-2, atol=1e-2)


def test_a_dictionary_whose_gram_matrix_is_too_large_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    x, W = case(17, 12, 50)
    expected = pursue(x, W, 5)
    monkeypatch.setattr(cpu, "GRAM_BYTES", 4 * 50 * 50 - 1)
    actual = pursue(x, W, 5)
    assert last_backend("pursue") == "naive"
    assert actual.indices.equal(expected.indices)
    assert_close(actual.values, expected.values)


def test_more_tokens_than_a_tile_give_the_same_codes_in_pieces() -> None:
    tokens = cpu.TILE_TOKENS + 3
    x, W = case(tokens, 8, 40)
    whole = pursue(x, W, 3)
    first, rest = pursue(x[:100], W, 3), pursue(x[100:], W, 3)
    assert whole.indices.equal(torch.cat([first.indices, rest.indices]))
    assert_close(whole.values, torch.cat([first.values, rest.values]))


def test_wrong_arguments_are_named() -> None:
    x, W = case(3, 5, 9)
    for k in (0, 10):
        with pytest.raises(ValueError, match=f"k = {k} is outside 1..9"):
            pursue(x, W, k)
    with pytest.raises(ValueError, match=r"expected x \[N, d\] and W \[F, d\]; got \(3, 4\) and \(9, 5\)"):
        pursue(x[:, :4], W, 2)
