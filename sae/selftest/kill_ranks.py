"""A run of 2 ranks killed again and again at random moments, and resumed on 1, 2 or 4 ranks, ends as the unbroken one.

SIGKILL comes to the launcher with all ranks, to one rank or to the launcher alone: at a random step, after a random
time, or at a random operation on the disk, before it or in the middle of it, so also while a checkpoint is written.
Resumed on 2 ranks the result has equal bits; on another number every tensor is within `BOUND`.
"""

from __future__ import annotations

import functools
import itertools
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

from sae.models.saved import CONFIG, WEIGHTS, read_config
from sae.runs.metrics import read_metrics
from sae.selftest.children import Children, Fault
from sae.selftest.content import fingerprint
from sae.selftest.forked_ranks import LIMIT, VICTIMS, JobEnded, RankJob, Strike, run_job
from sae.selftest.harness import Outcome, Task
from sae.selftest.kill import attempted
from sae.selftest.unbroken import check_published, lasting
from sae.selftest.world import World
from sae.training.checkpoint import load_newest

BOUND = 2e-5
"""Relative distance, in norm, of each tensor from the unbroken run's: ranks of another number add in another order."""
KILLS = 10  # of one run
COURSES: dict[str, tuple[int, ...]] = {"2": (2,), "1": (1,), "4": (4,), "1, 2 or 4": (1, 2, 4)}
"""Name -> numbers of ranks, one of which is drawn each time the run resumes."""
MESHES = {1: (), 2: ("1x2", "2x1"), 4: ("2x2", "4x1", "1x4")}
EVERY = 4  # steps between two checkpoints
SETTINGS: dict[str, Any] = {
    "variant": "batchtopk", "width": 128, "k": 8, "batch": 128, "tokens": 6_400, "contexts": 8, "dead_after": 1_500,
    "store_precision": "float32", "checkpoint_every": EVERY * 128, "keep_checkpoints": 2, "device": "cpu",
}  # fmt: skip
"""Of the run: 50 steps in one block of the buffer, with 12 checkpoints."""


class Means(NamedTuple):
    """What every run of this harness is made with."""

    toy: World
    """Model and texts."""
    children: Children
    broken: str | None = None
    """The protection that is taken away."""


class Unbroken(NamedTuple):
    """A run of 2 ranks that nothing disturbed."""

    mesh: str
    run: Path
    ended: JobEnded
    digests: dict[str, str]
    """What it made -> fingerprint."""


def run(task: Task) -> Outcome:
    """`task.n` kills, shared out over the courses."""
    means = Means(task.world, Children(), task.broken)
    counts: Counter[str] = Counter()
    failures: list[str] = []
    unbroken: dict[str, Unbroken] = {}
    with task.progress.bar("kill-ranks", task.n, "kills") as bar:
        for number, course in enumerate(COURSES):
            wanted = task.n // len(COURSES) + (number < task.n % len(COURSES))
            attempt = 0
            while wanted > 0:
                draw = random.Random(f"{task.seed} {course} {attempt}")
                mesh = draw.choice(MESHES[2])
                if mesh not in unbroken:
                    unbroken[mesh] = run_unbroken(means, task.folder / f"unbroken-{mesh}", mesh)
                kill = functools.partial(drawn, draw, unbroken[mesh].ended)
                strikes = itertools.repeat(kill, min(wanted, KILLS))
                story: list[str] = []
                folder = task.folder / f"{number}-{attempt}"
                folder.mkdir()
                wrong = killed_run(means, folder, unbroken[mesh], COURSES[course], strikes, draw, story)
                landed = [part for part in story if part.startswith("killed")]
                counts[f"resumed on {course}"] += len(landed)
                counts["runs"] += 1
                counts["kills at an operation on the disk"] += len([part for part in landed if " operation " in part])
                counts.update(f"kills of the {part.split()[2]}" for part in landed)
                if wrong:
                    failures.append(f"{mesh}, resumed on {course}: {'; '.join(story)}: {wrong}")
                    if task.keep is not None:
                        shutil.copytree(folder, task.keep / folder.name)
                shutil.rmtree(folder)
                bar.advance(len(landed))
                # a run that failed before its first kill would be tried for ever
                wanted, attempt = wanted - max(len(landed), bool(wrong)), attempt + 1
    return Outcome(task.n, tuple(failures), dict(counts))


def run_unbroken(means: Means, folder: Path, mesh: str) -> Unbroken:
    """The run on 2 ranks, undisturbed, in a new folder.

    Raises:
        RuntimeError: it fails.
    """
    folder.mkdir()
    ended = run_job(means.children, RankJob(folder, arguments(means.toy, mesh), 2))
    if ended.status != 0:
        raise RuntimeError(f"a run on {mesh} ranks failed undisturbed: {ended.said[-2000:]}")
    return Unbroken(mesh, folder / RUN, ended, digests(folder / RUN))


