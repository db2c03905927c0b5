"""One rank of a job in which `sae selftest ranks` makes a rank die, stop, raise or hang at a random moment.

run_rank(("eval", "runs/demo"), {"fault": "kill", "rank": 1, "beat": 12, "delay": 0.1, "folder": "..."})
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

from sae.base.launcher import rank_number
from sae.base.pulse import PULSE
from sae.selftest.children import command_status
from sae.selftest.taking_away import taken_away


def run_rank(arguments: tuple[str, ...], told: dict[str, Any]) -> None:
    """The command `sae`, with the fault that `told` names; leaves what the harness must know in files."""
    folder = Path(told["folder"])
    (folder / f"pid-{rank_number()}").write_text(str(os.getpid()))
    if told.get("rank") == rank_number():
        _set_trap(told, folder)
    with taken_away(told.get("broken")):
        status = command_status(arguments)
    if status:
        raise SystemExit(status)
    (folder / f"beats-{rank_number()}").write_text(str(PULSE.beats))


def _set_trap(told: dict[str, Any], folder: Path) -> None:
    """Replace `PULSE.beat` by one that makes the fault happen at a step."""
    beat, fault, pending = PULSE.beat, told["fault"], [True]

    def trapped() -> None:
        beat()
        # in the first steps of a loop a hang is let pass for SAE_RANKS_WAIT, since they compile kernels
        if not pending or PULSE.beats < told["beat"] or (fault == "hang" and not PULSE.settled):
            return
        pending.clear()
        if fault in SIGNALS:
            threading.Timer(told["delay"], _strike, (folder, SIGNALS[fault])).start()
            return
        _record(folder)
        if fault == "raise":
            raise RuntimeError("an error made by sae selftest ranks")
        threading.Event().wait()

    PULSE.beat = trapped


SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def _strike(folder: Path, signum: signal.Signals) -> None:
    _record(folder)
    os.kill(os.getpid(), signum)


def _record(folder: Path) -> None:
    (folder / "struck").touch()
