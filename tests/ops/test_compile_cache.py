"""A kernel compiled in this process and the copy of it that a later process loads give the same bits.

LLVM may optimise a kernel once for the process that compiles it and once more for the cache on the disk. Where
fastmath lets it choose the order of a sum, the two can differ: the first run on a machine would not equal the second.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

OPS = """
import hashlib
import torch
from sae_kernels import *
from sae_kernels.latent_sweep.op import encode_weight_backward
from sae_kernels.fused_step.op import group_starts

draw = torch.Generator().manual_seed(0)
N, d, F, k = 257, 67, 1031, 9


def normal(*shape):
    return torch.randn(*shape, generator=draw)


def show(name, *tensors):
    bits = (t.detach().contiguous().view(torch.uint8).numpy().tobytes() for t in tensors)
    print(name, *(hashlib.sha256(one).hexdigest()[:16] for one in bits))


x, target, W, b, bias = normal(N, d), normal(N, d), normal(F, d), 0.1 * normal(F), 0.1 * normal(d)
W = W / W.norm(dim=1, keepdim=True)
topk = topk_encode(x, W, b, k, bias)
show("topk_encode", topk.values, topk.indices)
batchtopk = batch_topk_encode(x, W, b, k, bias)
show("batch_topk_encode", batchtopk.values, batchtopk.indices)
above = threshold_encode(x, W, b, 1.5, b_pre=bias)
show("threshold_encode", above.values, above.indices)
pursued = pursue(x - bias, W, k)
show("pursue", pursued.values, pursued.indices)
for name, codes in {"topk": topk, "csr": above}.items():
    values = codes.values.clone().requires_grad_()
    rows, atoms = codes.with_values(values), W.clone().requires_grad_()
    out = sparse_decode(rows, atoms, bias)
    gradients = torch.autograd.grad((out - target).square().sum(), (values, atoms))
    show(f"sparse_decode, {name}", out, *gradients)
for unit, moments in ((True, torch.float32), (False, torch.float32), (True, torch.bfloat16), (False, torch.bfloat16)):
    state = [W.clone(), torch.zeros(F, d, dtype=moments), torch.zeros(F, d, dtype=moments)]
    for step in range(1, 4):
        gradient = normal(F, d)
        adam_step(state[0], gradient, *state[1:], step=step, lr=1e-2, unit_rows=unit)
    show(f"adam_step, unit_rows={unit}, {moments}", *state)
short = torch.bfloat16
for tied, codes, prefixes, moments in (
    (True, topk, None, None),
    (False, topk, None, None),
    (True, above, None, None),
    (True, above, [257, F], None),
    (True, topk, None, short),
):
    params = Parameters(W.clone(), b.clone(), W.clone(), bias.clone())
    # of the matrices alone
    m, v = (Parameters(*(torch.zeros_like(p, dtype=moments if p.ndim == 2 else None) for p in params)) for _ in "mv")
    for step in range(1, 4):
        kinds = {"codes": codes, "target": target, "tied": tied, "prefixes": prefixes}
        forward = fused_forward(params, x, **kinds, workspace=Workspace())
        fused_update(params, m, v, forward, step=step, lr=1e-2, max_norm=1.0)
    show(f"fused step, tied={tied}, {prefixes}, {moments}", forward.squared_error, *params, *m, *v)
"""


def test_a_compiled_kernel_and_its_cached_copy_give_the_same_bits(tmp_path: Path) -> None:
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", OPS], capture_output=True, text=True,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "2"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.splitlines())
    assert any(tmp_path.rglob("*.nbi"))
    assert outputs[0] == outputs[1]
