"""The benches measure what they say, and give JSON values."""

from __future__ import annotations

import json

from sae_kernels.bench.kernels import measure_kernels
from sae_kernels.bench.step import measure_curve, measure_step

SMALL = dict(tokens=64, d=16, width=512, k=4, rounds=2)


def test_step_is_compared_with_the_encode_product():
    result = measure_step(**SMALL)
    assert result["shape"] == {"N": 64, "d": 16, "F": 512, "k": 4}
    assert result["backends"] == {"topk_encode": "cpu", "fused_forward": "cpu", "fused_update": "cpu"}
    names = [row["what"] for row in result["rows"]]
    assert names[:2] == ["encode product", "fused step"]
    assert result["ratio"] == result["rows"][1]["x product"] > 0
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
