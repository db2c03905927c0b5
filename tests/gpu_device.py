"""The device of the tests that kernel_process.py runs: a GPU, or the CPU under Triton's interpreter."""

from __future__ import annotations

import os

import numpy as np
import triton.language as tl

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

if DEVICE == "cpu":
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def _numbers(handle: TensorHandle) -> np.ndarray:
        if handle.dtype.scalar != tl.bfloat16:
            return handle.data
        return (handle.data.astype(np.uint32) << 16).view(np.float32)

    def _dot(self: object, a: TensorHandle, b: TensorHandle, d: TensorHandle, *_: object) -> TensorHandle:
        return TensorHandle(np.matmul(_numbers(a), _numbers(b), dtype=d.data.dtype) + d.data, d.dtype.scalar)

    # the interpreter of Triton 3.9 keeps bf16 as uint16, and its dot multiplies those
    InterpreterBuilder.create_dot = _dot  # pyright: ignore[reportAttributeAccessIssue]
