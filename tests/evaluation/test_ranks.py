"""`torchrun -m sae eval`: documents are shared out over ranks, and every number is the single process's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import forked
from finished_runs import finished_run
from sae.base.files import read_json
from sae.config import EvalConfig
from sae.evaluation import bootstrap
from sae.evaluation.bootstrap import GroupSums
from sae.evaluation.run import evaluate

CONFIG = EvalConfig(tokens=3_000, downstream_tokens=1_500, pca_tokens=1_700, resamples=50)


def torchrun(ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return forked.run([*launcher, "-m", "sae", *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"})


def numbers(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of a report, by its path."""
    if isinstance(value, dict):
        return {path: leaf for key, part in value.items() for path, leaf in numbers(part, f"{name}.{key}").items()}
    if isinstance(value, list):
        return {path: leaf for i, part in enumerate(value) for path, leaf in numbers(part, f"{name}.{i}").items()}
    return {name: value}


def test_two_ranks_report_every_number_of_one_process(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run(tiny_model, corpus).folder, folder)
    alone = numbers(evaluate(folder, CONFIG))
    flags = [
        part
        for field in ("tokens", "downstream_tokens", "pca_tokens", "resamples")
        for part in (f"--{field.replace('_', '-')}", getattr(CONFIG, field))
    ]
    done = torchrun(2, "eval", folder, *flags, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    together = numbers(read_json(folder / "eval.json"))
    del together[".weights_sha256"]  # of the kept report alone
    assert done.stdout.count("\n") == 1, "the first rank alone prints"
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        if name != ".seconds":
            # sums of float64 in another order
            assert together[name] == (pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value)
    assert len(alone) > 40


def test_processes_that_see_all_documents_merge_to_the_sums_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "MAX_GROUPS", 4)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.arange(3 * n, 3 * n + 4), torch.rand(4, 2, generator=generator, dtype=torch.float64)) for n in range(9)
    ]
    alone, parts = GroupSums(), [GroupSums(), GroupSums()]
    for number, (document, values) in enumerate(batches):
        alone.add(document, {"x": values})
        parts[number % 2].add(document, {"x": values})
        parts[1 - number % 2].see(document)
    parts[0].merge(parts[1].sums)
    assert parts[0].groups == alone.groups == 4
    torch.testing.assert_close(parts[0].sums, alone.sums, rtol=1e-14, atol=0)


def test_what_runs_in_one_process_is_refused_under_a_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sae.base.launcher import refuse_ranks, world_size
    from sae.config import ConfigError

    refuse_ranks("sae browse")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=2 without RANK, .*start all ranks with torchrun"):
        world_size()
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ConfigError, match="sae browse runs in one process, and WORLD_SIZE is 2"):
        refuse_ranks("sae browse")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE=two: expected a whole number"):
        world_size()
