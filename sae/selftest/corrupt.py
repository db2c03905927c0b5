"""Damage to every file that the toolkit writes: it is refused by name, or nothing that is read differs."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sae.selftest.content import fingerprint
from sae.selftest.damage import DAMAGES
from sae.selftest.harness import Outcome, Task
from sae.selftest.scenes import Scene, make_scenes
from sae.selftest.taking_away import taken_away


class Trial(NamedTuple):
    """How the reading of a damaged file ended."""

    ending: str
    """refused, unchanged, silent, or unclean."""
    detail: str
    """What was wrong; empty for the first two."""


def run(task: Task) -> Outcome:
    """Damage one file at a time, read everything, put the file back."""
    draw = random.Random(task.seed)
    scenes = make_scenes(task)
    truth = {scene.name: fingerprint(scene.read(scene.folder)) for scene in scenes}
    counts: Counter[str] = Counter()
    failures: list[str] = []
    with taken_away(task.broken), task.progress.bar("corrupt", task.n, "files") as bar:
        for number in range(task.n):
            scene = scenes[number % len(scenes)]
            file = draw.choice(scene.files)
            damage = draw.choice(list(DAMAGES))
            path = scene.folder / file
            original = path.read_bytes()
            damaged = DAMAGES[damage](original, draw, (scene.other / file).read_bytes())
            with _replaced(path, damaged, original):
                trial = _read(scene, truth[scene.name])
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


@contextlib.contextmanager
def _replaced(path: Path, damaged: bytes, original: bytes) -> Iterator[None]:
    """The file with other content, as a new file: one that is mapped into memory keeps its own."""
    _put(path, damaged)
    try:
        yield
    finally:
        _put(path, original)


def _put(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)
