"""sparse_decode and latent_sweep on the CPU, rectangular and CSR codes."""

from __future__ import annotations

import pytest
import torch
from op_cases import assert_as_good, make_case
from torch.testing import assert_close

from sae_kernels import SparseCodes, last_backend, latent_sweep, sparse_decode, use_backend

SHAPES = [(0, 7, 67, 3), (1, 1, 67, 1), (5, 13, 67, 67), (37, 31, 1009, 32), (129, 97, 499, 6)]


def random_codes(N: int, F: int, k: int, csr: bool, dtype=torch.float32, seed: int = 0) -> SparseCodes:
    """Codes with some zeros among their values; as CSR, some tokens list nothing."""
    draw = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(F, generator=draw)[:k] for _ in range(N)]) if N else torch.empty(0, k).long()
    values = torch.relu(torch.randn(N, k, generator=draw) + 0.5).to(dtype)
    if not csr:
        return SparseCodes(values, indices, F)
    listed = torch.rand(N, k, generator=draw) < 0.6
    listed[::3] = False
    offsets = torch.nn.functional.pad(listed.sum(1).cumsum(0), (1, 0))
    return SparseCodes(values[listed], indices[listed], F, offsets)


def with_dtype(codes: SparseCodes, dtype: torch.dtype) -> SparseCodes:
    return SparseCodes(codes.values.detach().to(dtype).requires_grad_(), codes.indices, codes.width, codes.offsets)


def decoded(codes, W, b, dtype, backend):
    """Output and gradients of values, W and b."""
    codes, W, b = with_dtype(codes, dtype), *(t.detach().to(dtype).requires_grad_() for t in (W, b))
    with use_backend(backend):
        out = sparse_decode(codes, W, b)
        out.double().sin().sum().backward()
    return [out.detach(), codes.values.grad, W.grad, b.grad]


@pytest.mark.parametrize("csr", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("N", "d", "F", "k"), SHAPES)
def test_decode_and_its_gradients_match_the_reference(N, d, F, k, dtype, csr):
    case = make_case(N, d, F, dtype=dtype)
    codes = random_codes(N, F, k, csr, dtype)
    actual = decoded(codes, case.W_dec / 8, case.b_dec, dtype, "cpu")
    assert last_backend("sparse_decode") == last_backend("latent_sweep") == "cpu"
    peer = decoded(codes, case.W_dec / 8, case.b_dec, dtype, "naive")
    exact = decoded(codes, case.W_dec / 8, case.b_dec, torch.float64, "naive")
    for name, a, p, e in zip(["out", "values", "W_dec", "b_dec"], actual, peer, exact, strict=True):
        assert_as_good(a, p, e, name)


@pytest.mark.parametrize("csr", [False, True])
def test_reference_gradients_pass_gradcheck(csr):
    codes = random_codes(4, 23, 5, csr, torch.float64)
    case = make_case(4, 3, 23, dtype=torch.float64)

    def decode(values, W, b):
        return sparse_decode(SparseCodes(values, codes.indices, 23, codes.offsets), W, b)

    assert torch.autograd.gradcheck(decode, (codes.values.requires_grad_(), case.W_dec, case.b_dec))


@pytest.mark.parametrize("csr", [False, True])
@pytest.mark.parametrize(("N", "d", "F", "k"), SHAPES)
def test_sweep_matches_the_reference(N, d, F, k, csr):
    case = make_case(N, d, F)
    codes = random_codes(N, F, k, csr)
    g, x, W = (t.detach() for t in (case.x.cos(), case.x, case.W_dec))
    with use_backend("cpu"):
        actual = latent_sweep(codes, g, x, W)
    assert last_backend("latent_sweep") == "cpu"
    with use_backend("naive"):
        peer = latent_sweep(codes, g, x, W)
        exact = latent_sweep(with_dtype(codes, torch.float64), g.double(), x.double(), W.double())
    for name, a, p, e in zip(actual._fields, actual, peer, exact, strict=True):
        assert_as_good(a, p, e.detach(), name)


