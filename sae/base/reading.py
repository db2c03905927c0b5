"""Errors of libraries, while a file is read, as one that names the file.

with reading(path):
    tensors = load_file(path)
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from sae.base.files import CorruptError


@contextlib.contextmanager
def reading(path: Path, refusal: type[Exception] = CorruptError, remedy: str = "") -> Iterator[None]:
    """Turn what is raised for a damaged file, in as many classes as there are libraries, into one error.

    Errors of this package pass, and so do those of the system (no permission, a failing disk) and of memory.

    Args:
        path: the file.
        refusal: class of the error.
        remedy: what helps, for the end of its message.

    Raises:
        CorruptError, or `refusal`: the file is missing, or is not what its reader expects.
    """
    try:
        yield
    except Exception as error:
        if _passes(error):
            raise
        raise refusal(f"{path}: cannot be read ({reason(error)}){remedy and '; '}{remedy}") from error


def _passes(error: Exception) -> bool:
    """Whether an error says something else than that the file is damaged."""
    # a reader that follows an offset out of a damaged file is told EINVAL
    of_system = isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.EINVAL)
    return of_system or isinstance(error, MemoryError) or type(error).__module__.startswith("sae.")


def reason(error: BaseException) -> str:
    """An error in one line; with its class where its text alone says little, such as the key of a KeyError."""
    said = next(iter(str(error).strip().splitlines()), "")
    plain = isinstance(error, (OSError, ValueError, RuntimeError)) and said
    return said if plain else f"{type(error).__name__} {said}".strip()
