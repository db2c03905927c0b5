#!/bin/sh
# Puts what the kit's tests and peers need, and a bare machine lacks, into .gpu-packages (a few MB of pure Python).
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
rm -rf "$root/.gpu-packages"
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-deps --target "$root/.gpu-packages" \
    pytest pytest-timeout hypothesis pluggy iniconfig sortedcontainers pygments attrs filelock eai-sparsify==1.3.3 \
    natsort simple-parsing docstring-parser
