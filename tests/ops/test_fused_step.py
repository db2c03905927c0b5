"""The fused step against the route through autograd and whole gradients."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from sae_kernels import (
    Parameters,
    RowGradients,
    SparseCodes,
    Workspace,
    adam_step,
    batch_topk_encode,
    clip_scale,
    fused_forward,
    fused_update,
    last_backend,
    sparse_decode,
    topk_encode,
    use_backend,
)

N, D, F, K = 61, 31, 409, 6
LR = 1e-2


def fresh(seed: int = 0) -> tuple[Parameters, Parameters, Parameters]:
    draw = torch.Generator().manual_seed(seed)
    W = torch.randn(F, D, generator=draw)
    W = W / W.norm(dim=1, keepdim=True)
    params = Parameters(W + 0.1, 0.1 * torch.randn(F, generator=draw), W.clone(), 0.1 * torch.randn(D, generator=draw))
    zeros = [Parameters(*(torch.zeros_like(p) for p in params)) for _ in range(2)]
    return params, zeros[0], zeros[1]


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(100 + step)
    return torch.randn(N + step, D, generator=draw), torch.randn(N + step, D, generator=draw)


def dead_rows() -> torch.Tensor:
    return torch.tensor([300, 5, 77, 200])


def auxk_loss(x, residual, params, rows, tied):
    """A reconstruction of the residual from some rows alone, as AuxK makes it, and of the same unit."""
    aux = topk_encode(x, params.W_enc[rows], params.b_enc[rows], 2, params.b_dec if tied else None)
    out = aux.to_dense() @ params.W_dec[rows]
    return 3.0 * (residual.detach() - out).square().sum(1).mean()


def run_fused(steps, max_norm, auxk, tied, batched=False):
    params, m, v = fresh()
    workspace, norms = Workspace(), []
    for step in range(1, steps + 1):
        x, other = batch(step)
        b_pre = params.b_dec if tied else None
        codes = batch_topk_encode(x, params.W_enc, params.b_enc, K, b_pre) if batched else None
        forward = fused_forward(
            params, x, None if batched else K, codes=codes, target=None if tied else other, tied=tied,
            workspace=workspace,
        )  # fmt: skip
        extra = None
        if auxk:
            rows = dead_rows()
            leaves = Parameters(*(p.detach().clone().requires_grad_() for p in params))
            auxk_loss(x, forward.residual, leaves, rows, tied).backward()
            extra = RowGradients(rows, *(leaves[i].grad[rows] for i in range(3)))
        result = fused_update(params, m, v, forward, step=step, lr=LR, max_norm=max_norm, extra=extra)
        assert result.applied
        norms.append(result.grad_norm.item())
    return [*params, *m, *v], norms


def run_autograd(steps, max_norm, auxk, tied, batched=False):
    params, m, v = fresh()
    norms = []
    for step in range(1, steps + 1):
        x, other = batch(step)
        leaves = Parameters(*(p.requires_grad_() for p in params))
        b_pre = leaves.b_dec if tied else None
        encode = batch_topk_encode if batched else topk_encode
        residual = (x if tied else other) - sparse_decode(
            encode(x, leaves.W_enc, leaves.b_enc, K, b_pre), leaves.W_dec, leaves.b_dec
        )
        loss = residual.square().sum(1).mean()
        if auxk:
            loss = loss + auxk_loss(x, residual, leaves, dead_rows(), tied)
        grads = torch.autograd.grad(loss, leaves)
        norm = torch.stack([g.norm() for g in grads]).norm()
        norms.append(norm.item())
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(params, grads, strict=True)):
                scale = clip_scale(norm, max_norm)
                adam_step(p.detach(), g, m[i], v[i], step=step, lr=LR, scale=scale, unit_rows=i == 2)
    return [*(p.detach() for p in params), *m, *v], norms


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("auxk", [False, True])
@pytest.mark.parametrize("max_norm", [None, 1000.0, 0.5])
def test_five_steps_equal_the_autograd_route(max_norm, auxk, tied, batched):
    fused, fused_norms = run_fused(5, max_norm, auxk, tied, batched)
    assert last_backend("fused_update") == last_backend("fused_forward") == "cpu"
    peer, peer_norms = run_autograd(5, max_norm, auxk, tied, batched)
    if max_norm == 0.5:
        assert min(peer_norms) > 1.0  # clipping was active
    assert_close(torch.tensor(fused_norms), torch.tensor(peer_norms), rtol=2e-6, atol=0)
    for a, b in zip(fused, peer, strict=True):
        # Adam divides by sqrt(v): a gradient that is all rounding error moves its weight by up to lr either way
        assert_close(a, b, rtol=1e-4, atol=2e-5)


PREFIXES = [3, 50, 51, 200, F]


def nested_loss(params, x, target, tied, prefixes):
    codes = batch_topk_encode(x, params.W_enc, params.b_enc, K, params.b_dec if tied else None).to_dense()
    parts = [target - params.b_dec - codes[:, :m] @ params.W_dec[:m] for m in prefixes]
    return torch.stack([part.square().sum(1) for part in parts]).mean(0)


@pytest.mark.parametrize("backend", ["cpu", "naive"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("prefixes", [PREFIXES, [100, F], [F]])
def test_steps_of_nested_prefixes_equal_autograd(prefixes, max_norm, tied, backend):
    ours, theirs = fresh(), fresh()
    workspace = Workspace()
    for step in range(1, 5):
        x, other = batch(step)
        target = x if tied else other
        params, m, v = ours
        with use_backend(backend):
            codes = batch_topk_encode(x, params.W_enc, params.b_enc, K, params.b_dec if tied else None)
            forward = fused_forward(
                params, x, codes=codes, target=target, tied=tied, prefixes=prefixes, workspace=workspace
            )
            assert forward.groups == len(prefixes)
            result = fused_update(params, m, v, forward, step=step, lr=LR, max_norm=max_norm)
        params, m, v = theirs
        leaves = Parameters(*(p.detach().clone().requires_grad_() for p in params))
        errors = nested_loss(leaves, x, target, tied, prefixes)
        assert_close(forward.squared_error, errors.detach(), rtol=1e-4, atol=1e-4)
        grads = torch.autograd.grad(errors.mean(), leaves)
        norm = torch.stack([g.norm() for g in grads]).norm()
        if max_norm is not None:
            assert norm > 2 * max_norm
        assert_close(result.grad_norm, norm, rtol=1e-5, atol=0)
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            adam_step(p, g, m[i], v[i], step=step, lr=LR, scale=clip_scale(norm, max_norm), unit_rows=i == 2)
    for a, b in zip((t for group in ours for t in group), (t for group in theirs for t in group), strict=True):
        assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_each_entry_s_dot_is_its_value_s_slope():
    params, _, _ = fresh()
    x, _ = batch(1)
    codes = batch_topk_encode(x, params.W_enc, params.b_enc, K, params.b_dec)
    forward = fused_forward(params, x, codes=codes, prefixes=PREFIXES)
    values = codes.values.clone().requires_grad_()
    dense = codes.with_values(values).to_dense()
    parts = [x - params.b_dec - dense[:, :m] @ params.W_dec[:m] for m in PREFIXES]
    loss = torch.stack([part.square().sum(1) for part in parts]).mean(0).mean()
    (slope,) = torch.autograd.grad(loss, values)
    assert_close(forward.dots * forward.factor, slope, rtol=1e-4, atol=1e-5)
    assert_close(forward.residual, parts[-1].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "naive"])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_a_gradient_by_pre_activations_that_is_given_is_the_one_used(max_norm, backend):
    results = []
    for given in (False, True):
        params, m, v = fresh()
        x, _ = batch(1)
        codes = batch_topk_encode(x, params.W_enc, params.b_enc, K, params.b_dec)
        with use_backend(backend):
            forward = fused_forward(params, x, codes=codes)
            # entries of any sign, and those whose value is zero, pass theirs on
            through = torch.linspace(-0.3, 0.2, len(codes.values))
            leaves = Parameters(*(p.detach().clone().requires_grad_() for p in params))
            if given:
                norm = fused_update(params, m, v, forward, step=1, lr=LR, max_norm=max_norm, through=through).grad_norm
            else:
                pre = (x - leaves.b_dec) @ leaves.W_enc.T + leaves.b_enc
                listed = pre[codes.rows(), codes.indices]
                error = (x - codes.to_dense() @ leaves.W_dec - leaves.b_dec).square().sum(1).mean()
                grads = torch.autograd.grad(error + (listed * through).sum(), leaves)
                norm = torch.stack([g.norm() for g in grads]).norm()
                for i, (p, g) in enumerate(zip(params, grads, strict=True)):
                    adam_step(p, g, m[i], v[i], step=1, lr=LR, scale=clip_scale(norm, max_norm), unit_rows=i == 2)
        results.append([norm, *params, *m, *v])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_tokens_without_codes_and_groups_without_entries():
    params, m, v = fresh()
    x, _ = batch(0)
    empty = SparseCodes(torch.zeros(0), torch.zeros(0, dtype=torch.int64), F, torch.zeros(N + 1, dtype=torch.int64))
    forward = fused_forward(params, x, codes=empty, prefixes=PREFIXES)
    assert_close(forward.squared_error, (x - params.b_dec).square().sum(1))
    before = params.W_enc.clone()
    assert fused_update(params, m, v, forward, step=1, lr=LR, max_norm=1.0).applied
    assert torch.equal(params.W_enc, before)
    assert params.b_dec.any()


def test_widths_of_input_and_reconstruction_may_differ():
    draw = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(F, 13, generator=draw))
    shapes = Parameters(torch.randn(F, D, generator=draw), torch.zeros(F), W_dec, torch.zeros(13))
    ours, theirs = (Parameters(*(t.clone() for t in shapes)) for _ in range(2))
    moments = [[Parameters(*(torch.zeros_like(p) for p in shapes)) for _ in range(2)] for _ in range(2)]
    for step in range(1, 4):
        x, other = batch(step)
        codes = batch_topk_encode(x, ours.W_enc, ours.b_enc, K)
        forward = fused_forward(ours, x, codes=codes, target=other[:, :13], tied=False, prefixes=PREFIXES)
        fused_update(ours, *moments[0], forward, step=step, lr=LR)
        leaves = Parameters(*(p.detach().clone().requires_grad_() for p in theirs))
        grads = torch.autograd.grad(nested_loss(leaves, x, other[:, :13], False, PREFIXES).mean(), leaves)
        for i, (p, g) in enumerate(zip(theirs, grads, strict=True)):
            adam_step(p, g, moments[1][0][i], moments[1][1][i], step=step, lr=LR, unit_rows=i == 2)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("auxk", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_a_second_pass_is_made_only_where_the_bound_on_the_norm_asks_for_it(tied, auxk, monkeypatch):
    from sae_kernels.fused_step import cpu

    bounds, sweeps = [], []
    bound, sweep = cpu._norm_bound, cpu.sweep_latents
    monkeypatch.setattr(cpu, "_norm_bound", lambda *a: bounds.append(bound(*a)) or bounds[-1])
    monkeypatch.setattr(cpu, "sweep_latents", lambda *a: sweeps.append(1) or sweep(*a))
    _, norms = run_fused(5, 1e6, auxk, tied)
    assert len(sweeps) == 5
    assert all(norm <= limit for norm, limit in zip(norms, bounds, strict=True))
    run_fused(5, 0.9 * min(bounds), auxk, tied)
    assert len(sweeps) > 10


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_steps_with_moments_in_bf16_equal_the_reference(max_norm):
    results = []
    for backend in ("cpu", "naive"):
        params, *moments = fresh()
        m, v = (Parameters(*(t.bfloat16() if t.ndim == 2 else t for t in part)) for part in moments)
        with use_backend(backend):
            for step in range(1, 4):
                forward = fused_forward(params, batch(step)[0], K)
                # Adam's epsilon is large here, as a moment rounded to its other neighbour moves a weight
                assert fused_update(params, m, v, forward, step=step, lr=LR, eps=1e-2, max_norm=max_norm).applied
        assert m.W_dec.dtype == v.W_enc.dtype == torch.bfloat16
        results.append((*params, *m, *v))
    for a, b in zip(*results, strict=True):
        assert_close(a.float(), b.float(), rtol=1e-4 if a.dtype == torch.float32 else 2**-7, atol=2e-5)
        assert (a == b).float().mean() > 0.9 or a.dtype == torch.float32


def test_composed_reference_agrees():
    with use_backend("naive"):
        peer, norms = run_fused(3, 1.0, True, True)
    fused, fused_norms = run_fused(3, 1.0, True, True)
    assert_close(torch.tensor(fused_norms), torch.tensor(norms), rtol=2e-6, atol=0)
    for a, b in zip(fused, peer, strict=True):
        assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_what_a_trainer_logs_is_right():
    params, _, _ = fresh()
    x, _ = batch(0)
    forward = fused_forward(params, x, K)
    codes = topk_encode(x, params.W_enc, params.b_enc, K, params.b_dec)
    residual = x - sparse_decode(codes, params.W_dec, params.b_dec)
    assert torch.equal(forward.codes.indices, codes.indices)
    assert_close(forward.residual, residual)
    assert_close(forward.squared_error, residual.square().sum(1))
    assert forward.squared_error.shape == (N,)
    assert_close(forward.dots, (residual @ params.W_dec.T).gather(1, codes.indices), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("where", ["x", "W_dec", "extra", "overflow"])
def test_a_gradient_that_is_not_finite_is_refused_before_anything_is_written(where, max_norm):
    params, m, v = fresh()
    x, _ = batch(0)
    fused_update(params, m, v, fused_forward(params, x, K), step=1, lr=LR)
    before = [t.clone() for t in (*params, *m, *v)]
    extra = None
    if where == "x":
        x[3, 4] = torch.nan
    elif where == "W_dec":
        listed = fused_forward(params, x, K).codes.indices[0, 0]
        params.W_dec[listed, 0] = before[2][listed, 0] = torch.inf
    elif where == "overflow":
        x *= 1e30
    else:
        extra = RowGradients(torch.tensor([7]), torch.full((1, D), torch.inf), torch.zeros(1), torch.zeros(1, D))
    result = fused_update(params, m, v, fused_forward(params, x, K), step=2, lr=LR, max_norm=max_norm, extra=extra)
    assert not result.applied
    assert not result.grad_norm.isfinite()
    for now, then in zip((*params, *m, *v), before, strict=True):
        assert torch.equal(now, then)


def test_atoms_keep_unit_norm():
    tensors, _ = run_fused(5, None, True, True)
    assert_close(tensors[2].norm(dim=1), torch.ones(F))


@pytest.mark.parametrize("tokens", [0, 1])
def test_tiny_batches(tokens):
    params, m, v = fresh()
    x = torch.randn(tokens, D, generator=torch.Generator().manual_seed(0))
    before = params.W_enc.clone()
    result = fused_update(params, m, v, fused_forward(params, x, K), step=1, lr=LR, max_norm=1.0)
    assert result.applied
    assert torch.equal(params.W_enc, before) == (tokens == 0)


def test_two_runs_are_bit_identical():
    first, norms = run_fused(3, 1.0, True, True)
    again, norms_again = run_fused(3, 1.0, True, True)
    assert norms == norms_again
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)


def test_an_update_gives_the_same_bits_with_one_thread():
    draw = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(2003, 96, generator=draw))
    x = torch.randn(257, 96, generator=draw)
    results = []
    threads = torch.get_num_threads()
    for count in (threads, 1):
        params, m, v = (Parameters(t.clone(), torch.zeros(2003), t.clone(), torch.zeros(96)) for t in (W, W * 0, W * 0))
        forward = fused_forward(params, x, 16)
        torch.set_num_threads(count)
        try:
            fused_update(params, m, v, forward, step=1, lr=LR, max_norm=0.5)
        finally:
            torch.set_num_threads(threads)
        results.append([*params, *m, *v])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


class RoundsOtherwise(TorchDispatchMode):
    """Every product of BLAS comes out one step of float32 larger, as another order of summation might have it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::mm", "aten::mv", "aten::dot", "aten::addmv", "aten::addmm", "aten::bmm"):
            result = result.nextafter(torch.full_like(result, torch.inf))
        return result


