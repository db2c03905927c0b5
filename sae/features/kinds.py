"""Kinds of run: some features exist for language models alone."""

from __future__ import annotations

from pathlib import Path

from sae.config import ConfigError
from sae.runs.base import KINDS, called, kind_of


def check_language(run: str | Path, what: str) -> None:
    """Refuse a run that is not on a language model; `what` needs one, and is the subject of the message's sentence.

    Raises:
        ConfigError, CorruptError: the run is of another kind, or no run.
    """
    kind = kind_of(run)
    if kind != "language":
        raise ConfigError(f"{run}: {called(kind)}; {what} needs {KINDS['language'].what}")
