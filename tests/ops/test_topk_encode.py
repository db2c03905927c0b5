"""topk_encode on the CPU: the exact selection, its order, its gradients, its odd inputs."""

from __future__ import annotations

import pytest
import torch
from op_cases import assert_as_good, make_case, outputs_and_gradients, twin
from torch.testing import assert_close

from sae_kernels import last_backend, topk_encode, use_backend
from sae_kernels.topk_encode import cpu

# F and d prime, N odd; F around the least number of lanes, 64; d beyond the depth of a tile; K = 1 and K = F
SHAPES = [
    (0, 7, 67, 3),
    (1, 7, 701, 1),
    (5, 13, 63, 63),
    (5, 13, 64, 7),
    (37, 31, 1009, 32),
    (37, 31, 4099, 65),
    (3, 5, 131, 131),
    (3, 2, 9001, 700),
    (33, 521, 257, 5),
]


@pytest.fixture(autouse=True, params=[True, False], ids=["fused", "torch's product"])
def product(request, monkeypatch):
    """Every test runs with the product of our own and with torch's, whatever the batch and the processor."""
    monkeypatch.setattr(cpu, "is_fused", lambda *_: request.param)


def encode(k):
    return lambda case: topk_encode(case.x, case.W_enc, case.b_enc, k, case.b_pre)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("N", "d", "F", "k"), SHAPES)
def test_values_and_every_gradient_match_the_reference(N, d, F, k, dtype):
    case = make_case(N, d, F, dtype=dtype)
    codes, actual = outputs_and_gradients(twin(case, dtype), encode(k), "cpu")
    assert last_backend("topk_encode") == last_backend("sparse_decode") == last_backend("latent_sweep") == "cpu"
    _, peer = outputs_and_gradients(twin(case, dtype), encode(k), "naive")
    assert last_backend("topk_encode") == "naive"
    reference, exact = outputs_and_gradients(twin(case, torch.float64), encode(k), "naive")
    # neighbours closer than fp32 resolves may have changed places
    assert torch.equal(codes.indices.sort().values, reference.indices.sort().values)
    assert codes.indices.dtype == torch.int64
    names = ["values", "out", "x", "W_enc", "b_enc", "b_pre", "W_dec", "b_dec"]
    for name, a, p, e in zip(names, actual, peer, exact, strict=True):
        assert_as_good(a, p, e, name)


def test_float64_runs_the_reference_and_says_so():
    case = make_case(5, 7, 67, dtype=torch.float64)
    assert topk_encode(case.x, case.W_enc, case.b_enc, 3, case.b_pre).values.dtype == torch.float64
    assert last_backend("topk_encode") == "naive"
    with use_backend("cpu"), pytest.raises(ValueError, match="float64"):
        topk_encode(case.x, case.W_enc, case.b_enc, 3)


def test_reference_gradients_pass_gradcheck():
    case = make_case(4, 5, 23, dtype=torch.float64)

    def values(*inputs):
        return topk_encode(inputs[0], inputs[1], inputs[2], 4, inputs[3]).values

    assert torch.autograd.gradcheck(values, case[:4])


@pytest.mark.parametrize("backend", ["cpu", "naive"])
def test_ties_go_to_the_lowest_index(backend):
    x, W = torch.zeros(3, 5), torch.ones(777, 5)
    b = torch.zeros(777)
    b[[10, 700, 30, 701]] = 2.0
    b[[50, 60]] = -0.0
    with use_backend(backend):
        codes = topk_encode(x, W, b, 7)
    assert codes.indices.tolist() == [[10, 30, 700, 701, 0, 1, 2]] * 3
    assert codes.values.tolist() == [[2.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0]] * 3


@pytest.mark.parametrize("k", [1, 5, 40])
def test_many_equal_values_agree_with_the_reference(k):
    draw = torch.Generator().manual_seed(3)
    x = torch.randint(-2, 3, (41, 3), generator=draw).float()
    W = torch.randint(-1, 2, (1009, 3), generator=draw).float()
    b = torch.zeros(1009)
    with use_backend("cpu"):
        codes = topk_encode(x, W, b, k)
    with use_backend("naive"):
        reference = topk_encode(x, W, b, k)
    assert torch.equal(codes.indices, reference.indices)
    assert torch.equal(codes.values, reference.values)


def test_a_row_without_positive_values_lists_zeros_and_passes_no_gradient():
    case = make_case(5, 7, 701)
    b_enc = (case.b_enc.detach() - 1000).requires_grad_()
    with use_backend("cpu"):
        codes = topk_encode(case.x, case.W_enc, b_enc, 9, case.b_pre)
    with use_backend("naive"):
        reference = topk_encode(case.x, case.W_enc, b_enc, 9, case.b_pre)
    assert torch.equal(codes.indices, reference.indices)
    assert codes.values.count_nonzero() == 0
    codes.values.sum().backward()
    for tensor in (case.x, case.W_enc, b_enc, case.b_pre):
        assert tensor.grad.count_nonzero() == 0


@pytest.mark.parametrize("F", [67, 1009, 3001])
def test_nan_counts_as_largest_and_infinities_are_ordered(F):
    case = make_case(7, 5, F)
    x, W, b = case.x.detach(), case.W_enc.detach(), case.b_enc.detach()
    x[1, 2] = torch.nan
    x[2, 0] = torch.inf
    x[3, 1] = -torch.inf
    b[11], b[12], b[13] = torch.nan, torch.inf, -torch.inf
    W[20, 1] = torch.nan
    for k in (1, 5, F):
        with use_backend("cpu"):
            codes = topk_encode(x, W, b, k)
        with use_backend("naive"):
            reference = topk_encode(x, W, b, k)
        assert torch.equal(codes.indices, reference.indices)
        assert_close(codes.values, reference.values, equal_nan=True)
    assert codes.indices[1].tolist() == list(range(F))  # all NaN: ties, lowest first


