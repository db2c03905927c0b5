"""The table of harnesses, and the command that runs them.

run_selftest("corrupt", n=100)["rows"]
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sae.base.files import existing, publish_file, publish_json
from sae.base.progress import Progress
from sae.config import ConfigError, check, unknown_choice
from sae.selftest.harness import Harness, HarnessResult, Outcome, Task

HARNESSES: dict[str, Harness] = {
    "kill": Harness(
        claim="a command killed at a random moment resumes to the very bits of the unbroken one",
        n=300,
        unit="killed commands",
        breaks={
            "no-rename": "files are written under their final names",
            "no-moments": "a resumed run begins with empty moments of the optimizer",
            "no-place": "a resumed run begins with the first batch of the data",
        },
    ),
    "faults": Harness(
        claim="whatever operation on the disk fails, the old state is whole and the command resumes to the same result",
        n=10_000,
        unit="failed operations",
        breaks={
            "no-rename": "files are written under their final names",
            "no-fsync-errors": "an fsync that fails is taken for one that succeeded",
        },
    ),
    "corrupt": Harness(
        claim="damage to a file is refused by name, or changes nothing that is read",
        n=6_000,
        unit="damaged files",
        breaks={"no-hash": "SHA-256 of files is not compared"},
    ),
    "powerloss": Harness(
        claim="after a loss of power all that is published is whole, nothing acknowledged is lost, commands resume",
        n=1_000,
        unit="losses of power",
        breaks={"no-fsync": "files are not flushed", "no-folder-fsync": "folders are not flushed"},
    ),
    "fuzz": Harness(
        claim="a mutated file is read or refused by name, in under 1 GB and 20 s, and never executed",
        n=100_000,
        unit="mutated files",
        breaks={"no-cap": "sizes in headers are believed", "no-guard": "errors of libraries pass through readers"},
    ),
    "ranks": Harness(
        claim="a rank that dies, stops, raises or hangs ends all within 30 s, is named, and the job resumes",
        n=40,
        unit="broken jobs",
        breaks={"no-watchdog": "no rank watches over the others"},
    ),
    "kill-ranks": Harness(
        claim="a run of 2 ranks killed at random moments and resumed on 1, 2, 4 ranks ends with the unbroken run's "
        "weights: equal bits on 2 ranks, within 2e-5 on others",
        n=40,
        unit="kills",
        breaks={
            "no-moments": "a resumed run begins with empty moments of the optimizer",
            "no-place": "a resumed run begins with the first batch of the data",
        },
    ),
}
"""Name -> what it claims; its code is `sae/selftest/NAME.py`, with _ for -."""
ALL = "all"
FAILURES_SHOWN = 10


def run_selftest(
    what: str = ALL, *, n: int | None = None, seed: int = 0, broken: str | None = None, keep: Path | None = None
) -> dict[str, Any]:
    """Run one harness or all; "status" is 1 if any trial failed.

    Args:
        what: a key of HARNESSES, or all.
        n: trials; by default each harness's own number.
        seed: of every random draw.
        broken: a protection to take away first, to see that the harness notices.
        keep: folder to work in, which then gets the inputs of failed trials, selftest.json and selftest.md.

    Raises:
        ConfigError: an unknown harness or protection, or no trials.
    """
    names = check_arguments(what, n=n, broken=broken)
    results = []
    with _folder(keep) as folder, Progress() as progress:
        where = surroundings(folder)
        for name in names:
            results.append(_run(name, n=n, seed=seed, broken=broken, folder=folder, keep=keep, progress=progress))
        if keep is not None:
            publish_json(keep / "selftest.json", {"results": [asdict(r) for r in results], **where})
            publish_file(keep / "selftest.md", markdown(results, where).encode())
    shown = [line for result in results for line in result.failed[:FAILURES_SHOWN]]
    return {
        "rows": [result.row() for result in results],
        "counts": {result.name: dict(result.counts) for result in results},
        **({"failed": shown} if shown else {}),
        "seed": seed,
        **({"broken": broken} if broken else {}),
        **where,
        "status": int(any(result.failures for result in results)),
    }


def check_arguments(what: str, *, n: int | None, broken: str | None) -> list[str]:
    """The harnesses to run; ConfigError for an unknown one, a protection that it does not have, or no trials."""
    if what != ALL and what not in HARNESSES:
        raise unknown_choice("harness", what, [*HARNESSES, ALL])
    names = list(HARNESSES) if what == ALL else [what]
    check(n is None or n >= 1, "n", n, "at least 1 trial")
    if broken is not None:
        if what == ALL:
            raise ConfigError(f"--break {broken}: expected one harness, not {ALL}")
        if broken not in HARNESSES[what].breaks:
            raise unknown_choice(f"--break of {what}:", broken, HARNESSES[what].breaks)
    return names


def _run(
    name: str, *, n: int | None, seed: int, broken: str | None, folder: Path, keep: Path | None, progress: Progress
) -> HarnessResult:
    harness, inside = HARNESSES[name], folder / name
    if inside.exists():
        raise ConfigError(f"--keep {folder}: {inside} is there already; expected a new folder")
    inside.mkdir(parents=True)
    begun = time.perf_counter()
    task = Task(
        folder=inside.absolute(),
        n=harness.n if n is None else n,
        seed=seed,
        broken=broken,
        keep=None if keep is None else keep / f"{name}-failed",
        progress=progress,
    )
    outcome: Outcome = importlib.import_module(f"sae.selftest.{name.replace('-', '_')}").run(task)
    failures = len(outcome.failures)
    return HarnessResult(
        name=name,
        claim=harness.claim,
        n=outcome.n,
        unit=harness.unit,
        failures=failures,
        bound=3 / outcome.n if failures == 0 and outcome.n else None,
        seconds=time.perf_counter() - begun,
        seed=seed,
        broken=broken,
        counts=outcome.counts,
        failed=outcome.failures,
    )


def markdown(results: list[HarnessResult], where: dict[str, str]) -> str:
    """The table for a document, with what it was measured on below."""
    rows = [result.row() for result in results]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{table}\nSeed {results[0].seed}; {'; '.join(f'{name} {value}' for name, value in where.items())}.\n"


def surroundings(folder: Path) -> dict[str, str]:
    """Versions, platform and the file system of `folder`."""
    return {
        "sae": importlib.metadata.version("sparsight"),
        "torch": importlib.metadata.version("torch"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "disk": file_system(folder),
    }


def file_system(folder: Path) -> str:
    """Kind of the file system that holds `folder` and its free space, such as `ext4, 51 GB free`."""
    place = existing(folder).resolve()
    kind, longest = "unknown file system", -1
    with contextlib.suppress(OSError):  # /proc is Linux's
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, name, *_ = line.split()
            if place.is_relative_to(mount) and len(mount) >= longest:
                kind, longest = name, len(mount)
    return f"{kind}, {shutil.disk_usage(place).free / 1e9:,.0f} GB free"


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """`keep`, or a folder that is deleted at the end."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        if not os.access(keep, os.W_OK):
            raise ConfigError(f"--keep {keep}: the folder cannot be written to")
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="sae-selftest-") as folder:
        yield Path(folder)
