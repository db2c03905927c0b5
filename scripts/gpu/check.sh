#!/bin/sh
# Every figure and proof of this machine's GPU, in at most eight minutes: scripts/gpu/check.sh OUT
# Needs torch, triton, transformers, numba and safetensors; no installation, no network. docs/gpu.md says how to run it.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$root:$root/kernels:$root/tests:$root/.gpu-packages${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" "$root/scripts/gpu/kit.py" "$@"