def test_rows_of_minus_infinity_still_list_k_latents():
    x, W = torch.zeros(2, 3), torch.ones(500, 3)
    b = torch.full((500,), -torch.inf)
    b[400] = 1.0
    with use_backend("cpu"):
        codes = topk_encode(x, W, b, 4)
    assert codes.indices.tolist() == [[400, 0, 1, 2]] * 2
    assert codes.values.tolist() == [[1.0, 0.0, 0.0, 0.0]] * 2


def test_inputs_need_not_be_contiguous():
    case = make_case(9, 11, 301)
    x, W = case.x.detach(), case.W_enc.detach()
    b = case.b_enc.detach()
    with use_backend("cpu"):
        expected = topk_encode(x, W, b, 6)
        apart = topk_encode(x.T.contiguous().T, W.T.contiguous().T, torch.stack([b, b], 1)[:, 0], 6)
        every_second = topk_encode(torch.stack([x, x], 1).flatten(0, 1)[::2], W, b, 6)
    for codes in (apart, every_second):
        assert torch.equal(codes.indices, expected.indices)
        assert_close(codes.values, expected.values)


def test_the_latents_in_ascending_order_of_strength_are_the_worst_case_and_still_exact():
    # every next latent beats all before it: the bar never helps and the lists are cut again and again
    x = torch.ones(3, 1)
    W = torch.arange(5003.0)[:, None]
    with use_backend("cpu"):
        codes = topk_encode(x, W, torch.zeros(5003), 17)
    assert codes.indices.tolist() == [list(range(5002, 4985, -1))] * 3


def test_both_products_give_the_same_codes(monkeypatch):
    case = make_case(37, 521, 1009)
    codes = []
    for fused in (True, False):
        monkeypatch.setattr(cpu, "is_fused", lambda *_, fused=fused: fused)
        with use_backend("cpu"):
            codes.append(topk_encode(case.x, case.W_enc, case.b_enc, 32, case.b_pre))
    assert torch.equal(codes[0].indices.sort().values, codes[1].indices.sort().values)
    assert_close(codes[0].values, codes[1].values, rtol=1e-5, atol=1e-5)


def test_two_runs_are_bit_identical_for_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(cpu, "is_fused", lambda *_: True)  # torch's product may add in another order for other threads
    case = make_case(257, 96, 4099)
    threads = torch.get_num_threads()
    with use_backend("cpu"):
        first, again = (topk_encode(case.x, case.W_enc, case.b_enc, 32, case.b_pre) for _ in range(2))
        torch.set_num_threads(1)
        try:
            alone = topk_encode(case.x, case.W_enc, case.b_enc, 32, case.b_pre)
        finally:
            torch.set_num_threads(threads)
    for codes in (again, alone):
        assert torch.equal(first.values, codes.values)
        assert torch.equal(first.indices, codes.indices)


def test_autocast_changes_nothing():
    case = make_case(9, 11, 301)
    with use_backend("cpu"):
        expected = topk_encode(case.x, case.W_enc, case.b_enc, 6, case.b_pre)
        with torch.autocast("cpu", torch.bfloat16):
            codes = topk_encode(case.x, case.W_enc, case.b_enc, 6, case.b_pre)
            mixed = topk_encode(case.x.bfloat16(), case.W_enc, case.b_enc, 6, case.b_pre)
    assert torch.equal(codes.values, expected.values)
    assert codes.values.dtype == mixed.values.dtype == torch.float32
    codes.values.sum().backward()
    assert case.W_enc.grad.dtype == torch.float32


def test_only_the_gradients_asked_for_are_computed(monkeypatch):
    case = make_case(9, 11, 301)
    asked = []
    decode = torch.ops.sae_kernels.sparse_decode
    monkeypatch.setattr(torch.ops.sae_kernels, "sparse_decode", lambda *a: asked.append("x") or decode(*a))
    with use_backend("cpu"):
        topk_encode(case.x.detach(), case.W_enc, case.b_enc, 6, case.b_pre).values.sum().backward()
    assert asked == []
    assert case.b_pre.grad is not None


def test_gradient_of_dead_latents_own_pre_activations_reaches_the_encoder():
    # AuxK: the top k_aux of the dead rows alone, which the main selection never lists
    case = make_case(19, 11, 301)
    dead = torch.arange(100, 180)
    with use_backend("cpu"):
        codes = topk_encode(case.x, case.W_enc[dead], case.b_enc[dead], 5, case.b_pre)
        (codes.values**2).sum().backward()
    rows = case.W_enc.grad.abs().sum(1)
    assert rows[dead].count_nonzero() > 0
    rows[dead] = 0
    assert rows.count_nonzero() == 0
    assert case.b_enc.grad[dead].count_nonzero() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(k=0), "k = 0"),
        (dict(k=302), "k = 302"),
        (dict(x=torch.zeros(3, 12)), r"\(3, 12\)"),
        (dict(b_enc=torch.zeros(3)), "b_enc"),
        (dict(b_pre=torch.zeros(3)), "b_pre"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    case = make_case(9, 11, 301)
    given = dict(x=case.x, W_enc=case.W_enc, b_enc=case.b_enc, k=6, b_pre=case.b_pre) | change
    with pytest.raises(ValueError, match=message):
        topk_encode(**given)
