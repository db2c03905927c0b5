"""The benches measure what they say and print one JSON line."""

from __future__ import annotations

import json

from sae_kernels.bench.kernels import report_kernels
from sae_kernels.bench.step import measure_curve, report_step

SMALL = dict(tokens=64, d=16, width=512, k=4, rounds=2)


def test_step_prints_one_json_line_alone(capsys):
    report_step(as_json=True, **SMALL)
    result = json.loads(capsys.readouterr().out)
    assert result["backends"] == {"topk_encode": "cpu", "fused_forward": "cpu", "fused_update": "cpu"}
    names = [row["what"] for row in result["rows"]]
    assert names[:2] == ["encode product", "fused step"]
    assert result["ratio"] == result["rows"][1]["x product"] > 0
    assert result["extra_megabytes"] < 64


def test_step_prints_a_table_before_the_json_line(capsys):
    report_step(dense=False, **SMALL)
    *table, line = capsys.readouterr().out.splitlines()
    assert json.loads(line)["shape"]["F"] == 512
    assert any("fused step" in row for row in table)


def test_kernels_lists_every_op_with_the_backend_that_ran(capsys):
    report_kernels(as_json=True, **SMALL)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["op"] for row in rows} >= {"topk_encode", "sparse_decode", "latent_sweep", "adam_step", "fused_update"}
    assert all(row["backend"] == "cpu" for row in rows)
    assert all(row["naive ms"] > 0 for row in rows)


def test_curve_has_a_row_for_every_width():
    result = measure_curve(widths=(128, 256), tokens=32, d=8, k=2, rounds=2)
    assert [row["F"] for row in result["rows"]] == [128, 256]
