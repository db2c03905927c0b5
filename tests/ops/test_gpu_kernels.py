"""The Triton kernels against the references, at odd shapes, every buffer between bands of NaN.

tests/kernel_process.py runs them in a process of their own, under Triton's interpreter and on a GPU if there is one.
"""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from gpu_buffers import guarded, guarded_allocations
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpu_device import DEVICE
from sae_kernels import tuning
from sae_kernels.adam_step import gpu as adam
from sae_kernels.adam_step import naive as adam_naive
from sae_kernels.batch_topk_encode import gpu as batch
from sae_kernels.batch_topk_encode import naive as batch_naive
from sae_kernels.codes import SparseCodes
from sae_kernels.dispatch import use_backend
from sae_kernels.formats.naive import store, zero_moment
from sae_kernels.fused_step import gpu_forward, gpu_sweep
from sae_kernels.fused_step.op import Copies, Parameters, RowGradients, copies_of, fused_forward, fused_update
from sae_kernels.latent_sweep import gpu as sweep
from sae_kernels.latent_sweep import naive as sweep_naive
from sae_kernels.sparse_decode import gpu as decode
from sae_kernels.threshold_encode import gpu as threshold
from sae_kernels.threshold_encode import naive as threshold_naive
from sae_kernels.topk_encode import gpu as topk
from sae_kernels.topk_encode import naive as topk_naive
from sae_kernels.tune import ENCODES, runner, tune
from sae_kernels.tuning import EncodeConfig


def config(**changes: int) -> EncodeConfig:
    """Tiles small enough for the interpreter and for several of them at small sizes."""
    small = {"block_n": 16, "block_f": 64, "block_d": 16, "bucket": 32, "kept": 4, "chunk": 64}
    return EncodeConfig(**(small | {"group": 2, "warps": 4, "stages": 2} | changes))


EVERYTHING = config(kept=32)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def whole(*shape: int) -> Tensor:
    """Small integers: sums of products are exact in any order, and ties abound."""
    return torch.randint(-3, 4, shape, device=DEVICE).float()


