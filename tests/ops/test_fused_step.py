"""The fused step against the route through autograd and whole gradients."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from sae_kernels import (
    Parameters,
    RowGradients,
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


@pytest.mark.parametrize("auxk", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_a_second_pass_is_made_only_where_the_bound_on_the_norm_asks_for_it(tied, auxk, monkeypatch):
    from sae_kernels.fused_step import cpu

    bounds, sweeps = [], []
    bound, sweep = cpu._norm_bound, cpu._sweep
    monkeypatch.setattr(cpu, "_norm_bound", lambda *a: bounds.append(bound(*a)) or bounds[-1])
    monkeypatch.setattr(cpu, "_sweep", lambda *a: sweeps.append(1) or sweep(*a))
    _, norms = run_fused(5, 1e6, auxk, tied)
    assert len(sweeps) == 5
    assert all(norm <= limit for norm, limit in zip(norms, bounds, strict=True))
    run_fused(5, 0.9 * min(bounds), auxk, tied)
    assert len(sweeps) > 10


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
    forward = fused_forward(params, x, K)
    with pytest.raises(ValueError, match=r"m\.W_dec"):
        fused_update(params, m._replace(W_dec=m.W_dec.double()), v, forward, step=1, lr=LR)
