"""adam_step on the CPU against torch.optim and the reference."""

from __future__ import annotations

import pytest
import torch
from op_cases import relative_error
from torch.testing import assert_close

from sae_kernels import adam_step, clip_scale, last_backend, use_backend


def tensors(shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    param = torch.randn(shape, generator=draw)
    return param, torch.randn(shape, generator=draw), torch.zeros(shape), torch.zeros(shape)


@pytest.mark.parametrize("shape", [(0,), (1,), (4097,), (13, 7), (3, 5, 7)])
def test_steps_equal_torch_optim(shape):
    param, _, m, v = tensors(shape)
    peer = torch.nn.Parameter(param.clone())
    optimizer = torch.optim.Adam([peer], lr=1e-2, betas=(0.9, 0.99), eps=1e-8)
    for step in range(1, 6):
        peer.grad = torch.sin(torch.arange(param.numel()).reshape(shape) * step)
        optimizer.step()
        adam_step(param, peer.grad, m, v, step=step, lr=1e-2, beta2=0.99, eps=1e-8)
    assert last_backend("adam_step") == "cpu"
    assert_close(param, peer.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unit_rows", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_error_is_at_most_twice_the_references(unit_rows, scale):
    results = {}
    for backend, dtype in (("cpu", torch.float32), ("naive", torch.float32), ("exact", torch.float64)):
        param, grad, m, v = (t.to(dtype) for t in tensors((61, 31)))
        if unit_rows:
            param /= param.norm(dim=1, keepdim=True)
        factor = None if scale is None else torch.tensor(scale)
        with use_backend("naive" if backend == "exact" else backend):
            for step in range(1, 4):
                adam_step(param, grad.sin() * step, m, v, step=step, lr=1e-2, scale=factor, unit_rows=unit_rows)
        results[backend] = (param, m, v)
    for cpu, naive, exact in zip(results["cpu"], results["naive"], results["exact"], strict=True):
        assert relative_error(cpu, exact) <= 2 * relative_error(naive, exact) + 1.2e-7


def test_atoms_keep_unit_norm_and_ignore_a_parallel_gradient():
    param, _, m, v = tensors((29, 17))
    param /= param.norm(dim=1, keepdim=True)
    before = param.clone()
    adam_step(param, 5.0 * param, m, v, step=1, lr=1e-2, eps=1e-3, unit_rows=True)
    assert_close(param, before, rtol=0, atol=1e-4)
    adam_step(param, torch.ones_like(param), m, v, step=2, lr=1e-1, unit_rows=True)
    assert_close(param.norm(dim=1), torch.ones(29))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("backend", ["cpu", "naive"])
def test_a_scale_that_is_not_finite_changes_nothing(bad, backend):
    given = tensors((13, 7))
    before = [t.clone() for t in given]
    with use_backend(backend):
        adam_step(*given, step=1, lr=1e-2, scale=torch.tensor(bad))
    for now, then in zip(given, before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize(
    ("norm", "max_norm", "scale"), [(2.0, 1.0, 0.5), (0.5, 1.0, 1.0), (0.0, 1.0, 1.0), (7.0, None, 1.0)]
)
def test_clip_scale_brings_the_norm_to_its_bound(norm, max_norm, scale):
    assert clip_scale(torch.tensor(norm), max_norm).item() == scale


@pytest.mark.parametrize("norm", [torch.nan, torch.inf])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_clip_scale_of_a_norm_that_is_not_finite_skips_the_step(norm, max_norm):
    assert clip_scale(torch.tensor(norm), max_norm).isnan()


def test_the_same_bits_with_one_thread():
    threads = torch.get_num_threads()
    results = []
    for count in (threads, 1):
        given = tensors((512, 96))
        torch.set_num_threads(count)
        try:
            adam_step(*given, step=1, lr=1e-2, unit_rows=True)
        finally:
            torch.set_num_threads(threads)
        results.append(given)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("unit_rows", [False, True])
@pytest.mark.parametrize("shape", [(13, 7), (5, 300)])
def test_moments_in_bf16_are_rounded_as_the_reference_rounds_them(shape, unit_rows):
    results = []
    for backend in ("cpu", "naive"):
        param, grad, m, v = tensors(shape)
        param = torch.nn.functional.normalize(param, dim=1)
        m, v = m.bfloat16(), v.bfloat16()
        with use_backend(backend):
            for step in range(1, 5):
                adam_step(param, grad.sin() * step, m, v, step=step, lr=1e-2, eps=1e-3, unit_rows=unit_rows)
        assert m.dtype == v.dtype == torch.bfloat16
        results.append((param, m, v))
    (param, *moments), (peer, *peers) = results
    assert_close(param, peer, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(moments, peers, strict=True):
        # sums that differ in their last bit may round to the other neighbour
        assert (ours == theirs).float().mean() > 0.98


def test_a_second_moment_in_bf16_follows_gradients_that_change():
    # a step changes it by a thousandth, less than half the distance of two bf16 numbers
    param, _, m, v = tensors((64, 64))
    m, v = m.bfloat16(), v.bfloat16()
    for step in range(1, 401):
        adam_step(param, torch.full_like(param, 2.0), m, v, step=step, lr=0.0)
    expected = 4 * (1 - 0.999**400)
    assert v.float().mean().item() == pytest.approx(expected, rel=2e-3)
    assert v.unique().numel() > 1
    nearest = torch.zeros(()).bfloat16()
    for _ in range(400):
        nearest = (0.999 * nearest.float() + 0.001 * 4).bfloat16()
    assert nearest.item() < 0.9 * expected


def test_moments_of_two_dtypes_are_refused():
    param, grad, m, v = tensors((3, 4))
    for pair in ((m.bfloat16(), v), (m.half(), v.half())):
        with pytest.raises(ValueError, match="m and v"):
            adam_step(param, grad, *pair, step=1, lr=1e-3)