def encoder(N: int, F: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    return whole(N, d), whole(F, d), whole(F)


def run_topk(x: Tensor, W: Tensor, b: Tensor, k: int, b_pre: Tensor | None = None, **options) -> tuple[Tensor, Tensor]:
    with guarded_allocations():
        return topk.topk_encode(guarded(x), guarded(W), guarded(b), k, b_pre, **{"config": config()} | options)


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for place, (a, e) in enumerate(zip(actual, expected, strict=True)):
        torch.testing.assert_close(
            a, e, rtol=0, atol=0, equal_nan=True, msg=lambda text, i=place: f"result {i}: {text}"
        )


@pytest.mark.parametrize(
    ("N", "F", "d", "k", "how"),
    [
        (0, 131, 7, 3, config()),
        (1, 131, 7, 1, config()),
        (5, 131, 13, 7, config()),
        (33, 67, 5, 3, config()),
        (3, 257, 17, 5, config(kept=8)),
        (2, 101, 1, 2, config(bucket=16, kept=2)),
        (2, 131, 7, 131, EVERYTHING),
        (1, 64, 5, 64, EVERYTHING),
        (2, 1200, 7, 1100, EVERYTHING),
        (3, 67, 5, 5, config(block_n=32, block_f=32, group=1)),
        (0, 131, 7, 3, config(vendor=True)),
        (5, 131, 13, 7, config(vendor=True)),
        (35, 577, 5, 3, config(vendor=True, kept=8)),
        (2, 131, 7, 131, config(vendor=True, kept=32)),
    ],
)
def test_topk_equals_the_reference_where_arithmetic_is_exact(N, F, d, k, how):
    x, W, b = encoder(N, F, d)
    assert_same(run_topk(x, W, b, k, config=how), topk_naive.topk_encode(x, W, b, k, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_encoders_select_the_same(dtype):
    x, W, b = (torch.randn(s, device=DEVICE).to(dtype) for s in ((7, 53), (600, 53), (600,)))
    (values, indices), peer = (run_topk(x, W, b, 5, config=config(kept=8, vendor=vendor)) for vendor in (False, True))
    assert torch.equal(indices, peer[1])
    torch.testing.assert_close(values, peer[0], rtol=2 * torch.finfo(dtype).eps, atol=2e-5)


def test_second_encoder_repairs_a_token_whose_largest_share_a_bucket():
    x, W, b = one_bucket()
    results = []
    assert failures(lambda: results.append(run_topk(x, W, b, 8, config=config(kept=4, vendor=True)))) == 1
    assert_same(results[0], topk_naive.topk_encode(x, W, b, 8, None))


def test_topk_takes_its_tokens_in_parts_where_everything_is_kept(monkeypatch):
    monkeypatch.setattr(topk, "DENSE_BYTES", 1)
    x, W, b = encoder(35, 67, 5)
    assert_same(run_topk(x, W, b, 60, config=EVERYTHING), topk_naive.topk_encode(x, W, b, 60, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_topk_of_random_numbers_is_as_exact_as_its_dtype(dtype):
    x, W, b = (torch.randn(s, device=DEVICE).to(dtype) for s in ((7, 53), (131, 53), (131,)))
    values, indices = run_topk(x, W, b, 5)
    expected, places = topk_naive.topk_encode(x.float(), W.float(), b.float(), 5, None)
    assert values.dtype == dtype
    torch.testing.assert_close(indices, places)
    torch.testing.assert_close(values.float(), expected, rtol=torch.finfo(dtype).eps, atol=2e-5)


def test_topk_of_two_dtypes_is_of_the_one_they_promote_to():
    x, W, b = encoder(3, 67, 5)
    values, indices = run_topk(x.bfloat16(), W, b, 4, b_pre=whole(5))
    assert values.dtype == torch.float32
    assert indices.dtype == torch.int64


def test_topk_refuses_fp64():
    x, W, b = (t.double() for t in encoder(3, 67, 5))
    with pytest.raises(ValueError, match="float64"):
        topk.topk_encode(x, W, b, 4)


def test_topk_of_negative_rows_lists_zeros():
    x, W, b = encoder(3, 67, 5)
    b = b - 1000
    actual = run_topk(x, W, b, 4)
    assert (actual[0] == 0).all()
    assert_same(actual, topk_naive.topk_encode(x, W, b, 4, None))


def test_topk_orders_nan_and_infinity_as_the_reference_does():
    x, W, b = encoder(6, 131, 5)
    x[1, 2] = torch.nan
    x[2, 0] = torch.inf
    b[[3, 40, 100]] = torch.nan
    b[[5, 77]] = torch.inf
    b[[6, 78]] = -torch.inf
    assert_same(run_topk(x, W, b, 6), topk_naive.topk_encode(x, W, b, 6, None))
    b[:] = -torch.inf
    assert_same(run_topk(x, W, b, 6), topk_naive.topk_encode(x, W, b, 6, None))


def test_topk_of_strided_inputs():
    x, W, b = whole(5, 22)[:, ::2], whole(11, 67).T, whole(134)[::2]
    b_pre = whole(22)[::2]
    with guarded_allocations():
        actual = topk.topk_encode(x, W, b, 4, b_pre, config=config())
    assert_same(actual, topk_naive.topk_encode(x, W, b, 4, b_pre))


def failures(run) -> float:
    """Tokens that failed the certificate in `run`."""
    device = torch.empty(0, device=DEVICE).device
    counter = topk._counter(device)
    before = int(counter)
    run()
    return int(counter) - before


def one_bucket(F: int = 130) -> tuple[Tensor, Tensor, Tensor]:
    """Token 0: its ten largest in the second bucket of 32, in rising order; token 1: two in each of four buckets."""
    x, W, b = torch.eye(2, 16, device=DEVICE), torch.zeros(F, 16, device=DEVICE), torch.zeros(F, device=DEVICE)
    W[32:42, 0] = torch.arange(10.0, 20.0, device=DEVICE)
    W[[0, 1, 32, 33, 64, 65, 96, 97], 1] = torch.arange(1.0, 9.0, device=DEVICE)
    return x, W, b


def test_topk_repairs_a_token_whose_largest_share_a_bucket():
    x, W, b = one_bucket()
    results = []
    assert failures(lambda: results.append(run_topk(x, W, b, 8, config=config(kept=4)))) == 1
    assert_same(results[0], topk_naive.topk_encode(x, W, b, 8, None))
    assert results[0][1][0].tolist() == [41, 40, 39, 38, 37, 36, 35, 34]


def test_topk_repairs_several_buckets_of_one_token():
    x, W, b = torch.ones(1, 3, device=DEVICE), whole(130, 3), torch.zeros(130, device=DEVICE)
    W[:64] += 50
    W[96:103] += 20
    results = []
    assert failures(lambda: results.append(run_topk(x, W, b, 30, config=config(kept=8)))) == 1
    assert_same(results[0], topk_naive.topk_encode(x, W, b, 30, None))


def test_certificate_fails_on_a_hidden_equal_entry_of_lower_index():
    # bucket 0 holds five equal entries and keeps two; bucket 1 holds one more of the same value. The three first are
    # 0, 1, 2, of which 2 is hidden: by value alone the certificate would pass and list 32
    x, W, b = torch.ones(1, 16, device=DEVICE), torch.zeros(64, 16, device=DEVICE), torch.zeros(64, device=DEVICE)
    b[[0, 1, 2, 3, 4, 32]] = 1.0
    results = []
    assert failures(lambda: results.append(run_topk(x, W, b, 3, config=config(kept=2)))) == 1
    assert results[0][1].tolist() == [[0, 1, 2]]


def test_certificate_holds_where_the_last_selected_is_the_last_kept():
    x, W, b = torch.ones(1, 16, device=DEVICE), torch.zeros(64, 16, device=DEVICE), torch.zeros(64, device=DEVICE)
    b[[0, 1, 2, 3, 4, 32]] = 1.0
    results = []
    assert failures(lambda: results.append(run_topk(x, W, b, 2, config=config(kept=2)))) == 0
    assert results[0][1].tolist() == [[0, 1]]


def test_topk_twice_is_bit_identical():
    x, W, b = (torch.randn(s, device=DEVICE) for s in ((3, 53), (131, 53), (131,)))
    assert_same(run_topk(x, W, b, 6, config=config(kept=2)), run_topk(x, W, b, 6, config=config(kept=2)))


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 20), st.integers(1, 150), st.integers(1, 40), st.data())
def test_topk_at_any_shape(N, F, d, data):
    k = data.draw(st.integers(1, min(F, 12)))
    x, W, b = encoder(N, F, d)
    how = data.draw(st.sampled_from([config(kept=16), EVERYTHING, config(bucket=16, kept=8)]))
    buckets = -(-F // how.bucket)
    if (buckets - 1) * how.kept + min(how.kept, F - (buckets - 1) * how.bucket) < k:
        how = EVERYTHING
    assert_same(run_topk(x, W, b, k, config=how), topk_naive.topk_encode(x, W, b, k, None))


def run_threshold(x, W, b, theta, margin=0.0, b_pre=None, **options):
    with guarded_allocations():
        arguments = (guarded(x), guarded(W), guarded(b), theta, margin, b_pre)
        return threshold.threshold_encode(*arguments, **{"config": config()} | options)


@pytest.mark.parametrize("vendor", [False, True])
@pytest.mark.parametrize("dense", [0.0, 0.05, 1.0])
@pytest.mark.parametrize(("N", "F", "d", "theta"), [(5, 131, 13, 20), (19, 67, 5, 6), (1, 33, 3, -9), (0, 67, 5, 1)])
def test_threshold_equals_the_reference_on_every_route(monkeypatch, N, F, d, theta, dense, vendor):
    monkeypatch.setattr(threshold, "DENSE", dense)
    x, W, b = encoder(N, F, d)
    bars = theta + whole(F)
    actual = run_threshold(x, W, b, bars, 0.5, whole(d) * 0 + 1, config=config(vendor=vendor))
    assert_same(actual, threshold_naive.threshold_encode(x, W, b, bars, 0.5, torch.ones(d, device=DEVICE)))


def test_threshold_repairs_full_buckets(monkeypatch):
    monkeypatch.setattr(threshold, "DENSE", 1.0)
    x, W, b = encoder(4, 200, 5)
    b[64:96] += 100
    b[70] = torch.nan
    theta = torch.full_like(b, 15.0)
    expected = threshold_naive.threshold_encode(x, W, b, theta, 0.0, None)
    assert_same(run_threshold(x, W, b, theta), expected)


def test_threshold_keeps_nothing_and_everything():
    x, W, b = encoder(3, 67, 5)
    for bar in (1e9, -1e9):
        theta = torch.full_like(b, bar)
        assert_same(run_threshold(x, W, b, theta), threshold_naive.threshold_encode(x, W, b, theta, 0.0, None))


@pytest.mark.parametrize("guess", [None, 8.0, 60.0, -200.0])
@pytest.mark.parametrize(("N", "F", "d", "k"), [(5, 131, 13, 3), (1, 67, 5, 1), (2, 33, 3, 33), (0, 67, 5, 1)])
def test_batch_topk_is_exact_whatever_the_guess(N, F, d, k, guess):
    x, W, b = encoder(N, F, d)
    with guarded_allocations():
        actual = batch.batch_topk_encode(guarded(x), guarded(W), guarded(b), k, None, guess, config=config())
    assert actual[0].shape[0] == N * k
    assert_same(actual, batch_naive.batch_topk_encode(x, W, b, k, None, guess))


def test_batch_topk_estimates_its_bar_from_a_sample(monkeypatch):
    monkeypatch.setattr(batch, "SAMPLE_TOKENS", 4)
    x, W, b = encoder(40, 67, 5)
    actual = batch.batch_topk_encode(x, W, b, 2, config=config())
    assert_same(actual, batch_naive.batch_topk_encode(x, W, b, 2, None, None))


def test_batch_topk_cuts_back_while_it_holds_everything(monkeypatch):
    monkeypatch.setattr(topk, "DENSE_BYTES", 1)
    x, W, b = encoder(35, 67, 5)
    b[3] = torch.nan
    actual = batch.batch_topk_encode(x, W, b, 1, config=config())
    assert_same(actual, batch_naive.batch_topk_encode(x, W, b, 1, None, None))


def make_codes(N: int, F: int, K: int, csr: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes with zeros among them; every third CSR token empty."""
    if csr:
        listed = torch.rand(N, F) < K / F
        listed[::3] = False
        offsets = torch.nn.functional.pad(listed.sum(1).cumsum(0), (1, 0))
        indices = listed.nonzero()[:, 1]
        return tuple(t.to(DEVICE) for t in ((torch.rand(indices.shape) - 0.3).relu(), indices, offsets))
    rows = [torch.randperm(F)[:K] for _ in range(N)]
    indices = torch.stack(rows) if rows else torch.empty(0, K, dtype=torch.int64)
    return (torch.rand(N, K) - 0.3).relu().to(DEVICE), indices.to(DEVICE), None


CODES = [(7, 13, 5, 17, False), (10, 13, 5, 70, True), (1, 5, 1, 3, False), (3, 7, 7, 131, False), (0, 5, 3, 8, False)]


@pytest.mark.parametrize(("N", "F", "K", "d", "csr"), CODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_equals_the_reference(N, F, K, d, csr, dtype):
    values, indices, offsets = make_codes(N, F, K, csr)
    W, b, values = torch.randn(F, d, device=DEVICE).to(dtype), torch.randn(d, device=DEVICE).to(dtype), values.to(dtype)
    starts = None if offsets is None else guarded(offsets)
    with guarded_allocations():
        actual = decode.sparse_decode(guarded(values), guarded(indices), starts, guarded(W), guarded(b))
    expected = SparseCodes(values.double(), indices, F, offsets).to_dense() @ W.double() + b.double()
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_decode_of_strided_inputs_and_nan_atoms():
    values, indices, _ = make_codes(5, 13, 4, False)
    W = torch.randn(17, 13, device=DEVICE).T
    W[indices[2, 1]] = torch.nan
    actual = decode.sparse_decode(values.T.contiguous().T, indices.T.contiguous().T, None, W, torch.zeros(17))
    assert actual[2].isnan().all()
    listed = (indices == indices[2, 1]).any(1)
    assert not actual[~listed].isnan().any()


def test_decode_addresses_atoms_beyond_two_to_the_31():
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 5 << 30:
        pytest.skip("the GPU has less than 5 GB free")
    # memory is reserved, not touched, but for three rows
    stride = 2**30 + 64
    W = torch.empty(2 * stride + 64, dtype=torch.bfloat16, device=DEVICE).as_strided((3, 8), (stride, 1))
    W.copy_(whole(3, 8))
    values, indices = torch.tensor([[2.0, 1.0]], device=DEVICE).bfloat16(), torch.tensor([[2, 0]], device=DEVICE)
    actual = decode.sparse_decode(values, indices, None, W, torch.zeros(8, device=DEVICE).bfloat16())
    torch.testing.assert_close(actual, 2 * W[2:3] + W[0:1])


@pytest.mark.parametrize("segment", [512, 4])
@pytest.mark.parametrize("given_", ["g W x", "g W", "g", "x"])
@pytest.mark.parametrize(("N", "F", "K", "d", "csr"), [*CODES, (33, 5, 3, 11, False), (30, 5, 3, 70, True)])
def test_sweep_equals_the_reference(N, F, K, d, csr, given_, segment):
    values, indices, offsets = make_codes(N, F, K, csr)
    g, x, W = (torch.randn(s, d, device=DEVICE) for s in (N, N, F))
    slopes = torch.randn(values.shape, device=DEVICE)
    asked = (g if "g" in given_ else None, W if "W" in given_ else None, x if "x" in given_ else None)
    rest = (*asked, slopes if given_ == "x" else None)
    expected = sweep_naive.latent_sweep(SparseCodes(values, indices, F, offsets), *rest)
    codes = SparseCodes(guarded(values), guarded(indices), F, None if offsets is None else guarded(offsets))
    with guarded_allocations():
        actual = sweep.latent_sweep(codes, *(None if t is None else guarded(t) for t in rest), segment=segment)
    for a, e in zip(actual, expected, strict=True):
        assert (a is None) == (e is None)
        if a is not None:
            torch.testing.assert_close(a, e, rtol=1e-5, atol=2e-5)


def test_sweep_in_bf16_accumulates_in_fp32():
    values, indices, _ = make_codes(40, 5, 3, False)
    g, x, W = (torch.randn(s, 19, device=DEVICE).bfloat16() for s in (40, 40, 5))
    codes = SparseCodes(values.bfloat16(), indices, 5)
    actual = sweep.latent_sweep(codes, g, W, x, None)
    expected = sweep_naive.latent_sweep(codes, g.float(), W.float(), x.float(), None)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, e, rtol=1e-5, atol=2e-5)


def test_sweep_passes_the_gradient_of_a_nan_value_on():
    values, indices = torch.tensor([[torch.nan, 0.0]], device=DEVICE), torch.tensor([[0, 1]], device=DEVICE)
    x, slopes = torch.ones(1, 4, device=DEVICE), torch.ones(1, 2, device=DEVICE)
    _, _, grad_W, grad_b = sweep.latent_sweep(SparseCodes(values, indices, 2), None, None, x, slopes)
    assert grad_b.tolist() == [1.0, 0.0]
    assert grad_W.sum(1).tolist() == [4.0, 0.0]


def test_sweep_twice_is_bit_identical():
    values, indices, _ = make_codes(60, 7, 3, False)
    g, x, W = (torch.randn(s, 19, device=DEVICE) for s in (60, 60, 7))
    runs = [sweep.latent_sweep(SparseCodes(values, indices, 7), g, W, x, None, segment=8) for _ in range(2)]
    assert_same(*runs)


@pytest.mark.parametrize("scale", [None, 0.5, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("shape", "unit_rows"), [((5, 17), True), ((3, 1100), True), ((5, 17), False), ((1029,), False), ((0, 4), True)]
)
def test_adam_equals_the_reference(shape, unit_rows, scale):
    param = torch.randn(shape, device=DEVICE)
    param = torch.nn.functional.normalize(param, dim=1) if unit_rows else param
    grad, m, v = torch.randn_like(param), torch.randn_like(param) * 0.1, torch.rand_like(param)
    tensor = None if scale is None else torch.tensor(scale, device=DEVICE)
    options = adam_naive.Adam(step=3, lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-8), tensor, unit_rows
    actual, expected = [guarded(t) for t in (param, grad, m, v)], [t.clone() for t in (param, grad, m, v)]
    adam.adam_step(*actual, *options)
    adam_naive.adam_step(*expected, *options)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-7)
    if scale is not None and scale != 0.5:
        assert_same(tuple(actual), (param, grad, m, v))


def test_adam_takes_bf16_gradients_and_refuses_what_it_cannot_write():
    param, m, v = (torch.rand(6, 5, device=DEVICE) for _ in range(3))
    options = adam_naive.Adam(step=1, lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-8), None, False
    grad = torch.randn(5, 6, device=DEVICE).bfloat16().T
    expected = [param.clone(), grad.float(), m.clone(), v.clone()]
    adam.adam_step(param, grad, m, v, *options)
    adam_naive.adam_step(*expected, *options)
    torch.testing.assert_close(param, expected[0], rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="contiguous"):
        adam.adam_step(param.T, grad.T, m, v, *options)


class Step:
    """A step on random weights with every option: results of the forward pass, of the update, and what it wrote."""

    def __init__(self, N: int = 10, F: int = 13, d_in: int = 19, d_out: int = 19, K: int = 4, csr: bool = False):
        values, indices, offsets = make_codes(N, F, K, csr)
        self.codes = SparseCodes(values, indices, F, offsets)
        self.x, self.target = torch.randn(N, d_in, device=DEVICE), torch.randn(N, d_out, device=DEVICE)
        atoms = torch.nn.functional.normalize(torch.randn(F, d_out), dim=1).to(DEVICE)
        bias = torch.randn(F, device=DEVICE)
        self.params = Parameters(torch.randn(F, d_in, device=DEVICE), bias, atoms, whole(d_out))
        self.moments = [Parameters(*(torch.rand_like(p) for p in self.params)) for _ in range(2)]
        rows = torch.tensor([2, 5], device=DEVICE)
        shapes = ((2, d_in), (2,), (2, d_out))
        self.extra: RowGradients | None = RowGradients(rows, *(torch.randn(s, device=DEVICE) for s in shapes))

    def run(self, backend: str, *, dtype: torch.dtype | None = None, forward: dict | None = None, **update) -> list:
        group = [Parameters(*(guarded(t) for t in part)) for part in (self.params, *self.moments)]
        copies = None if dtype is None else Copies(*(guarded(t) for t in copies_of(group[0], dtype)))
        with use_backend(backend), guarded_allocations() if backend == "gpu" else contextlib.nullcontext():
            step = fused_forward(
                group[0], self.x, codes=self.codes, target=self.target, copies=copies, **(forward or {})
            )
            update = {"step": 3, "lr": 1e-2, "extra": self.extra} | update
            result = fused_update(*group, step, **update)
        self.applied = bool(result.applied)
        written = [t for part in group for t in part]
        # the dots are made in forward by some backends, in update by others
        return [step.residual, step.squared_error, step.spread, result.grad_norm, *written, *(copies or ())]

    def check(self, rtol: float = 1e-5, **options) -> None:
        for actual, expected in zip(self.run("gpu", **options), self.run("naive", **options), strict=True):
            if actual.dtype == torch.uint8:
                # a sum that differs in its last bit may round to the other neighbour
                assert (actual.int() - expected.int()).abs().max() <= 1
                continue
            # the distance of two bf16 numbers, to one of which a moment was rounded
            bound = max(rtol, 2**-7) if actual.dtype == torch.bfloat16 else rtol
            torch.testing.assert_close(actual.float(), expected.float(), rtol=bound, atol=2 * rtol)
        assert self.applied

    def store_as(self, weights: torch.dtype, moments: torch.dtype) -> None:
        """Both matrices, and their moments, in other formats."""
        self.params = Parameters(*(t.to(weights) if t.ndim == 2 else t for t in self.params))
        first, second = self.moments
        self.moments = [
            Parameters(*(store(t, zero_moment(t, moments), kind, 1) if t.ndim == 2 else t for t in part))
            for part, kind in ((first, "m"), (second, "v"))
        ]


@pytest.mark.parametrize("max_norm", [None, 1e6, 0.1])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("csr", [False, True])
def test_fused_step_equals_the_reference(csr, tied, max_norm):
    Step(csr=csr).check(forward={"tied": tied, "dots": csr}, max_norm=max_norm)


@pytest.mark.parametrize("max_norm", [1e6, 0.1])
@pytest.mark.parametrize("dots", [True, False])
@pytest.mark.parametrize("prefixes", [[5, 13], [1, 2, 3, 13]])
def test_fused_step_of_nested_prefixes_equals_the_reference(prefixes, dots, max_norm):
    step = Step(csr=True)
    step.check(forward={"prefixes": prefixes, "dots": dots}, max_norm=max_norm)


@pytest.mark.parametrize(("d_in", "d_out"), [(5, 40), (300, 17)])
def test_fused_step_of_two_widths_equals_the_reference(d_in, d_out):
    Step(d_in=d_in, d_out=d_out, csr=True).check(forward={"tied": False, "prefixes": [4, 13]}, max_norm=0.1)


def test_fused_step_passes_given_slopes_on_whatever_the_value():
    step = Step(csr=True)
    through = torch.randn(step.codes.values.shape, device=DEVICE)
    more = torch.tensor(4.0, dtype=torch.float64, device=DEVICE)
    for max_norm in (1e6, 0.1):
        step.check(through=through, more=more, max_norm=max_norm, extra=None)


@pytest.mark.parametrize("csr", [False, True])
@pytest.mark.parametrize("slopes", [False, True])
def test_fused_step_divides_latents_with_many_entries(monkeypatch, csr, slopes):
    monkeypatch.setattr(gpu_sweep, "SEGMENT", 4)
    step = Step(N=33, F=5, K=3, csr=csr)
    assert step.extra is not None
    step.extra = step.extra._replace(rows=torch.tensor([4, 1], device=DEVICE))
    through = torch.randn(step.codes.values.shape, device=DEVICE) if slopes else None
    step.check(max_norm=0.1, through=through, rtol=2e-5)


def test_fused_step_of_several_programs_equals_the_reference():
    Step(N=7, F=35).check(max_norm=0.1)


@pytest.mark.parametrize("prefixes", [None, [3, 13]])
def test_fused_step_in_bf16_reads_and_renews_the_copies(prefixes):
    step = Step(csr=prefixes is not None)
    options = {"dtype": torch.bfloat16, "forward": {"prefixes": prefixes}, "max_norm": 0.1, "extra": None}
    step.check(rtol=1e-2, **options)
    *_, W_enc, W_dec, norms = results = step.run("gpu", **options)
    assert results[0].dtype == W_enc.dtype == torch.bfloat16
    # the interpreter cuts the mantissa off where a GPU rounds it
    torch.testing.assert_close(W_enc.float(), results[4], rtol=2**-7, atol=0)
    torch.testing.assert_close(W_dec.float(), results[6], rtol=2**-7, atol=0)
    torch.testing.assert_close(norms.max(), results[4].norm(dim=1).max())


@pytest.mark.parametrize("max_norm", [1e6, 0.1])
def test_fused_step_with_moments_in_bf16_equals_the_reference(max_norm):
    step = Step(csr=True)
    step.store_as(torch.float32, torch.bfloat16)
    step.check(max_norm=max_norm)


def test_adam_with_moments_in_bf16_draws_the_reference_s_bits():
    param = torch.nn.functional.normalize(torch.randn(5, 17, device=DEVICE), dim=1)
    # differences of two bf16 numbers are exact in fp32, so that both sums are: only what is drawn decides
    m, v = (torch.rand_like(param).bfloat16() for _ in range(2))
    grad = torch.zeros_like(param)
    for unit_rows in (False, True):
        options = adam_naive.Adam(step=7, lr=1e-2, beta1=0.75, beta2=0.875, eps=1e-8), None, unit_rows
        actual, expected = [guarded(t) for t in (param, grad, m, v)], [t.clone() for t in (param, grad, m, v)]
        adam.adam_step(*actual, *options)
        adam_naive.adam_step(*expected, *options)
        assert_same(tuple(actual[2:]), tuple(expected[2:]))
        assert not torch.equal(actual[2], (m.float() * 0.75).bfloat16())
        torch.testing.assert_close(actual[0], expected[0], rtol=1e-6, atol=1e-7)


def test_fused_step_twice_is_bit_identical(monkeypatch):
    monkeypatch.setattr(gpu_sweep, "SEGMENT", 4)
    step = Step(N=40, F=21, csr=True)
    assert_same(*(tuple(step.run("gpu", max_norm=0.1)) for _ in range(2)))


@pytest.mark.parametrize(("N", "K"), [(0, 3), (1, 1)])
def test_fused_step_of_tiny_batches(N, K):
    Step(N=N, K=K).check(max_norm=1.0)


def test_norm_is_measured_only_where_the_bound_asks_for_it(monkeypatch):
    step, squares = Step(), []
    plain = gpu_sweep.sweep
    monkeypatch.setattr("sae_kernels.fused_step.gpu.sweep", lambda *a: squares.append(plain(*a)) or squares[-1])
    norm = step.run("gpu", max_norm=1e6)[3]
    assert [bool(s.any()) for _, s in squares] == [False, True]
    step.run("gpu", max_norm=1.01 * norm.item())
    assert [bool(s.any()) for _, s in squares[2:]] == [True, True]


def test_dots_are_made_for_the_bound_only_where_residuals_are_too_coarse(monkeypatch):
    step, norms = Step(csr=True), []
    plain = gpu_forward.dot_norm
    monkeypatch.setattr("sae_kernels.fused_step.gpu.dot_norm", lambda *a: norms.append(plain(*a)) or norms[-1])
    with use_backend("naive"):
        forward = fused_forward(step.params, step.x, codes=step.codes, target=step.target, prefixes=[4, 13])
    for max_norm in (1e6, 1.0):
        step.run("gpu", max_norm=max_norm, forward={"dots": False, "prefixes": [4, 13]})
    assert norms[0] == 0
    torch.testing.assert_close(norms[1], forward.dots[step.codes.values > 0].norm())


@pytest.mark.parametrize("where", ["x", "target", "atom", "extra", "more", "forbidden"])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_fused_step_writes_nothing_where_the_gradient_is_not_finite(where, max_norm):
    step, more, allowed = Step(), 0.0, None
    if where == "x":
        step.x[3, 2] = torch.nan
    elif where == "target":
        step.target[3, 2] = torch.inf
    elif where == "atom":
        step.params.W_dec[step.codes.indices[0, 0], 0] = torch.nan
    elif where == "extra":
        assert step.extra is not None
        step.extra.b_enc[1] = torch.nan
    elif where == "more":
        more = torch.nan
    else:
        allowed = torch.tensor(False, device=DEVICE)
    written = step.run("gpu", max_norm=max_norm, more=more, allowed=allowed)[4:]
    assert not step.applied
    before = [*step.params, *(t for part in step.moments for t in part)]
    assert_same(tuple(written), tuple(before))


def test_fused_step_addresses_rows_beyond_two_to_the_31(monkeypatch):
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("the GPU has less than 40 GB free")
    # the row stride of the inputs is all that can be so large here: memory is reserved, not touched, but for two rows
    step, stride = Step(N=3, F=5, K=2), 2**30 + 64
    centred = torch.empty(2 * stride + 64, dtype=torch.bfloat16, device=DEVICE).as_strided((3, 19), (stride, 1))
    centred.copy_(step.x)
    results = []
    for rows in (centred, centred.contiguous()):
        step.extra = None
        results.append(tuple(step.run("gpu", dtype=torch.bfloat16, forward={"centred": rows}, max_norm=1e6)))
    assert_same(*results)


@pytest.mark.parametrize("unit_rows", [False, True])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("moments", [torch.bfloat16, torch.uint8])
def test_adam_draws_the_reference_s_bits_in_every_format(unit_rows, weights, moments):
    param = torch.nn.functional.normalize(torch.randn(130, 17, device=DEVICE), dim=1).to(weights)
    m, v = (store(torch.rand(130, 17, device=DEVICE), zero_moment(param, moments), kind, 1) for kind in ("m", "v"))
    if moments == torch.uint8:
        m[7], v[9] = 0, 0
    # numbers of few bits and factors of two: both sums are exact, so that only what is drawn decides
    grad = torch.zeros(130, 17, device=DEVICE)
    options = adam_naive.Adam(step=7, lr=1e-2, beta1=0.75, beta2=0.875, eps=1e-8), None, unit_rows
    actual, expected = [guarded(t) for t in (param, grad, m, v)], [t.clone() for t in (param, grad, m, v)]
    adam.adam_step(*actual, *options)
    adam_naive.adam_step(*expected, *options)
    assert_same(tuple(actual[2:]), tuple(expected[2:]))
    distance = 2**-7 if weights == torch.bfloat16 else 1e-6
    torch.testing.assert_close(actual[0].float(), expected[0].float(), rtol=distance, atol=1e-7)
    if weights == torch.bfloat16:
        # float32's last bit is that of a quotient and a root; it moves few draws
        assert (actual[0] == expected[0]).float().mean() > 0.98


@pytest.mark.parametrize("max_norm", [1e6, 0.1])
@pytest.mark.parametrize(
    ("weights", "moments"),
    [(torch.float32, torch.uint8), (torch.bfloat16, torch.uint8), (torch.bfloat16, torch.float32)],
)
def test_fused_step_in_every_format_equals_the_reference(max_norm, weights, moments):
    step = Step(csr=True, d_in=5, d_out=40) if max_norm == 0.1 else Step(N=7, F=35)
    step.store_as(weights, moments)
    step.check(max_norm=max_norm, forward={"tied": max_norm == 1e6}, eps=1e-1)


def test_fused_step_renews_copies_of_weights_in_bf16_as_they_were_rounded():
    step = Step()
    step.store_as(torch.bfloat16, torch.uint8)
    *_, W_enc, W_dec, _ = results = step.run("gpu", dtype=torch.float32)
    assert results[4].dtype == results[6].dtype == torch.bfloat16
    assert_same((W_enc, W_dec), (results[4].float(), results[6].float()))


@pytest.mark.parametrize("op", ENCODES)
def test_the_tuner_s_choice_is_used_and_changes_no_code(op, tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_KERNELS_CACHE", str(tmp_path))
    tuning._measured.cache_clear()
    x, W, b = encoder(40, 130, 21)
    run = runner(op, x, W, b, 3)
    plain = run(None)
    # the vendor's product, the second to be tried, is said to be the fastest; only these are run
    times: list[float] = []

    def timer(call) -> float:
        if len(times) < 2:
            call()
        times.append(abs(len(times) - 1))
        return times[-1]

    tuned = tune(op, x, W, b, 3, timer)
    assert tuned.config.vendor
    assert tuned.milliseconds.keys() == {"fused", "vendor"}
    assert len(json.loads((tmp_path / "tuning.json").read_text())) == 1
    assert_same(run(None), plain)
    tuning._measured.cache_clear()
