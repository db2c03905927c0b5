"""Every Triton kernel compiled for four GPUs, none of which is here, and the cost model of every launch."""

from __future__ import annotations

import json
import math
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sae_kernels.aot.cases import Case, all_cases
from sae_kernels.aot.check import Compiled, compile_case, faults, model_case
from sae_kernels.aot.compile import code_key, compile_launch
from sae_kernels.launch import Launch, recording
from sae_kernels.topk_encode.gpu import topk_encode
from sae_kernels.tuning import DEVICES, EncodeConfig, encode_config

SIZES = [(768, 131_072), (576, 16_384), (4096, 131_072)]
"""(d, F) that between them launch every kernel with every choice of blocks; `python -m sae_kernels.aot` does all."""


def compile_for(arch: str) -> list[Compiled]:
    seen: dict[str, Compiled] = {}
    # fp32 differs from bf16 in the products and the width of loads: once, on one GPU, is enough here
    dtypes = (torch.bfloat16, torch.float32) if arch == "sm_90" else (torch.bfloat16,)
    for case in all_cases(dtypes):
        if (case.d, case.F) in SIZES:
            compile_case(case, arch, seen)
    return list(seen.values())


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[Compiled]]:
    # spawned, as torch's threads do not survive a fork
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        return dict(zip(DEVICES, pool.map(compile_for, DEVICES), strict=True))


def spills_two_registers(of: Compiled, arch: str) -> bool:
    """The update with a tied pre-bias on sm_100, which keeps one more sum; with fewer rows at a time others spill."""
    constants = ("TIED=True", "HAS_PIECES=True", "WRITE=True", "COPIES=True")
    return arch == "sm_100" and of.kernel == "step" and of.code.stack <= 8 and all(c in of.constants for c in constants)


@pytest.mark.parametrize("arch", DEVICES)
def test_every_kernel_compiles_to_fit_code(compiled, arch):
    faulty = [c for c in compiled[arch] if c.faults and not spills_two_registers(c, arch)]
    unfit = [f"{c.kernel} {c.dtype} ({c.constants}): {'; '.join(c.faults)}" for c in faulty]
    assert not unfit, "\n".join(unfit)


@pytest.mark.parametrize("arch", DEVICES)
def test_products_run_on_tensor_cores(compiled, arch):
    products = [c for c in compiled[arch] if c.kernel in ("candidates", "survivors") and c.dtype == "bfloat16"]
    assert {c.kernel for c in products} == {"candidates", "survivors"}
    assert all(c.code.tensor_core > 0 for c in products)


@pytest.mark.parametrize("arch", DEVICES)
def test_kernels_that_stream_rows_load_sixteen_bytes_at_a_time(compiled, arch):
    names = {"candidates", "survivors", "chunk_candidates", "decode", "sweep", "adam", "compare", "step"}
    streaming = [c for c in compiled[arch] if c.kernel in names]
    assert {c.kernel for c in streaming} == names
    narrow = [f"{c.kernel} ({c.constants})" for c in streaming if not c.code.wide]
    assert not narrow, "\n".join(narrow)


def test_every_kernel_of_the_package_is_compiled(compiled):
    source = Path(topk_encode.__code__.co_filename).parents[1]
    launched = {c.kernel for c in compiled["sm_90"]}
    written = set()
    for file in source.glob("*/gpu*.py"):
        written |= _launched_in(file.read_text())
    assert written == launched


def _launched_in(text: str) -> set[str]:
    lines = [line.strip() for line in text.replace("launch(\n", "launch(").splitlines()]
    return {line.split("launch(")[1].strip().split(",")[0].lstrip("_") for line in lines if line.startswith("launch(")}


def product(dtype: torch.dtype, arch: str, **changes: int) -> Launch:
    """The product of topk_encode at d = 768, F = 16384, with a changed configuration."""
    config = encode_config(8192, 16_384, 768, 32, dtype, DEVICES[arch])
    x, W, b = (torch.empty(s, dtype=dtype, device="meta") for s in ((8192, 768), (16_384, 768), (16_384,)))
    with recording(DEVICES[arch]) as recorder:
        topk_encode(x, W, b, 32, config=replace(config, **changes))
    return recorder.launches[0]


@pytest.mark.parametrize("arch", DEVICES)
def test_product_that_keeps_everything_compiles_to_fit_code(arch):
    launch = product(torch.bfloat16, arch, bucket=128, kept=128)
    assert not faults(launch, compile_launch(launch, arch), DEVICES[arch])


@pytest.mark.parametrize(("d", "k"), [(577, 16), (768, 1000)])
def test_odd_widths_and_large_k_compile_to_fit_code(d, k):
    x, W, b = (torch.empty(s, dtype=torch.bfloat16, device="meta") for s in ((8192, d), (131_072, d), (131_072,)))
    with recording(DEVICES["sm_80"]) as recorder:
        topk_encode(x, W, b, k)
    for launch in recorder.launches:
        assert not faults(launch, compile_launch(launch, "sm_80"), DEVICES["sm_80"]), launch.kernel.__name__


