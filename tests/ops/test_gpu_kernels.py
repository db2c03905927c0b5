"""Runs gpu_interpreted.py in its own process: under Triton's interpreter, and on the GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

MODES = ["interpreter", *(["gpu"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("mode", MODES)
def test_triton_kernels_equal_their_references(mode):
    here = Path(__file__)
    environment = os.environ | {"TRITON_INTERPRET": "1" if mode == "interpreter" else "0"}
    command = [sys.executable, "-m", "pytest", str(here.with_name("gpu_interpreted.py")), "-p", "no:cacheprovider"]
    result = subprocess.run(
        command, env=environment, cwd=here.parents[2], capture_output=True, text=True, timeout=600, check=False
    )
    if result.returncode:
        pytest.fail(f"{result.stdout[-20000:]}\n{result.stderr[-4000:]}", pytrace=False)
    assert " passed" in result.stdout
