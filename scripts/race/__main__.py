"""Ours against SAELens, sparsify and dictionary_learning from the same stored activations: `make race`.

    python -m scripts.race --out runs/race

Every entry is trained with every rate of the grid at seed 0; the rate with the lowest FVU on the validation rows is
trained with the other seeds, and measured on the test rows. A run that was stopped continues: finished members are
skipped. Prints a table in Markdown, then one JSON line; writes the figure.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sae.config import ConfigError
from scripts.race.data import harvest
from scripts.race.evaluate import Parts, measure
from scripts.race.member import TRAINED
from scripts.race.settings import ENTRIES, Member, Race
from scripts.race.table import Lane, draw, report

ROOT = Path(__file__).parents[2]
Measure = Callable[[Sequence[float]], dict[float, float]]


def train(folder: Path, race: Race, members: list[Member], peers: Path) -> None:
    """Train those of an entry's members that are not finished, in one process of the tool's environment.

    Raises:
        RuntimeError: the process failed; with the end of its log.
    """
    missing = [member for member in members if not (folder / member.name / TRAINED).exists()]
    if not missing:
        return
    for member in missing:
        (folder / member.name).mkdir(exist_ok=True)
    ours = ENTRIES[missing[0].entry].tool == "Sparsight"
    python, module = (Path(sys.executable), "ours") if ours else (peers, "peers")
    threads = {"OMP_NUM_THREADS": str(race.threads), "OMP_WAIT_POLICY": "passive"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")]) if ours else str(ROOT)
    command = [str(python), "-m", f"scripts.race.{module}", str(folder), *map(json.dumps, missing)]
    print(f"training {', '.join(member.name for member in missing)}", file=sys.stderr, flush=True)
    log = folder / missing[0].name / "log.txt"
    with open(log, "w") as stream:
        environment = {**os.environ, **threads, "PYTHONPATH": path}
        done = subprocess.run(command, stdout=stream, stderr=stream, env=environment, cwd=ROOT, check=False)
    if done.returncode:
        end = "\n".join(log.read_text().splitlines()[-15:])
        raise RuntimeError(f"{log} ends with exit status {done.returncode}:\n{end}")


def best_rate(race: Race, measured: Measure) -> dict[float, float]:
    """Multiple -> FVU on the validation rows at seed 0, the best first; `measured` takes multiples."""
    grid = measured(race.multiples)
    for _ in range(race.extensions):
        best = min(grid, key=grid.__getitem__)
        if best == max(grid):
            grid |= measured([best * 2])
        elif best == min(grid):
            grid |= measured([best / 2])
        else:
            break
    return dict(sorted(grid.items(), key=lambda item: item[1]))


def run(race: Race, folder: Path, entries: list[str], peers: Path) -> list[Lane]:
    """Train and measure; what every entry came to."""
    rows = Parts.read(folder)

    def measured(members: list[Member]) -> list[dict[str, Any]]:
        train(folder, race, members, peers)
        return [measure(folder, folder / member.name, race, rows) for member in members]

    def fvus(name: str, multiples: Sequence[float]) -> dict[float, float]:
        reports = measured([Member(name, 0, multiple) for multiple in multiples])
        return {multiple: report["validation_fvu"] for multiple, report in zip(multiples, reports, strict=True)}

    lanes = []
    for name in entries:
        grid = best_rate(race, partial(fvus, name))
        members = [Member(name, seed, next(iter(grid))) for seed in range(race.seeds)]
        lanes.append(Lane(name, grid, measured(members), [folder / member.name for member in members]))
    return lanes


def prepare(race: Race, folder: Path) -> None:
    """The folder of this race, with its activations.

    Raises:
        ConfigError: it holds another race.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "race.json"
    if settings.exists() and Race.read(folder) != race:
        raise ConfigError(f"--out {folder}: holds a race with other settings, see {settings}; choose another folder")
    settings.write_text(json.dumps(race.to_json(), indent=1))
    harvest(race, folder)


def main() -> None:
    """Print the table and one JSON line."""
    parser = argparse.ArgumentParser(description="ours against other tools")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "race")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers" / "bin" / "python")
    parser.add_argument("--entries", default=",".join(ENTRIES), help="with commas")
    parser.add_argument("--figure", type=Path, help="where the figure goes (.svg)")
    for field in dataclasses.fields(Race):
        if field.name != "multiples":
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--multiples", type=lambda text: tuple(map(float, text.split(","))), default=Race.multiples)
    given = vars(parser.parse_args())
    race = Race(**{field.name: given[field.name] for field in dataclasses.fields(Race)})
    entries = given["entries"].split(",")
    if unknown := [name for name in entries if name not in ENTRIES]:
        raise SystemExit(f"--entries {unknown[0]}: unknown; known: {', '.join(ENTRIES)}")
    prepare(race, given["out"])
    lanes = run(race, given["out"], entries, given["peers"])
    text, values = report(race, given["out"], lanes)
    print(text)
    if given["figure"]:
        draw(values, given["figure"])
    print(json.dumps(values))


if __name__ == "__main__":
    main()
