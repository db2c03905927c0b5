"""The benches measure what they say, and give JSON values."""

from __future__ import annotations

import json

import pytest

from sae_kernels.bench.kernels import measure_kernels
from sae_kernels.bench.step import measure_curve, measure_step

SMALL = dict(tokens=64, d=16, width=512, k=4, rounds=2)


def test_step_is_compared_with_the_encode_product_and_with_the_bytes_of_its_state():
    result = measure_step(**SMALL)
    assert result["shape"] == {"N": 64, "d": 16, "F": 512, "k": 4}
    assert result["backends"] == {"topk_encode": "cpu", "fused_forward": "cpu", "fused_update": "cpu"}
    rows = {row["what"]: row for row in result["rows"]}
    product, state, floor = list(rows)[:3]
    assert (product, floor) == ("encode product", "floor, the sum of both")
    assert result["ratio"] == rows["fused step"]["x product"] > 0
    assert result["x floor"] == rows["fused step"]["x floor"] > 0
    assert rows[floor]["median ms"] == rows[product]["median ms"] + rows[state]["median ms"]
    # two matrices, their biases, and both moments of each: read and written
    moved = 24 * (2 * 512 * 16 + 512 + 16)
    assert rows[state]["median ms"] == pytest.approx(moved / result["copy GB/s"] / 1e6)
    assert result["extra_megabytes"] < 64
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_kernels_lists_every_op_with_the_backend_that_ran():
    result = measure_kernels(**SMALL)
    rows = result["rows"]
    assert {row["op"] for row in rows} >= {"topk_encode", "sparse_decode", "latent_sweep", "adam_step", "fused_update"}
    assert all(row["backend"] == "cpu" for row in rows)
    assert all(row["naive ms"] > 0 for row in rows)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_curve_has_a_row_for_every_width():
    result = measure_curve(widths=(128, 256), tokens=32, d=8, k=2, rounds=2)
    assert [row["F"] for row in result["rows"]] == [128, 256]
