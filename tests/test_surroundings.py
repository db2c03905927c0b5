"""What lies around, and how the terminal and the environment are set, changes no test's outcome."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# each names something that is not there: a run, a data set, a model, a file of text
ABSENT = (
    "tests/models/test_saved.py::test_what_is_no_run_folder_is_refused",
    "tests/models/test_saved.py::test_a_hub_id_without_a_network_is_a_clean_refusal",
    "tests/data/test_images_opening.py",
    "tests/data/test_cache.py",
    "tests/test_config.py",
)


def test_tests_run_in_an_empty_folder() -> None:
    assert os.listdir() == []


def test_what_lies_in_the_folder_changes_nothing(tmp_path: Path) -> None:
    for name in ("runs", "reports", "wandb", "build", "a/b/c", "nobody/nothing", "digits", "shapes3d", "dsprites"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("demo", "gpt2", "mnist5k", "config.json", "none"):
        (tmp_path / name).write_text("{}")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml"]
        + [ROOT / test for test in ABSENT],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout


def test_a_file_left_in_the_working_folder_fails_the_test(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "test_it.py").write_text("def test_it():\n    open('left', 'w').close()\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", "test_it.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert "'left'" in run.stdout
