"""threshold_encode and batch_topk_encode on the CPU: exact selections, as CSR, with gradients."""

from __future__ import annotations

import pytest
import torch
from op_cases import assert_as_good, make_case, outputs_and_gradients, twin
from torch.testing import assert_close

from sae_kernels import batch_topk_encode, last_backend, threshold_encode, use_backend

NAMES = ["values", "out", "x", "W_enc", "b_enc", "b_pre", "W_dec", "b_dec"]
SHAPES = [(0, 7, 67), (1, 5, 63), (37, 31, 1009), (300, 11, 64), (23, 13, 2503)]


def by_threshold(case):
    theta = torch.linspace(1.0, 3.0, case.W_enc.shape[0])
    return threshold_encode(case.x, case.W_enc, case.b_enc, theta, 0.25, case.b_pre)


def by_batch(k, guess=None):
    return lambda case: batch_topk_encode(case.x, case.W_enc, case.b_enc, k, case.b_pre, guess)


def both(case, encode, dtype):
    """Codes and outputs of the CPU, the reference in the same dtype, the reference in fp64."""
    return (
        outputs_and_gradients(twin(case, dtype), encode, "cpu"),
        outputs_and_gradients(twin(case, dtype), encode, "naive"),
        outputs_and_gradients(twin(case, torch.float64), encode, "naive"),
    )


def assert_match(case, encode, dtype):
    (codes, actual), (_, peer), (reference, exact) = both(case, encode, dtype)
    assert torch.equal(codes.offsets, reference.offsets)
    assert torch.equal(codes.indices, reference.indices)
    for name, a, p, e in zip(NAMES, actual, peer, exact, strict=True):
        assert_as_good(a, p, e, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("N", "d", "F"), SHAPES)
def test_threshold_values_and_gradients_match_the_reference(N, d, F, dtype):
    assert_match(make_case(N, d, F, dtype=dtype), by_threshold, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 4, 63])
@pytest.mark.parametrize(("N", "d", "F"), SHAPES)
def test_batch_values_and_gradients_match_the_reference(N, d, F, k, dtype):
    assert_match(make_case(N, d, F, dtype=dtype), by_batch(k), dtype)


def test_the_cpu_path_ran():
    case = make_case(37, 31, 1009)
    by_threshold(case)
    by_batch(4)(case)
    assert last_backend("threshold_encode") == last_backend("batch_topk_encode") == "cpu"


@pytest.mark.parametrize("op", [by_threshold, by_batch(3)])
def test_reference_gradients_pass_gradcheck(op):
    case = make_case(4, 5, 23, dtype=torch.float64)

    def values(*inputs):
        return op(case._replace(x=inputs[0], W_enc=inputs[1], b_enc=inputs[2], b_pre=inputs[3])).values

    assert torch.autograd.gradcheck(values, case[:4])


@pytest.mark.parametrize("guess", [None, -100.0, 0.0, 1.5, 2.5, 100.0])
def test_the_guess_never_changes_the_result(guess):
    case = make_case(400, 16, 503)
    with use_backend("cpu"):
        codes = by_batch(5, guess)(case)
    with use_backend("naive"):
        reference = by_batch(5)(case)
    assert codes.values.shape == (2000,)
    assert torch.equal(codes.indices, reference.indices)
    assert torch.equal(codes.offsets, reference.offsets)


def test_the_last_threshold_saves_the_sample(monkeypatch):
    from sae_kernels.batch_topk_encode import cpu

    case = make_case(400, 16, 503)
    guess = by_batch(5)(case).values.min().item()
    monkeypatch.setattr(cpu, "_sampled_bar", None)
    products = []
    tiles = cpu.product_tiles
    monkeypatch.setattr(cpu, "product_tiles", lambda *a: products.append(1) or tiles(*a))
    by_batch(5, guess)(case)
    assert products == [1]


def test_threshold_passes_gradients_of_negative_entries_too():
    case = make_case(9, 11, 301)
    with use_backend("cpu"):
        codes = threshold_encode(case.x, case.W_enc, case.b_enc, 0.0, 0.5, case.b_pre)
    assert (codes.values < 0).any()
    assert (codes.values > -0.5).all()
    codes.values.sum().backward()
    assert_close(case.b_enc.grad, torch.bincount(codes.indices, minlength=301).float())


def test_batch_ties_go_to_the_first_token_then_the_lowest_latent():
    x, W, b = torch.zeros(3, 2), torch.ones(200, 2), torch.zeros(200)
    b[[7, 9]] = 1.0
    for backend in ("cpu", "naive"):
        with use_backend(backend):
            codes = batch_topk_encode(x, W, b, 4)
        assert codes.offsets.tolist() == [0, 8, 10, 12]
        assert codes.indices.tolist() == [0, 1, 2, 3, 4, 5, 7, 9, 7, 9, 7, 9]
        assert codes.values.sum() == 6


def test_nan_and_infinity():
    case = make_case(7, 5, 301)
    x, b = case.x.detach(), case.b_enc.detach()
    x[1, 2], x[2, 0] = torch.nan, torch.inf
    b[4], b[5] = torch.nan, -torch.inf
    for k in (2, 50, 301):
        with use_backend("cpu"):
            ours = [batch_topk_encode(x, case.W_enc, b, k), threshold_encode(x, case.W_enc, b, 1.0)]
        with use_backend("naive"):
            reference = [batch_topk_encode(x, case.W_enc, b, k), threshold_encode(x, case.W_enc, b, 1.0)]
        for a, e in zip(ours, reference, strict=True):
            assert torch.equal(a.indices, e.indices)
            assert torch.equal(a.offsets, e.offsets)
            assert_close(a.values, e.values, equal_nan=True)


def test_all_negative_batch_lists_zeros():
    case = make_case(9, 11, 301)
    with use_backend("cpu"):
        codes = batch_topk_encode(case.x, case.W_enc, case.b_enc - 1000, 4)
        none = threshold_encode(case.x, case.W_enc, case.b_enc - 1000, 0.0)
    assert codes.values.shape == (36,)
    assert codes.values.count_nonzero() == 0
    assert none.values.shape == (0,)
    assert none.offsets.tolist() == [0] * 10


def test_two_runs_are_bit_identical():
    case = make_case(300, 11, 1009)
    for op in (by_threshold, by_batch(7)):
        a, b = op(case), op(case)
        assert torch.equal(a.values, b.values)
        assert torch.equal(a.indices, b.indices)


def test_wrong_arguments_are_named():
    case = make_case(9, 11, 301)
    with pytest.raises(ValueError, match="margin"):
        threshold_encode(case.x, case.W_enc, case.b_enc, 0.0, -1.0)
    with pytest.raises(ValueError, match="theta"):
        threshold_encode(case.x, case.W_enc, case.b_enc, torch.zeros(3))
    with pytest.raises(ValueError, match="k = 302"):
        batch_topk_encode(case.x, case.W_enc, case.b_enc, 302)
