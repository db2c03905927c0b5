"""torch.compile sees through the ops, without a graph break and without compiling again for another N."""

from __future__ import annotations

import pytest
import torch
from op_cases import Case, make_case, twin
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

from sae_kernels import batch_topk_encode, sparse_decode, threshold_encode, topk_encode

OPS = torch.ops.sae_kernels


def loss_of(case, encode):
    codes = encode(case)
    return (sparse_decode(codes, case.W_dec, case.b_dec) - case.x).square().sum() + codes.values.sum()


def by_topk(case):
    return topk_encode(case.x, case.W_enc, case.b_enc, 5, case.b_pre)


def by_batch(case):
    return batch_topk_encode(case.x, case.W_enc, case.b_enc, 5, case.b_pre)


def by_threshold(case):
    return threshold_encode(case.x, case.W_enc, case.b_enc, 2.0, 0.1, case.b_pre)


@pytest.mark.parametrize("encode", [by_topk, by_batch, by_threshold])
def test_one_graph_serves_every_batch_size(encode):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *t: loss_of(Case(*t), encode), backend=counter, fullgraph=True, dynamic=True)
    graphs = []
    for N in (19, 33, 64):
        case, peer = (twin(make_case(N, 11, 301, seed=N), torch.float32) for _ in range(2))
        loss, expected = compiled(*case), loss_of(peer, encode)
        loss.backward()
        expected.backward()
        assert_close(loss, expected)
        for a, b in zip(case, peer, strict=True):
            assert_close(a.grad, b.grad)
        graphs.append(counter.frame_count)
    assert graphs == graphs[:1] * 3


def test_operators_pass_opcheck():
    case = make_case(9, 11, 301)
    x, W_enc, b_enc, b_pre, W_dec, b_dec = case
    values, indices = (t.detach() for t in OPS.topk_encode(x, W_enc, b_enc, 5, b_pre))
    torch.library.opcheck(OPS.topk_encode.default, (x, W_enc, b_enc, 5, b_pre))
    torch.library.opcheck(OPS.topk_encode.default, (x, W_enc, b_enc, 5, None))
    torch.library.opcheck(OPS.batch_topk_encode.default, (x, W_enc, b_enc, 5, b_pre, None))
    torch.library.opcheck(OPS.threshold_encode.default, (x, W_enc, b_enc, torch.full((301,), 1.5), 0.1, b_pre))
    listed = values.clone().requires_grad_()
    torch.library.opcheck(OPS.sparse_decode.default, (listed, indices, None, W_dec, b_dec))
    g = torch.randn(9, 11)
    torch.library.opcheck(OPS.latent_sweep.default, (values, indices, None, g, x.detach(), W_dec.detach()))
    torch.library.opcheck(OPS.decode_backward.default, (values, indices, None, g, W_dec.detach()))
    torch.library.opcheck(OPS.encode_weight_backward.default, (values, values, indices, None, x.detach(), 301))


def test_fake_tensors_know_shapes_and_dtypes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, W = torch.empty(7, 11, dtype=torch.bfloat16), torch.empty(301, 11)
        codes = topk_encode(x, W, torch.empty(301), 5)
        out = sparse_decode(codes, W, torch.empty(11))
    assert codes.values.shape == codes.indices.shape == (7, 5)
    assert codes.values.dtype == torch.float32
    assert codes.indices.dtype == torch.int64
    assert out.shape == (7, 11)
