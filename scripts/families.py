"""Take a tiny random model of every family of transformers through train, eval, features and steer; write the table.

    python scripts/families.py [--only NAME ...] [--out docs/families.md] [--workers 2]

Every family runs in a process of its own with a time limit. Results are kept in build/families as they come, under a
hash of the code, so that a walk that was stopped goes on where it was. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

KEPT = ROOT / "build" / "families"
LIMIT = 180.0  # seconds that one family may take


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="families to walk; prints their rows")
    parser.add_argument("--mapping", choices=("causal", "masked", "image-text"), help="walk one mapping alone")
    parser.add_argument("--out", type=Path, help="the table to write; by default docs/families.md for a whole walk")
    parser.add_argument("--workers", type=int, default=2, help="families walked at a time")
    asked = parser.parse_args()
    begun = time.perf_counter()

    import transformers

    from scripts.family_table import table
    from scripts.family_walk import rows_of

    rows = [row for row in rows_of(set(asked.only)) if asked.mapping in (None, row[0])]
    results = walk_all(rows, workers=asked.workers)
    whole = not asked.only and asked.mapping is None
    out = asked.out or (ROOT / "docs" / "families.md" if whole else None)
    if out is not None:
        out.write_text(table(results, transformers.__version__))
    if not whole:
        for row in results:
            print(json.dumps(row))
    counts = Counter(row["status"] for row in results)
    faults = [f"{row['mapping']}/{row['family']}" for row in results if row["status"] == "fault"]
    seconds = round(time.perf_counter() - begun, 1)
    print(json.dumps({"families": len(results), **counts, "faults": faults, "seconds": seconds}))
    sys.exit(1 if faults else 0)


def walk_all(rows: list[tuple[str, str]], *, workers: int) -> list[dict]:
    """Results of all rows, in their order; those that are kept already are not computed again."""
    from sae.selftest.world import corpus_texts

    folder = KEPT / code_hash()
    folder.mkdir(parents=True, exist_ok=True)
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in corpus_texts(40)))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scripts.family_walk", "sae.selftest.world"])
    waiting = [row for row in rows if not kept(folder, row).exists()]
    running: dict[tuple[str, str], tuple[multiprocessing.process.BaseProcess, float]] = {}
    done = len(rows) - len(waiting)
    while waiting or running:
        while waiting and len(running) < workers:
            row = waiting.pop(0)
            process = context.Process(target=walk_one, args=(row, folder, texts))
            process.start()
            running[row] = (process, time.perf_counter())
        for row, (process, started) in list(running.items()):
            if late := time.perf_counter() - started > LIMIT:
                process.kill()
            process.join(0.05)
            if process.is_alive():
                continue
            if not kept(folder, row).exists():
                reason = f"took over {LIMIT:.0f} s" if late else f"the process ended with {process.exitcode}"
                record = {"mapping": row[0], "family": row[1], "status": "fault", "reason": reason}
                kept(folder, row).write_text(json.dumps(record))
            done += 1
            del running[row]
            print(
                f"{done}/{len(rows)}", summary(json.loads(kept(folder, row).read_text())), file=sys.stderr, flush=True
            )
    return [json.loads(kept(folder, row).read_text()) for row in rows]


def walk_one(row: tuple[str, str], folder: Path, texts: Path) -> None:
    """Walk one family in this process and keep the result."""
    import warnings

    import transformers

    from scripts.family_walk import walk

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    scratch = folder / f"scratch-{row[0]}-{row[1]}"
    begun = time.perf_counter()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - progress of one family of hundreds tells nothing
    result = dataclasses.asdict(walk(*row, scratch, texts))
    result["seconds"] = round(time.perf_counter() - begun, 1)
    part = kept(folder, row).with_suffix(".part")
    part.write_text(json.dumps(result))
    part.rename(kept(folder, row))


def kept(folder: Path, row: tuple[str, str]) -> Path:
    """Where the result of a row is kept."""
    return folder / f"{row[0]}-{row[1]}.json"


def code_hash() -> str:
    """Of everything that a result depends on."""
    import transformers

    digest = hashlib.sha256(transformers.__version__.encode())
    sources = [*ROOT.glob("sae/**/*.py"), ROOT / "scripts/tiny_configs.py", ROOT / "scripts/family_walk.py"]
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def summary(row: dict) -> str:
    """One line of a result, for the eyes."""
    sites = ",".join(row.get("sites", []))
    return f"{row['mapping']}/{row['family']}: {row['status']} {sites} {row['reason']} ({row.get('seconds')} s)"


if __name__ == "__main__":
    main()
