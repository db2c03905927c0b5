"""How backends are picked and set up: by device, late, with torch's threads, with or without a writable folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sae_kernels
from sae_kernels import backends_used, last_backend, sparse_decode, topk_encode, use_backend

PACKAGE = Path(sae_kernels.__file__).parent
# the op that compiles fastest
STEP = "import torch, sae_kernels as s; p = torch.zeros(4); s.adam_step(p, p + 1, p.clone(), p.clone(), step=1, lr=0.5)"


def python(code: str, path: Path, **environment: str) -> str:
    environment = dict(os.environ) | environment | {"PYTHONPATH": str(path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_importing_the_package_loads_neither_numba_nor_triton():
    code = "import sys, sae_kernels; print([m for m in ('numba', 'triton') if m in sys.modules])"
    assert python(code, PACKAGE.parent).strip() == "[]"


def test_a_read_only_package_without_a_home_still_works(tmp_path):
    copy = tmp_path / "source" / "sae_kernels"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    # a file in the way of __pycache__ and of the home folder: unwritable for root as well
    for folder in [copy, *copy.glob("*/")]:
        (folder / "__pycache__").write_text("")
    code = STEP + "; print(s.last_backend('adam_step'), p[3].item())"
    out = python(code, copy.parent, HOME="/dev/null", XDG_CACHE_HOME="/dev/null", PYTHONDONTWRITEBYTECODE="1")
    assert out.split() == ["cpu", "-0.5"]


def test_the_compile_cache_can_be_moved(tmp_path):
    python(STEP, PACKAGE.parent, NUMBA_CACHE_DIR=str(tmp_path))
    assert list(tmp_path.rglob("*.nbc"))


def test_numba_uses_as_many_threads_as_torch_over_openmp():
    import numba

    threads = torch.get_num_threads()
    arguments = (torch.ones(300, 5), torch.ones(700, 5), torch.zeros(700), 2)
    try:
        torch.set_num_threads(1)
        topk_encode(*arguments)
        assert numba.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    topk_encode(*arguments)
    assert numba.get_num_threads() == min(threads, numba.config.NUMBA_NUM_THREADS)
    topk_encode(arguments[0][:3], *arguments[1:])
    assert numba.get_num_threads() == 1  # little work: waking threads would cost more
    assert numba.threading_layer() == "omp"


def test_a_forced_backend_is_used_inside_the_block_only():
    arguments = (torch.ones(3, 5), torch.eye(70, 5), torch.zeros(70), 2)
    with use_backend("naive"):
        codes = topk_encode(*arguments)
        assert last_backend("topk_encode") == "naive"
    topk_encode(*arguments)
    sparse_decode(codes, torch.eye(70, 5), torch.zeros(5))
    assert backends_used().items() >= {"topk_encode": "cpu", "sparse_decode": "cpu"}.items()


def test_an_unknown_or_missing_backend_is_refused_by_name():
    with pytest.raises(ValueError, match="known: naive, cpu, gpu"), use_backend("tpu"):
        pass
    from sae_kernels.dispatch import choose

    with use_backend("gpu"), pytest.raises(ValueError, match="op has no 'gpu'"):
        choose("op", torch.zeros(1), {"naive": lambda: None})


def test_threads_of_python_do_not_share_scratch():
    from concurrent.futures import ThreadPoolExecutor

    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(200, 16, generator=draw) for _ in range(4)]
    W, b = torch.randn(999, 16, generator=draw), torch.zeros(999)
    expected = [topk_encode(x, W, b, 9).indices for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for actual, expected_indices in zip(
                pool.map(lambda x: topk_encode(x, W, b, 9).indices, inputs), expected, strict=True
            ):
                assert torch.equal(actual, expected_indices)
