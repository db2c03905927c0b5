"""`sae selftest corrupt` at small size: nothing is silent, and it notices hashes that are not compared."""

from __future__ import annotations

import random

import pytest

from sae.selftest.damage import DAMAGES
from sae.selftest.run import run_selftest


def test_no_damage_is_silent() -> None:
    result = run_selftest("corrupt", n=90)
    assert result["status"] == 0, result.get("failed")
    counts = result["counts"]["corrupt"]
    assert counts["refused"] > counts["unchanged"] > 0
    assert sum(counts.values()) == 90
    assert result["rows"][0]["failing at most (95%)"] == "0.033"


def test_hashes_that_are_not_compared_are_noticed() -> None:
    result = run_selftest("corrupt", n=60, broken="no-hash")
    assert result["status"] == 1
    assert any("silent" in line for line in result["failed"])


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_changes_a_file(name: str) -> None:
    content, other = bytes(range(1, 256)) * 40, b"other"
    assert all(DAMAGES[name](content, random.Random(seed), other) != content for seed in range(20))
