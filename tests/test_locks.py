"""Two processes do not write one thing, and the second is told who the first is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sae.base.locks import locked, only_left_by_locks
from sae.config import ConfigError

OWNER = """
import sys, time
from pathlib import Path
from sae.base.locks import locked
with locked(Path(sys.argv[1]), "features", "collecting"):
    print("taken", flush=True)
    time.sleep(60)
"""


def test_the_second_process_is_told_the_owner_and_takes_a_killed_ones_lock(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "taken\n"
        refusal = rf"another process \(pid {owner.pid}\) is collecting"
        with pytest.raises(ConfigError, match=refusal), locked(tmp_path, "features", "collecting"):
            pass
        with locked(tmp_path, "eval"):  # another thing in the same folder
            pass
    finally:
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
    with locked(tmp_path, "features", "collecting"):
        assert (tmp_path / "features.pid").read_text().startswith(f"{os.getpid()} ")
    assert not (tmp_path / "features.pid").exists()


def test_an_owner_on_another_machine_is_named_with_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / "run.pid").write_text("12345 elsewhere")
        with pytest.raises(ConfigError, match=r"pid 12345 on elsewhere"), locked(tmp_path):
            pass


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root every folder can be
    with pytest.raises(ConfigError, match="cannot be written to"), locked(tmp_path):
        pass
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="a file; expected a folder"), locked(tmp_path / "file"):
        pass


def test_what_a_killed_process_leaves_before_its_first_file_is_no_content(tmp_path: Path) -> None:
    for name in ("run.lock", "run.pid", ".partial-config.json-1"):
        (tmp_path / name).touch()
    assert only_left_by_locks(tmp_path)
    (tmp_path / "run.lock").unlink()
    (tmp_path / "run.lock").symlink_to(tmp_path / "run.pid")
    assert not only_left_by_locks(tmp_path), "no process leaves a link"
    (tmp_path / "run.lock").unlink()
    (tmp_path / "notes.txt").touch()
    assert not only_left_by_locks(tmp_path)
