"""Shared fixtures: a tiny model saved to disk with a tokenizer, a small corpus, the command line in a subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import find_browser
import kernel_process

# read when torch is loaded, here and in subprocesses: threads that wait by spinning slow a shared machine down tenfold
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


# seconds to minutes a test: begun first, so that no process of `make test` is left with one of them at the end
SLOW_FILES = (
    "test_gpu_aot",
    "test_mesh",
    "test_gpu_kernels",
    "test_gpu_route",
    "test_kill",
    "test_gpu_kit",
    "test_comparison",
    "test_scale_commands",
    "test_race",
    "test_recovery",
    "test_kill_ranks",
    "test_broken_ranks",
    "test_kill_and_faults",
    "test_image_report",
    "test_collect",
)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(kernel_process)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow files first; the order is else the usual one."""
    place = {name: number for number, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def without_browser(config: pytest.Config) -> list[pytest.TestReport]:
    """Reports of the tests that were left out because no browser starts."""
    skipped = config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped", [])
    return [report for report in skipped if find_browser.NONE_STARTS in str(report.longrepr)]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tests that could not run are no success, even if all others passed."""
    if not hasattr(session.config, "workerinput") and without_browser(session.config):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None]:
    """Below everything but the counts: which tests did not run for want of a browser, and what helps."""
    yield
    if reports := without_browser(terminalreporter.config):
        terminalreporter.section("no browser")
        terminalreporter.line(str(reports[0].longrepr[2]).removeprefix("Skipped: "))
        terminalreporter.line(f"{len(reports)} tests of the page did not run; hence an exit status that is not zero.")


@pytest.fixture(scope="session", autouse=True)
def empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all tests and fixtures run, so that none sees what lies in the folder where pytest was started."""
    folder, before = tmp_path_factory.mktemp("empty"), Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(autouse=True)
def nothing_left_behind(empty_folder: Path) -> Iterator[None]:
    """A test writes to the folders it names, and nowhere else."""
    yield
    assert os.listdir(empty_folder) == []


@pytest.fixture(autouse=True)
def two_threads_for_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """The kernels are tested with two threads, however many the tests around them are given."""
    if request.path.parent.name != "ops":
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file of 600 documents under the field `text`."""
    from sae.selftest.world import save_texts

    return save_texts(tmp_path_factory.mktemp("corpus") / "texts.jsonl", 600)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of width 32 and 4 layers, and a byte-level tokenizer with BOS."""
    return save_tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def harvest(tiny_model: Path, corpus: Path) -> Any:
    """A harvest of the tiny model's layer 1, in batches of four contexts of 64 tokens."""
    import torch

    from sae.config import HarvestConfig
    from sae.data.documents import open_documents
    from sae.harvest.language_model import load_language_model, locate_model
    from sae.harvest.sites import resolve_sites
    from sae.harvest.stream import Harvest

    source = locate_model(str(tiny_model), trust_remote_code=False)
    lm = load_language_model(source, device=torch.device("cpu"), precision="float32")
    config = HarvestConfig(model=str(tiny_model), dataset=str(corpus), layer=1, context=64, contexts=4)
    return Harvest(lm, resolve_sites(lm.model, ["resid_post"], layer=1), open_documents(str(corpus)), config)


def save_tiny_model(family: str, folder: Path) -> Path:
    """Save a tiny random model of a family of `tiny_models.FAMILIES` with a tokenizer of its vocabulary's size."""
    import torch

    from sae.selftest.world import VOCABULARY, save_model
    from tiny_models import FAMILIES

    torch.manual_seed(0)
    return save_model(FAMILIES[family](vocab_size=VOCABULARY), folder)


def run_sae(
    *arguments: object, env: dict[str, str] | None = None, timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    """Run the command `sae` in a process of its own, forked from one that has imported everything."""
    import forked

    return forked.run([sys.executable, "-m", "sae", *arguments], env={**os.environ, **(env or {})}, timeout=timeout)


@pytest.fixture
def train_arguments(tiny_model: Path, corpus: Path) -> list[object]:
    """Arguments of a short training run on the tiny model; --out is left to the test."""
    return [
        "train", "--model", tiny_model, "--dataset", corpus, "--layer", 1, "--width", 128, "--k", 8,
        "--tokens", 12_288, "--batch", 256, "--context", 64, "--contexts", 8, "--buffer-mb", 1, "--log-every", 4,
    ]  # fmt: skip
