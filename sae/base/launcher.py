"""Who this process is among those that torchrun started, read from the environment it sets; torch is not needed."""

from __future__ import annotations

import os

from sae.config import ConfigError

LAUNCHED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets in the environment beside WORLD_SIZE."""


def world_size() -> int:
    """How many processes the launcher started; 1 without one.

    Raises:
        ConfigError: WORLD_SIZE is no whole number from 1 on, or what torchrun sets with it is missing.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"WORLD_SIZE={text}: expected a whole number from 1 on, as torchrun sets it")
    missing = [name for name in LAUNCHED if name not in os.environ]
    if int(text) > 1 and missing:
        raise ConfigError(
            f"WORLD_SIZE={text} without {', '.join(missing)}: start all ranks with torchrun, or unset WORLD_SIZE"
        )
    return int(text)


def refuse_ranks(what: str) -> None:
    """Refuse to run `what` in several processes, which would do the same work, each for itself.

    Raises:
        ConfigError: a launcher started more than one.
    """
    if world_size() > 1:
        raise ConfigError(f"{what} runs in one process, and WORLD_SIZE is {world_size()}; start it without torchrun")


def rank_number() -> int:
    """This process's number among those that the launcher started; 0 without one."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0
