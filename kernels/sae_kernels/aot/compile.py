"""Compile a recorded launch for a named GPU and read its registers, memory and instructions from the machine code.

Triton includes an assembler and a disassembler, so this needs neither a GPU nor a CUDA installation.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sae_kernels.launch import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
# instructions that multiply matrices; on Blackwell they are UTC*MMA
_TENSOR_CORE = re.compile(r"\b(HGMMA|HMMA|IMMA|UTC[A-Z]*MMA)\b|\bv_mfma_")
_LOCAL = re.compile(r"\b(?:LDL|STL)\b|\bscratch_(?:load|store)")
_WIDE = re.compile(r"\b(?:LDG|LDGSTS|STG)\.E\S*\.128\b|\b(?:global|buffer)_(?:load|store)_dwordx4\b")


@dataclass(frozen=True, kw_only=True)
class Code:
    """The resources of one compiled kernel."""

    registers: int
    """Registers a thread."""
    spills: int
    """Local-memory instructions (registers that did not fit)."""
    stack: int
    """Bytes of stack a thread."""
    shared: int
    """Bytes of shared memory a program."""
    tensor_core: int
    """Matrix-multiply instructions in the code (a loop's body counts once)."""
    wide: int
    """16-byte loads and stores of global memory in the code."""


def specialise(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], Any]]:
    """(signature, constants, attributes) as Triton's launcher derives them from the launch's arguments."""
    signature, constants, attributes = {}, dict(launch.constants), {}
    for place, parameter in enumerate(launch.kernel.params):
        name = parameter.name
        if name in launch.constants:
            signature[name] = "constexpr"
            continue
        value = launch.arguments[name]
        if value is None or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, Tensor):
            signature[name] = _POINTERS[value.dtype]
            aligned = value.storage_offset() * value.element_size() % 16 == 0
        elif isinstance(value, float):
            signature[name], aligned = "fp32", False
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0
        if aligned and not parameter.do_not_specialize:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def code_key(launch: Launch, arch: str) -> str:
    """Launches of one key compile to the same code."""
    return repr((launch.kernel.__name__, *specialise(launch), launch.warps, launch.stages, arch))


def compile_launch(launch: Launch, arch: str) -> Code:
    """Compile for `arch` (a key of TARGETS) and inspect the code; Triton caches it on disk.

    Raises:
        RuntimeError: the kernel needs more than the assembler can provide.
    """
    signature, constants, attributes = specialise(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=TARGETS[arch], options=options)
    if TARGETS[arch].backend == "hip":
        return _read_amd(compiled.asm["amdgcn"], compiled.metadata.shared)
    return _read_nvidia(compiled.asm["cubin"], compiled.metadata.shared)


def _read_nvidia(binary: bytes, shared: int) -> Code:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(tool), "--dump-resource-usage", "--dump-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert usage, "cuobjdump printed no resource usage"
    return _code(text, int(usage[1]), int(usage[2]) + int(usage[4]), shared)


def _read_amd(assembly: str, shared: int) -> Code:
    def number(field: str) -> int:
        return int(re.search(rf"\.{field}:\s*(\d+)", assembly)[1])  # pyright: ignore[reportOptionalSubscript]

    code = _code(assembly, number("vgpr_count"), number("private_segment_fixed_size"), shared)
    assert number("vgpr_spill_count") == 0 or code.stack > 0
    return code


def _code(text: str, registers: int, stack: int, shared: int) -> Code:
    return Code(
        registers=registers,
        spills=len(_LOCAL.findall(text)),
        stack=stack,
        shared=shared,
        tensor_core=len(_TENSOR_CORE.findall(text)),
        wide=len(_WIDE.findall(text)),
    )
