"""`sae selftest`: what it prints, what it refuses, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sae.cli.main import main, parse
from sae.config import ConfigError
from sae.selftest.content import fingerprint
from sae.selftest.run import HARNESSES, run_selftest


def test_an_unknown_harness_or_protection_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="harness 'corupt' is unknown; did you mean 'corrupt'"):
        run_selftest("corupt")
    with pytest.raises(ConfigError, match=r"--break of corrupt: 'no-fsync' is unknown.*no-hash"):
        run_selftest("corrupt", broken="no-fsync")
    with pytest.raises(ConfigError, match="--break no-hash: expected one harness"):
        run_selftest("all", broken="no-hash")
    with pytest.raises(ConfigError, match="--n 0: expected at least 1"):
        run_selftest("corrupt", n=0)


def test_every_harness_claims_something_and_can_be_broken() -> None:
    for harness in HARNESSES.values():
        assert harness.claim
        assert harness.n >= 1
        assert harness.breaks


def test_the_command_takes_its_flags() -> None:
    command = parse(["selftest", "corrupt", "--n", "7", "--seed", "3", "--break", "no-hash"])
    assert command.what == "corrupt"
    assert command.given() == {"n": 7, "seed": 3, "broken": "no-hash"}


def test_a_failed_trial_is_shown_kept_and_ends_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = tmp_path / "kept"
    with pytest.raises(SystemExit) as stopped:
        main(["selftest", "corrupt", "--n", "120", "--break", "no-hash", "--keep", str(keep), "--json"])
    assert stopped.value.code == 1
    result = json.loads(capsys.readouterr().out)
    (row,) = result["rows"]
    assert row["failures"] > 0
    assert row["failing at most (95%)"] == "-"
    assert len(list((keep / "corrupt-failed").iterdir())) == row["failures"]
    recorded = json.loads((keep / "selftest.json").read_text())
    assert recorded["results"][0]["broken"] == "no-hash"
    assert recorded["torch"]
    assert (keep / "selftest.md").read_text().startswith("| harness | claim |")


def test_a_fingerprint_tells_values_apart() -> None:
    import torch

    values = [1, 1.0, True, "1", b"1", None, [1], {"1": 1}, [[1], []], [[], [1]], torch.ones(1), torch.ones(1, 1)]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    with pytest.raises(TypeError):
        fingerprint(object())