def test_sweep_is_what_autograd_makes_of_encode_and_decode():
    from sae_kernels import topk_encode

    case = make_case(37, 31, 1009)
    codes = topk_encode(case.x, case.W_enc, case.b_enc, 8)
    out = sparse_decode(codes, case.W_dec, case.b_dec)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(g)
    sweep = latent_sweep(codes, g, case.x.detach(), case.W_dec.detach())
    assert_close(sweep.W_dec, case.W_dec.grad)
    assert_close(sweep.W_enc, case.W_enc.grad)
    assert_close(sweep.b_enc, case.b_enc.grad)


def test_a_code_of_zero_passes_nothing_to_the_encoder_and_nan_does():
    codes = SparseCodes(torch.tensor([[0.0, 2.0], [torch.nan, 0.0]]), torch.tensor([[4, 9], [9, 70]]), 101)
    g, x, W = torch.ones(2, 3), torch.ones(2, 3), torch.ones(101, 3)
    for backend in ("cpu", "naive"):
        with use_backend(backend):
            sweep = latent_sweep(codes, g, x, W)
        assert sweep.b_enc[[4, 9, 70]].tolist() == [0.0, 6.0, 0.0]
        assert sweep.values.tolist() == [[3.0, 3.0], [3.0, 3.0]]
        assert sweep.W_dec[9].isnan().all()


def test_dense_codes_take_the_dense_product():
    case = make_case(5, 7, 40)
    latents = torch.arange(40).expand(5, 40)
    codes = SparseCodes(case.x @ case.W_enc.T, latents, 40)
    out = sparse_decode(codes, case.W_dec, case.b_dec)
    assert last_backend("sparse_decode") == "naive"
    assert_close(out, case.x @ case.W_enc.T @ case.W_dec + case.b_dec)
    sparse_decode(random_codes(5, 40, 4, False), case.W_dec, case.b_dec)
    assert last_backend("sparse_decode") == "cpu"


def test_inputs_need_not_be_contiguous():
    case = make_case(9, 12, 301)
    codes = random_codes(9, 301, 6, False)
    apart = SparseCodes(codes.values.T.contiguous().T, codes.indices.T.contiguous().T, 301)
    W, g, x = (t.detach() for t in (case.W_dec, case.x.cos(), case.x))

    def transposed(t):
        return t.T.contiguous().T

    with use_backend("cpu"):
        assert_close(sparse_decode(apart, transposed(W), case.b_dec), sparse_decode(codes, W, case.b_dec))
        for a, b in zip(
            latent_sweep(apart, transposed(g), transposed(x), transposed(W)), latent_sweep(codes, g, x, W), strict=True
        ):
            assert_close(a, b)


@pytest.mark.parametrize("csr", [False, True])
def test_the_same_bits_again_and_with_one_thread(csr):
    case = make_case(301, 96, 499)
    codes = random_codes(301, 499, 24, csr)
    g, x, W = (t.detach() for t in (case.x.cos(), case.x, case.W_dec))
    threads = torch.get_num_threads()

    def run():
        with use_backend("cpu"):
            return [*latent_sweep(codes, g, x, W), sparse_decode(codes, W, case.b_dec)]

    first, again = run(), run()
    torch.set_num_threads(1)
    try:
        alone = run()
    finally:
        torch.set_num_threads(threads)
    for a, b, c in zip(first, again, alone, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_a_latent_in_every_token_beside_latents_in_none():
    codes = SparseCodes(torch.ones(50, 1), torch.full((50, 1), 3), 200)
    x = torch.arange(100.0).reshape(50, 2)
    with use_backend("cpu"):
        sweep = latent_sweep(codes, x, x, torch.ones(200, 2))
    assert_close(sweep.W_dec[3], x.sum(0))
    sweep.W_dec[3] = 0
    assert sweep.W_dec.count_nonzero() == 0


def test_wrong_arguments_are_named():
    codes = random_codes(5, 67, 3, False)
    with pytest.raises(ValueError, match="67 latents"):
        sparse_decode(codes, torch.zeros(66, 4), torch.zeros(4))
    with pytest.raises(ValueError, match="b_dec"):
        sparse_decode(codes, torch.zeros(67, 4), torch.zeros(5))
    with pytest.raises(ValueError, match="W_dec"):
        latent_sweep(codes, torch.zeros(5, 4), torch.zeros(5, 4), torch.zeros(67, 5))
    with pytest.raises(ValueError, match="grad_out and x"):
        latent_sweep(codes, torch.zeros(6, 4), torch.zeros(5, 4), torch.zeros(67, 4))
