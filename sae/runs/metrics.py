"""A run's `metrics.jsonl`: one JSON object a line, appended while the run trains."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae.base.files import CorruptError
from sae.models.saved import CONFIG, read_config

METRICS = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; none if there is no such file.

    Of a finished run the whole file must be what was written. In that of a run in progress only the lines up to the
    newest checkpoint are known to be on the disk: a kill can cut the last line short, and a loss of power can leave
    zeros in place of any line after the checkpoint. The lines from there on are left out.

    Raises:
        CorruptError: the file of a finished run was changed, or a line cannot be read.
    """
    path = folder / METRICS
    if not path.exists():
        return []
    content = path.read_bytes()
    digest = read_config(folder).get("metrics_sha256") if (folder / CONFIG).is_file() else None
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise CorruptError(
            f"{path}: its SHA-256 is not the one that {CONFIG} records: the file was changed or damaged; restore it "
            "from a copy, or delete it"
        )
    return list(_readable(content)) if digest is None else lines_of(path, content)


def lines_of(path: Path, content: bytes) -> list[dict[str, Any]]:
    """The whole lines of the content of the file `path`; CorruptError where one is no JSON."""
    lines = list(_readable(content))
    if len(lines) < content.count(b"\n"):
        raise CorruptError(f"{path}: line {len(lines) + 1} is no JSON; delete the file to resume without it")
    return lines


def _readable(content: bytes) -> Iterator[dict[str, Any]]:
    """The lines before the first that is cut short or no JSON."""
    *whole, _ = content.split(b"\n")
    for line in whole:
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            return
