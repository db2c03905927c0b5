"""A sweep's folder: `sweep.json` names the run folders of its members, which lie beside it.

write_sweep(out, ["k16", "k32"])
sweep_of("runs/sweep")            # Sweep(folder, names, errors), or None for a folder that holds no sweep
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sae.base.files import CorruptError, publish_json, read_json, remove_leftovers
from sae.config import ConfigError

SWEEP = "sweep.json"
FORMAT = 1


class Sweep(NamedTuple):
    """What a sweep's folder holds."""

    folder: Path
    names: list[str]
    """Members' folders in it, in the order of the table."""
    errors: dict[str, str]
    """Member that stopped before its end -> why."""

    @property
    def members(self) -> list[Path]:
        """Run folders of all members, finished or not."""
        return [self.folder / name for name in self.names]


def write_sweep(folder: Path, names: Sequence[str], errors: Mapping[str, str] | None = None) -> None:
    """Make a folder that of a sweep."""
    remove_leftovers(folder)
    publish_json(folder / SWEEP, {"format": FORMAT, "members": list(names), "errors": dict(errors or {})})


def sweep_of(path: str | Path) -> Sweep | None:
    """The sweep in a folder; None where there is none.

    Raises:
        CorruptError: its record is damaged.
    """
    folder = Path(path).expanduser()
    if not (folder / SWEEP).is_file():
        return None
    record = read_json(folder / SWEEP)
    parts = record if isinstance(record, dict) else {}
    names, errors = parts.get("members"), parts.get("errors")
    if (
        parts.get("format") != FORMAT
        or not isinstance(names, list)
        or not isinstance(errors, dict)
        or not all(isinstance(text, str) for text in [*names, *errors, *errors.values()])
        or any(Path(name).name != name for name in names)
    ):
        raise CorruptError(f"{folder / SWEEP}: not the record of a sweep that this version reads")
    return Sweep(folder, names, errors)


def refuse_sweep(path: str | Path, command: str) -> None:
    """Refuse a sweep where one run is expected.

    Raises:
        ConfigError: names a member in its place.
    """
    sweep = sweep_of(path)
    if sweep is not None:
        member = f"; name a member, such as {sweep.members[0]}" if sweep.names else ""
        raise ConfigError(f"{path}: a sweep of {len(sweep.names)} runs, and sae {command} reads one{member}")
