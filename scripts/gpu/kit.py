"""The GPU kit: proofs and figures of one device, stage by stage, each kept as soon as it is there.

    scripts/gpu/check.sh OUT                  # all stages, at most eight minutes; a table last
    scripts/gpu/check.sh OUT --only steps     # one of them
    scripts/gpu/check.sh OUT --toy            # the same stages at toy sizes under Triton's interpreter, without a GPU

A stage runs in a process of its own with a time limit, and writes OUT/STAGE.json after every row, so that a stage that
is cut off or crashes leaves what it had measured. OUT/STAGE.log has what it printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STAGES = {
    "machine": 30,
    "steps": 110,
    "training": 80,
    "options": 90,
    "encoders": 50,
    "tests": 110,
    "kernels": 50,
    "memcheck": 50,
}
"""Stage -> its time limit in seconds; what decides comes first."""
BUDGET = 480
"""Seconds of all stages together."""


def main() -> None:
    """Run the stages, then print the table and one JSON line."""
    parser = argparse.ArgumentParser(description="Prove and time everything on this machine's GPU.")
    parser.add_argument("out", type=Path, help="folder for the results; stages that are there already are kept")
    parser.add_argument("--only", choices=STAGES, action="append", help="run only this stage; may be repeated")
    parser.add_argument("--toy", action="store_true", help="toy sizes under Triton's interpreter, on the CPU")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of all stages together")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    for stage in given.only or STAGES:
        left = given.budget - (time.monotonic() - begun)
        run_stage(stage, given.out, toy=given.toy, limit=min(left, 10 * STAGES[stage] if given.toy else STAGES[stage]))
    results = collected(given.out)
    print(table(results))
    print(json.dumps({"kit": "gpu", "seconds": round(time.monotonic() - begun, 1), "stages": results}))
    if any(result["status"] == "failed" for result in results.values()):
        sys.exit(1)


def run_stage(stage: str, out: Path, *, toy: bool, limit: float) -> None:
    """One stage in a process of its own; its status is added to its JSON file."""
    path = out / f"{stage}.json"
    if path.is_file() and json.loads(path.read_text()).get("status") == "done":
        return
    begun = time.monotonic()
    status, note = "done", ""
    if limit < 5:
        status, note = "no time left", "the stages before it used up the budget"
    else:
        command = [
            sys.executable,
            str(Path(__file__).with_name("stages.py")),
            stage,
            str(out),
            "--seconds",
            f"{limit:.0f}",
        ]
        environment = os.environ | {"TRITON_INTERPRET": "1" if toy else "0"}
        with open(out / f"{stage}.log", "w") as log:
            process = subprocess.Popen([*command, *(["--toy"] if toy else [])], stdout=log, stderr=log, env=environment)
            try:
                if process.wait(timeout=limit):
                    status, note = "failed", f"exit status {process.returncode}; see {stage}.log"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                status, note = "cut off", f"after {limit:.0f} s; what it had measured is kept"
    result = json.loads(path.read_text()) if path.is_file() else {"rows": []}
    result |= {
        "status": result.get("status", status) if status == "done" else status,
        "note": result.get("note") or note,
    }
    result["seconds"] = round(time.monotonic() - begun, 1)
    path.write_text(json.dumps(result, indent=1))
    print(f"{stage}: {result['status']} in {result['seconds']} s {result['note']}", flush=True)


def collected(out: Path) -> dict[str, Any]:
    """Every stage's result that is in the folder."""
    return {stage: json.loads(path.read_text()) for stage in STAGES if (path := out / f"{stage}.json").is_file()}


def table(results: dict[str, Any]) -> str:
    """All rows in Markdown, a table a stage."""
    lines: list[str] = []
    for stage, result in results.items():
        lines += [
            "",
            f"### {stage} ({result['status']}, {result['seconds']} s{', ' + result['note'] if result['note'] else ''})",
        ]
        rows = result["rows"]
        if rows:
            names = list(dict.fromkeys(name for row in rows for name in row))
            lines += ["", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
            lines += [f"| {' | '.join(shown(row.get(name)) for name in names)} |" for row in rows]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A cell: numbers with four digits, nothing for what was not measured."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
