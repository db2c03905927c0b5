"""The worked examples of CONTRIBUTING: a loss term with its test, and a variant that trains, with its own flag."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae.base.files import read_json
from sae.config import SAEConfig
from sae.models.language import recipe_of
from sae.models.saved import verify
from sae.modules.losses import TERMS, Term
from sae.training.routes import FusedRoute

ROOT = Path(__file__).parent.parent
Python = Callable[..., "subprocess.CompletedProcess[str]"]


def edit(path: Path, changes: dict[str, str]) -> None:
    """Replace strings, each of which occurs once in the file."""
    source = path.read_text()
    for old, new in changes.items():
        assert source.count(old) == 1, (path, old)
        source = source.replace(old, new)
    path.write_text(source)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    """Runs Python on a copy of the package in which two files were changed as the example says."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "sae", copy / "sae", ignore=shutil.ignore_patterns("__pycache__"))
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## A variant, worked")[2].partition("\n## ")[0]
    settings, row = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    in_settings, in_rows = re.findall(r"with the line `(.*?)` in", section)
    table = "SETTINGS: dict[str, type[SparseSettings]] = {\n"
    edit(
        copy / "sae/config/variants.py",
        {table: f"{settings}\n\n{table}    {in_settings}\n", "class SAEConfig(": "class SAEConfig(HoyerSettings, "},
    )
    table = "PENALISED: dict[str, Variant[Any]] = {\n"
    edit(copy / "sae/models/variants/penalised.py", {table: f"{row}\n\n{table}    {in_rows}\n"})
    paths = os.pathsep.join(map(str, (copy, ROOT / "kernels", ROOT / "tests")))

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})

    return run


def imported(path: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The file that CONTRIBUTING shows under this path, imported as written."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (source,) = re.findall(rf"`{re.escape(path)}`:\n\n```python\n(.*?)```", text, re.DOTALL)
    module = types.ModuleType(path.removesuffix(".py").replace("/", "."))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "CONTRIBUTING.md", "exec"), module.__dict__)
    return module


def test_the_worked_loss_term_passes_its_test_and_trains_on_the_fused_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.modules.losses.TERMS", {**TERMS})
    imported("sae/modules/log_square.py", monkeypatch)
    checks = vars(imported("tests/modules/test_log_square.py", monkeypatch))
    tests = [check for name, check in checks.items() if name.startswith("test_")]
    assert len(tests) == 2
    for check in tests:
        check()
    terms = [Term("squared_error"), Term("log_square", 0.1, {"scale": 0.5})]
    assert FusedRoute.fits(recipe_of(SAEConfig(variant="relu", width=32, k=2), [32]).model, terms, [32])


@pytest.fixture
def flags(tiny_model: Path, corpus: Path, tmp_path: Path) -> list[object]:
    return [
        *("-m", "sae", "train", "--model", tiny_model, "--dataset", corpus, "--layer", 1, "--width", 128, "--k", 8),
        *("--tokens", 4096, "--batch", 256, "--context", 64, "--contexts", 8, "--out", tmp_path / "run", "--json"),
    ]


def test_the_worked_example_trains_with_its_own_flag_and_is_saved(
    python: Python, flags: list[object], tmp_path: Path
) -> None:
    done = python(*flags, "--variant", "hoyer", "--exponent", 3)
    assert done.returncode == 0, done.stderr
    record = read_json(tmp_path / "run" / "config.json")
    assert record["train"]["sae"]["exponent"] == 3.0
    assert record["training"]["route"] == "fused"
    assert max(verify(tmp_path / "run")) < 1e-5


@pytest.mark.parametrize(
    ("variant", "exponent", "message"),
    [
        ("topk", 3, "--exponent 3.0: applies to --variant hoyer, not to topk"),
        ("hoyer", 1, "--exponent 1.0: expected more than 1"),
    ],
)
def test_the_flag_is_refused_for_other_variants_and_out_of_range(
    variant: str, exponent: float, message: str, python: Python, flags: list[object], tmp_path: Path
) -> None:
    done = python(*flags, "--variant", variant, "--exponent", exponent)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_shows_the_flag_where_it_applies(python: Python) -> None:
    def help_of(*arguments: str) -> str:
        return " ".join(python("-m", "sae", "train", *arguments, "--help").stdout.replace("│", " ").split())

    assert "2 is Hoyer's. (default: 2.0; for hoyer)" in help_of()
    assert "2 is Hoyer's. (default: 2.0)" in help_of("--variant", "hoyer")
    assert "--exponent" not in help_of("--variant", "topk")


RECOVERY = """
import json
from sae.cli.recovery import Course, recover
found = recover("hoyer", "easy16", seed=0, course=Course(32, 500, 1e-2))
print(json.dumps({"mcc": found.mcc, "l0": found.l0, "true_l0": found.true_l0}))
"""


def test_the_worked_example_finds_the_features_at_the_l0_asked_for(python: Python) -> None:
    done = python("-c", RECOVERY)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["mcc"] > 0.95
    assert result["l0"] == pytest.approx(result["true_l0"], rel=0.1)