@pytest.mark.parametrize("max_norm", [None, 1e-3, 0.5, 1e3])
@pytest.mark.parametrize("tied", [True, False])
def test_an_update_takes_no_bit_from_the_order_of_blas(tied, max_norm):
    # BLAS may split a sum by the number of threads, and by the processor: that is no part of the result
    draw = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(503, 96, generator=draw))
    x = torch.randn(257, 96, generator=draw)
    results = []
    for mode in (contextlib.nullcontext(), RoundsOtherwise()):
        params, m, v = (Parameters(t.clone(), torch.zeros(503), t.clone(), torch.zeros(96)) for t in (W, W * 0, W * 0))
        forward = fused_forward(params, x, 16, tied=tied)
        with mode:
            result = fused_update(params, m, v, forward, step=1, lr=LR, max_norm=max_norm)
        assert result.applied
        results.append([*params, *m, *v, result.grad_norm])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_buffers_are_reused():
    params, m, v = fresh()
    workspace = Workspace()
    places = set()
    for step in range(1, 4):
        forward = fused_forward(params, batch(0)[0], K, workspace=workspace)
        fused_update(params, m, v, forward, step=step, lr=LR)
        places.add(forward.residual.data_ptr())
    assert len(places) == 1


def test_wrong_arguments_are_named():
    params, m, v = fresh()
    x, _ = batch(0)
    with pytest.raises(ValueError, match="either k or codes"):
        fused_forward(params, x)
    with pytest.raises(ValueError, match="target"):
        fused_forward(params, x, K, target=x[:3])
    codes = topk_encode(x, params.W_enc, params.b_enc, K)
    listed = batch_topk_encode(x, params.W_enc, params.b_enc, K)
    for given, prefixes in ((codes, [3, F]), (listed, [3, F - 1])):
        with pytest.raises(ValueError, match=f"prefixes .*: expected CSR codes, and F = {F} at the end"):
            fused_forward(params, x, codes=given, prefixes=prefixes)
    forward = fused_forward(params, x, K)
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(ValueError, match=r"m\.W_dec"):
            fused_update(params, m._replace(W_dec=m.W_dec.to(dtype)), v, forward, step=1, lr=LR)