RUN = "run"


def arguments(toy: World, mesh: str | None, *, resume: bool = False) -> tuple[str, ...]:
    """Of `sae train`; without a mesh, in one process."""
    return (
        "train", *toy.arguments(**SETTINGS), "--out", RUN, *(("--mesh", mesh) if mesh else ()),
        *(("--resume",) if resume else ()),
    )  # fmt: skip


def killed_run(
    means: Means,
    folder: Path,
    unbroken: Unbroken,
    worlds: Sequence[int],
    strikes: Iterator[Callable[[int], Strike]],
    draw: random.Random,
    story: list[str],
    *,
    world: int = 2,
) -> str:
    """Begin or resume a run, kill it with each strike, or until it ends; returns what went wrong, or nothing.

    Args:
        worlds: numbers of ranks to resume on.
        strikes: each gives a strike for a number of ranks.
        draw: of numbers of ranks and their meshes.
        story: gets what was done.
        world: ranks to begin on.
    """
    run, exact = folder / RUN, {world, *worlds} == {2}
    while True:
        here = unbroken.mesh if world == 2 else draw.choice(MESHES[world] or (None,))
        strike = next(strikes, lambda _: None)(world)
        resume = (run / CONFIG).exists()
        job = RankJob(folder, arguments(means.toy, here, resume=resume), world, strike, means.broken)
        ended = run_job(means.children, job)
        if ended.left:
            return f"{LIMIT:.0f} s after a kill of {strike} of {world}, ranks {ended.left} were still there"
        if not ended.struck:
            if ended.status != 0:
                return f"on {world} ranks: exit status {ended.status}: {ended.said.strip()[-800:]}"
            return compared(run, unbroken, exact=exact)
        story.append(f"killed {strike} of {world}")
        if wrong := attempted(lambda: check_published(folder)):
            return wrong
        if (run / CONFIG).exists() and read_config(run).get("autoencoder"):
            return compared(run, unbroken, exact=exact)
        world = draw.choice(worlds)


def drawn(draw: random.Random, unbroken: JobEnded, world: int) -> Strike:
    """A strike within the first two checkpoints or so, that ten kills may find the run still under way."""
    victim, rank = draw.choice(VICTIMS if world > 1 else VICTIMS[:1]), draw.randrange(world)
    share = 2.5 * EVERY / 50
    kind = draw.randrange(3)
    if kind == 0:
        return Strike(victim, rank, beats=draw.randrange(1, int(unbroken.beats * share) + 1))
    if kind == 1:
        return Strike(victim, rank, seconds=draw.uniform(0, unbroken.seconds * share))
    how = draw.choice(("kill", "half")) if victim != "launcher" else "kill"
    # ranks but the first write their parts of checkpoints only
    number = int(unbroken.operations * share) if rank == 0 else 3
    return Strike(victim, rank, fault=Fault(draw.randrange(number), how))


def compared(run: Path, unbroken: Unbroken, *, exact: bool) -> str:
    """What differs from the unbroken run."""
    left = [str(path.relative_to(run)) for path in run.rglob(".partial-*")]
    if left:
        return f"left over: {', '.join(left)}"
    if exact:
        made: dict[str, str] = {}
        if wrong := attempted(lambda: made.update(digests(run))):
            return wrong
        different = [name for name, digest in unbroken.digests.items() if made[name] != digest]
        return f"differs: {', '.join(different)}" if different else ""
    steps = [[line["step"] for line in read_metrics(each)] for each in (run, unbroken.run)]
    if steps[0] != steps[1]:
        return f"the steps in metrics.jsonl differ: {len(steps[0])} lines up to {steps[0][-1:]}, not {len(steps[1])}"
    far = {name: value for name, value in distances(run, unbroken.run).items() if not value < BOUND}
    return f"differs by more than {BOUND}: {far}" if far else ""


def digests(run: Path) -> dict[str, str]:
    """Fingerprints of weights, metrics, the record, and the newest checkpoint with its optimizer and data state."""
    checkpoint = load_newest(run / "checkpoints")
    content = {
        "weights": load_file(run / WEIGHTS),
        "metrics": (run / "metrics.jsonl").read_bytes(),
        "config.json": lasting(read_config(run)),
        "checkpoint": None if checkpoint is None else lasting(checkpoint._asdict()),
    }
    return {name: fingerprint(value) for name, value in content.items()}


def distances(run: Path, other: Path) -> dict[str, float]:
    """Tensor -> |ours - theirs| / |theirs|."""
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (run, other))
    names = [name for name in theirs if not name.startswith("selftest")]
    return {name: ((ours[name] - theirs[name]).norm() / theirs[name].norm().clamp_min(1e-6)).item() for name in names}
