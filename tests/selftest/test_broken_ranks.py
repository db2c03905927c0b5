"""`sae selftest ranks`: a rank that is killed ends the job and is named; without the watchdog the harness says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae.selftest.run import run_selftest


@pytest.mark.parametrize("broken", [None, "no-watchdog"])
def test_a_killed_rank_is_named_unless_no_one_watches(broken: str | None, tmp_path: Path) -> None:
    """Of more than 10 s: a job of two or three processes imports torch in each, three times over."""
    report = run_selftest("ranks", n=1, broken=broken, keep=tmp_path / "kept")
    assert report["status"] == (0 if broken is None else 1), report
    counts = report["counts"]["ranks"]
    assert sum(number for fault, number in counts.items() if fault.endswith(": kill")) == 1, counts
    if broken:
        assert "no rank said which one was lost" in report["failed"][0]
        assert list((tmp_path / "kept/ranks-failed").glob("*.txt"))
