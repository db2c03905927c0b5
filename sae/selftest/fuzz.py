"""Mutated files for every reader: each is read or refused by an error of the toolkit, in little memory and time."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.data.documents import DataError
from sae.features.store.keys import FeatureError
from sae.harvest.language_model import ModelError
from sae.selftest.confined import confined
from sae.selftest.harness import Outcome, Task
from sae.selftest.mutations import mutate
from sae.selftest.readers import Reader, make_readers
from sae.selftest.taking_away import taken_away
from sae_kernels.dispatch import use_backend

CLEAN = (ConfigError, CorruptError, DataError, FeatureError, ModelError)
"""Errors that tell a user what is wrong with a file."""
OUT_OF_MEMORY = ("allocate", "out of memory", "std::bad_alloc")
"""What an error says that a library raised because it asked for too much."""


def run(task: Task) -> Outcome:
    """Change files, one reader after another, and read them in child processes."""
    readers = make_readers(task.folder)
    counts: Counter[str] = Counter()
    failures: list[str] = []
    most = 0

    def job(number: int) -> list[str]:
        reader = prepare(readers, task.seed, number)
        try:
            # numba's threads do not survive a fork
            with use_backend("naive"):
                return list(_read(reader))
        finally:
            _restore(reader)

    with taken_away(task.broken), task.progress.bar("fuzz", task.n, "files") as bar:
        for number, result, died, memory in confined(job, range(task.n)):
            reader, name = drawn(readers, task.seed, number)[:2]
            ending, detail = ("died", died) if result is None else result
            counts[f"{ending}"] += 1
            most = max(most, memory)
            if ending not in ("read", "refused"):
                failures.append(f"{number}: {reader.name}, {name}: {ending}: {detail}")
                _keep(task, readers, number)
            _restore(reader) if died else None
            bar.advance(1)
    return Outcome(task.n, tuple(failures), {**counts, "readers": len(readers), "memory (MB, at most)": most >> 20})


def drawn(readers: list[Reader], seed: int, number: int) -> tuple[Reader, str, random.Random]:
    """The reader and the file of a trial, and the draw that changes it."""
    draw = random.Random(f"{seed}-{number}")
    (reader,) = draw.choices(readers, [reader.weight for reader in readers])
    return reader, draw.choice(list(reader.files)), draw


def prepare(readers: list[Reader], seed: int, number: int, folder: Path | None = None) -> Reader:
    """Change the file of a trial on the disk; the same one for the same seed and number.

    Args:
        readers: all of them.
        seed: of the run.
        number: of the trial.
        folder: holds the reader's files; by default the reader's own folder.
    """
    reader, name, draw = drawn(readers, seed, number)
    folder = folder or reader.folder
    (folder / name).write_bytes(mutate(name, reader.files[name], draw))
    if reader.mend is not None and draw.random() < 0.7:
        reader.mend(folder, reader.files, draw)
    return reader


def _read(reader: Reader) -> tuple[str, str]:
    """How the reading ended, and what was wrong with it."""
    try:
        reader.read(reader.folder)
    except CLEAN as error:
        said = str(error)
        if any(words in said for words in OUT_OF_MEMORY):
            return "asked for too much memory", said[:200]
        return (
            ("refused", "")
            if str(reader.folder) in said
            else ("named no file", f"{type(error).__name__}: {said[:200]}")
        )
    except MemoryError as error:
        return "asked for too much memory", str(error)[:200]
    except BaseException as error:
        return "unclean", f"{type(error).__name__}: {str(error)[:200]} at {_place(error)}"
    return "read", ""


def _place(error: BaseException) -> str:
    """The last line of the toolkit that the error went through."""
    place, trace = "", error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if "sae" in path.parts and path.parent.name != "selftest":
            place = f"{path.name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _restore(reader: Reader) -> None:
    """Put back every file that differs."""
    for name, content in reader.files.items():
        path = reader.folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.unlink(missing_ok=True)
            path.write_bytes(content)


def _keep(task: Task, readers: list[Reader], number: int) -> None:
    """Leave the files of a failed trial in the folder of those."""
    if task.keep is None:
        return
    # not in the reader's folder: a child process is reading there
    folder = task.keep / str(number)
    for name, content in drawn(readers, task.seed, number)[0].files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    prepare(readers, task.seed, number, folder)
