"""Commands in processes forked from one that has imported torch and transformers, as to import them takes longest.

    done = forked.run([sys.executable, "-m", "sae", "verify", folder])

Takes `python -m MODULE ...` and `python -m torch.distributed.run --standalone --nproc-per-node N -m sae ...`, whose
ranks are forked too; what it returns has of `subprocess` what tests use.
"""

from __future__ import annotations

import functools
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae.base.threads import usable_cpus
from sae.selftest.children import Children
from sae.selftest.forked_ranks import launch

children = functools.cache(Children)
"""The process to fork from, one a session."""


class Forked:
    """A started command, as `subprocess.Popen` with text pipes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, env: Mapping[str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="forked-")
        self._files = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for file in self._files:
            file.touch()
        environment = dict(os.environ if env is None else env)
        self._process = children().fork(_begin, self._files, environment, os.getcwd(), function, arguments)
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (file.read_text() for file in self._files)
        return out, err


def start(words: Sequence[object], *, env: Mapping[str, str] | None = None) -> Forked:
    """Start `python -m MODULE ...` or a torchrun of `sae`."""
    python, flag, module, *rest = map(str, words)
    assert (python, flag) == (sys.executable, "-m")
    if module != "torch.distributed.run":
        return Forked(run_module, module, rest, env=env)
    at = rest.index("-m")
    assert rest[at + 1] == "sae"
    (option, world) = [part for word in rest[:at] if word != "--standalone" for part in word.split("=")]
    assert option == "--nproc-per-node"
    return Forked(_torchrun, int(world), rest[at + 2 :], env=env)


def run(
    words: Sequence[object], *, env: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run such a command to its end."""
    return finished(start(words, env=env), timeout)


def finished(process: Forked, timeout: float) -> subprocess.CompletedProcess[str]:
    """Wait for the end of a command, and kill it where that takes too long."""
    try:
        out, err = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess([], process.returncode or 0, out, err)


def _begin(
    files: list[Path], environment: dict[str, str], folder: str, function: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    """In the forked process: take over what a new process would have, and do the work."""
    import torch

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", usable_cpus())))
    function(*arguments)


def command(arguments: list[str]) -> None:
    """In the forked process: `python -m sae` with these arguments."""
    run_module("sae", arguments)


def run_module(name: str, arguments: list[str]) -> None:
    """In the forked process: `python -m NAME`."""
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _torchrun(world: int, arguments: list[str]) -> None:
    sys.exit(launch(world, command, arguments))


def run_ranks(world: int, function: Callable[..., None], *arguments: Any, timeout: float = 300) -> str:
    """Call a function in the ranks of one torchrun job, with one thread each; what they said."""
    process = Forked(_ranks, world, function, arguments, env={**os.environ, "OMP_NUM_THREADS": "1"})
    done = finished(process, timeout)
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stderr


def _ranks(world: int, function: Callable[..., None], arguments: Sequence[Any]) -> None:
    sys.exit(launch(world, function, *arguments))