def test_checker_catches_registers_that_spill():
    case = Case(op="latent_sweep", d=4096, F=16_384, k=32, dtype=torch.bfloat16)
    fine = case.record(DEVICES["sm_90"])[0]
    launch = replace(fine, warps=4)
    messages = faults(launch, compile_launch(launch, "sm_90"), DEVICES["sm_90"])
    assert any("spill" in fault for fault in messages)
    assert not faults(fine, compile_launch(fine, "sm_90"), DEVICES["sm_90"])


def test_checker_catches_shared_memory_over_the_limit():
    launch = product(torch.bfloat16, "sm_90", block_f=256, stages=6)
    messages = faults(launch, compile_launch(launch, "sm_90"), DEVICES["sm_90"])
    assert any("shared memory" in fault for fault in messages)


def test_checker_catches_a_product_without_tensor_cores():
    exact = product(torch.float32, "sm_80")
    code = compile_launch(exact, "sm_80")
    assert code.tensor_core == 0
    # exact fp32 has none to use; the same code in place of a tf32 or bf16 product is a fault
    assert not faults(exact, code, DEVICES["sm_80"])
    asked = replace(exact, constants=dict(exact.constants) | {"PRECISION": "tf32"})
    assert any("tensor-core" in fault for fault in faults(asked, code, DEVICES["sm_80"]))
    assert not any("tensor-core" in fault for fault in faults(asked, compile_launch(asked, "sm_80"), DEVICES["sm_80"]))


@pytest.fixture
def _high_precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_high_precision")
def test_tf32_is_used_only_when_asked_for():
    torch.set_float32_matmul_precision("highest")
    assert product(torch.float32, "sm_90").constants["PRECISION"] == "ieee"
    torch.set_float32_matmul_precision("high")
    assert product(torch.float32, "sm_90").constants["PRECISION"] == "tf32"
    assert product(torch.bfloat16, "sm_90").constants["PRECISION"] == "ieee"


@pytest.mark.parametrize("op", sorted({case.op for case in all_cases()}))
def test_another_number_of_tokens_compiles_nothing_new(monkeypatch, op):
    keys = []
    for tokens in (8192, 8191, 1025):
        monkeypatch.setattr("sae_kernels.aot.cases.TOKENS", tokens)
        case = Case(op=op, d=768, F=16_384, k=32, dtype=torch.bfloat16)
        keys.append({code_key(launch, "sm_90") for launch in case.record(DEVICES["sm_90"])})
    assert keys[0] == keys[1] == keys[2]


@pytest.mark.parametrize("arch", DEVICES)
def test_modelled_bytes_stay_within_a_fifth_of_the_floor_where_bytes_decide(arch):
    over = []
    for case in all_cases():
        m = model_case(case, arch)
        # the encoders' time is their product's: their bytes are reported, their time is compared with the floor
        measure = m.ms / m.floor_ms if m.operations else m.ratio
        if "vendor" in m.op:
            # bytes of the product that it writes and reads, or the product itself: whichever bounds it
            measure = min(measure, m.ratio)
        if measure > 1.2:
            over.append(f"{m.op} {m.dtype} d={m.d} F={m.F}: {measure:.2f}")
    assert not over, "\n".join(over)


def test_topk_at_131k_moves_little_more_than_its_floor():
    case = Case(op="topk_encode", d=768, F=131_072, k=64, dtype=torch.bfloat16)
    assert model_case(case, "sm_90").ratio < 1.1


def test_command_prints_one_json_line():
    command = [sys.executable, "-m", "sae_kernels.aot", "--arch", "gfx942", "--dtype", "bfloat16", "--json"]
    folder = Path(topk_encode.__code__.co_filename).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["faults"] == 0
    assert "Machine code" in result.stderr


def test_rule_never_asks_for_more_shared_memory_than_there_is():
    for device in DEVICES.values():
        for dtype, size in ((torch.bfloat16, 1), (torch.float32, 2)):
            assert encode_config(8192, 16_384, 768, 32, dtype, device).shared * size <= device.shared


def test_configuration_names_the_field_that_is_wrong():
    fine = {"block_n": 128, "block_f": 128, "block_d": 64, "bucket": 64, "kept": 4, "group": 1, "warps": 8, "stages": 3}
    for field, value in (("bucket", 48), ("bucket", 256), ("kept", 40), ("kept", 0)):
        with pytest.raises(ValueError, match=f"{field} = {value}"):
            EncodeConfig(**(fine | {field: value}))
    assert math.isclose(EncodeConfig(**fine).shared, 3 * 2 * 64 * 256)
