"""Damage to every file that the toolkit writes: it is refused by name, or nothing that is read differs."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from sae.selftest.content import fingerprint
from sae.selftest.damage import DAMAGES
from sae.selftest.harness import Outcome, Task
from sae.selftest.scenes import LEGAL, Scene, make_scenes
from sae.selftest.taking_away import taken_away


class Trial(NamedTuple):
    """How the reading of a damaged file ended."""

    ending: str
    """refused, unchanged, silent, or unclean."""
    detail: str
    """What was wrong; empty for the first two."""


def run(task: Task) -> Outcome:
    """Damage one file at a time, read everything, put all files back."""
    draw = random.Random(task.seed)
    scenes = make_scenes(task.folder)
    truths = {scene.name: fingerprint(scene.read(scene.folder)) for scene in scenes}
    counts: Counter[str] = Counter()
    failures: list[str] = []
    with taken_away(task.broken), task.progress.bar("corrupt", task.n, "files") as bar:
        for number in range(task.n):
            scene = scenes[number % len(scenes)]
            file = draw.choice(scene.files)
            damage = draw.choice([name for name in DAMAGES if name not in LEGAL.get(file, ())])
            originals = {name: (scene.folder / name).read_bytes() for name in scene.files}
            damaged = DAMAGES[damage](originals[file], draw, (scene.other / file).read_bytes())
            _put(scene.folder / file, damaged)
            trial = _read(scene, truths[scene.name])
            # all, for reading may write too: what was computed from weights, say
            for name, content in originals.items():
                if not (scene.folder / name).is_file() or (scene.folder / name).read_bytes() != content:
                    _put(scene.folder / name, content)
            counts[trial.ending] += 1
            if trial.detail:
                failures.append(f"{number}: {scene.name}, {damage} of {file}: {trial.ending}: {trial.detail}")
                if task.keep is not None:
                    task.keep.mkdir(parents=True, exist_ok=True)
                    (task.keep / f"{number}-{Path(file).name}").write_bytes(damaged)
            bar.advance(1)
    return Outcome(task.n, tuple(failures), dict(counts))


def _read(scene: Scene, truth: str) -> Trial:
    try:
        content = scene.read(scene.folder)
    except Exception as error:
        message = str(error)
        if not type(error).__module__.startswith("sae."):
            return Trial("unclean", f"{type(error).__name__}: {message[:200]}")
        if str(scene.folder) not in message:
            return Trial("unclean", f"names no file: {message[:200]}")
        return Trial("refused", "")
    if fingerprint(content) == truth:
        return Trial("unchanged", "")
    return Trial("silent", "read without an error, and what was read differs")


def _put(path: Path, content: bytes) -> None:
    """A new file of that name: one that is mapped into memory keeps its content."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
