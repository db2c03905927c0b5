"""Addresses past 2^31 elements, on memory that is never written (untouched pages read as zero and cost nothing)."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from sae_kernels import SparseCodes, latent_sweep, sparse_decode, topk_encode, use_backend


def untouched(*shape: int) -> torch.Tensor:
    """Zeros without memory behind them: a fresh anonymous mapping."""
    import mmap

    size = 4
    for length in shape:
        size *= length
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.float32).view(shape)


def test_decode_reads_atoms_beyond_two_to_the_31():
    d, F = 8192, (1 << 31) // 8192 + 100
    W = untouched(F, d)
    W[F - 1] = 3.0
    W[0] = 1.0
    codes = SparseCodes(torch.tensor([[1.0, 2.0]]), torch.tensor([[0, F - 1]]), F)
    with use_backend("cpu"):
        assert_close(sparse_decode(codes, W, torch.zeros(d)), torch.full((1, d), 7.0))


def test_sweep_reads_tokens_beyond_two_to_the_31():
    d, N = 8192, (1 << 31) // 8192 + 100
    x = untouched(N, d)
    x[N - 1] = 2.0
    offsets = torch.zeros(N + 1, dtype=torch.int64)
    offsets[-1] = 1
    codes = SparseCodes(torch.tensor([3.0]), torch.tensor([5]), 7, offsets)
    with use_backend("cpu"):
        sweep = latent_sweep(codes, x, x, torch.ones(7, d))
    assert_close(sweep.W_dec[5], torch.full((d,), 6.0))
    assert_close(sweep.b_enc[5], torch.tensor(2.0 * d))
    assert_close(sweep.W_enc[5], torch.full((d,), 4.0 * d))


def test_encode_of_more_than_two_to_the_31_pre_activations():
    draw = torch.Generator().manual_seed(0)
    N, F = 33000, 66000
    assert N * F > 1 << 31
    x, W, b = torch.randn(N, 2, generator=draw), torch.randn(F, 2, generator=draw), torch.randn(F, generator=draw)
    with use_backend("cpu"):
        codes = topk_encode(x, W, b, 3)
    with use_backend("naive"):
        for rows in (slice(0, 3), slice(N - 3, N)):
            reference = topk_encode(x[rows], W, b, 3)
            assert torch.equal(codes.indices[rows], reference.indices)
            assert_close(codes.values[rows], reference.values)
