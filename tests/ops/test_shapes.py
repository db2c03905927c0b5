"""Shapes and values drawn by hypothesis: the CPU path against the reference."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sae_kernels import (
    batch_topk_encode,
    latent_sweep,
    sparse_decode,
    threshold_encode,
    topk_encode,
    use_backend,
)

quick = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def problems(draw):
    """Small integers, so that sums are exact, ties abound and every backend must agree to the last bit."""
    N, d, F = draw(st.integers(0, 40)), draw(st.integers(1, 40)), draw(st.integers(1, 400))
    k = draw(st.integers(1, F))
    spread = draw(st.sampled_from([1, 3, 50]))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def integers(*shape):
        return torch.randint(-spread, spread + 1, shape, generator=source).float()

    return integers(N, d), integers(F, d), integers(F), integers(d), k


def both(call):
    results = []
    for backend in ("cpu", "naive"):
        with use_backend(backend):
            results.append(call())
    return results


@quick
@given(problems())
def test_topk_agrees_bit_for_bit(problem):
    x, W, b, b_pre, k = problem
    ours, reference = both(lambda: topk_encode(x, W, b, k, b_pre))
    assert torch.equal(ours.indices, reference.indices)
    assert torch.equal(ours.values, reference.values)


@quick
@given(problems(), st.sampled_from([None, -10.0, 0.0, 5.0, 1e6]))
def test_batch_topk_agrees_bit_for_bit(problem, guess):
    x, W, b, b_pre, k = problem
    ours, reference = both(lambda: batch_topk_encode(x, W, b, k, b_pre, guess))
    assert torch.equal(ours.indices, reference.indices)
    assert torch.equal(ours.offsets, reference.offsets)
    assert torch.equal(ours.values, reference.values)


@quick
@given(problems(), st.integers(-5, 20), st.integers(0, 5))
def test_threshold_agrees_bit_for_bit(problem, theta, margin):
    x, W, b, b_pre, _ = problem
    ours, reference = both(lambda: threshold_encode(x, W, b, float(theta), float(margin), b_pre))
    assert torch.equal(ours.indices, reference.indices)
    assert torch.equal(ours.offsets, reference.offsets)
    assert torch.equal(ours.values, reference.values)


@quick
@given(problems(), st.booleans())
def test_decode_and_sweep_agree(problem, csr):
    x, W, b, b_pre, k = problem
    with use_backend("naive"):
        codes = batch_topk_encode(x, W, b, k) if csr else topk_encode(x, W, b, k)
    results = both(lambda: (sparse_decode(codes, W, b_pre), *latent_sweep(codes, x, x, W)))
    for ours, reference in zip(*results, strict=True):
        largest = reference.abs().max().item() if reference.numel() else 0.0
        assert_close(ours, reference, rtol=1e-5, atol=1e-6 * largest)
