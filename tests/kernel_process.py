"""Runs the selected tests of the files in FILES in one process of their own, and reports each of them here.

Triton decides when a kernel is decorated whether it will be interpreted, for the whole process, and ops/test_gpu_aot.py
compiles the same kernels. Where there is a GPU, a second process runs the tests on it. conftest.py registers this
plugin.

    pytest tests/ops/test_gpu_kernels.py -k certificate
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

FILES = ("test_gpu_kernels", "test_gpu_route")
REPORTS = "SPARSIGHT_TEST_REPORTS"
"""Environment variable of the other process: the file descriptor to which it writes its reports, a JSON line each."""


def modes() -> list[str]:
    import torch

    return ["interpreter", "gpu"] if torch.cuda.is_available() else ["interpreter"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With a GPU every test of the files appears twice, `[interpreter]` and `[gpu]`."""
    if metafunc.module.__name__ in FILES and len(modes()) > 1:
        metafunc.fixturenames.append("mode")
        metafunc.parametrize("mode", modes())


def mode_of(item: pytest.Item) -> str:
    return item.callspec.params.get("mode", "interpreter") if hasattr(item, "callspec") else "interpreter"


class OtherProcess:
    """pytest over `items` in one mode; gives their reports as they come."""

    def __init__(self, mode: str, items: list[pytest.Item]) -> None:
        config = items[0].config
        read, write = os.pipe()
        environment = os.environ | {"TRITON_INTERPRET": "1" if mode == "interpreter" else "0", REPORTS: str(write)}
        environment.pop("PYTEST_ADDOPTS", None)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(item.nodeid for item in items)]
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115  open until `end`
        self.process = subprocess.Popen(
            command, env=environment, cwd=config.rootpath, pass_fds=[write], stdout=self.output, stderr=self.output
        )
        os.close(write)
        self.lines = os.fdopen(read)
        self.config = config
        self.reports: dict[str, list[pytest.TestReport]] = {}

    def reports_of(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Setup, call and teardown of one test; a failure with the process's output where it ended before."""
        while not any(report.when == "teardown" for report in self.reports.get(item.nodeid, [])):
            line = self.lines.readline()
            if not line:
                self.process.wait()
                self.output.seek(0)
                message = f"exit status {self.process.returncode}\n{self.output.read()[-8000:]}"
                return [pytest.TestReport(item.nodeid, item.location, {}, "failed", message, "call")]
            report = self.config.hook.pytest_report_from_serializable(config=self.config, data=json.loads(line))
            self.reports.setdefault(report.nodeid, []).append(report)
        return self.reports.pop(item.nodeid)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.lines.close()
        self.output.close()


_processes: dict[str, OtherProcess] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if item.path.stem not in FILES or REPORTS in os.environ:
        return None
    mode = mode_of(item)
    if mode not in _processes:
        items = [i for i in item.session.items if i.path.stem in FILES and mode_of(i) == mode]
        _processes[mode] = OtherProcess(mode, items)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _processes[mode].reports_of(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # as pytest's own protocol does: leave the fixtures that the next test does not share
    item.session._setupstate.teardown_exact(nextitem)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish() -> Iterator[None]:
    for process in _processes.values():
        process.end()
    return (yield)


def pytest_configure(config: pytest.Config) -> None:
    if REPORTS in os.environ:
        config.pluginmanager.register(Sender(config))


class Sender:
    """In the other process: writes every report to the first one."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.file = os.fdopen(int(os.environ[REPORTS]), "w", buffering=1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.file.write(json.dumps(data) + "\n")
