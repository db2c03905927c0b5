"""A run's `metrics.jsonl`: one JSON object a line, appended while the run trains."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sae.base.files import CorruptError
from sae.models.saved import CONFIG, read_config

METRICS = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; none if there is no such file.

    Of a finished run the whole file must be what was written. That of a run in progress may end in half a line or,
    after a loss of power, in anything: it is read up to the first line that is no JSON. Resuming checks the rest.

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
    return lines_of(path, content, in_progress=digest is None)


def lines_of(path: Path, content: bytes, *, in_progress: bool = False) -> list[dict[str, Any]]:
    """The whole lines of the content of the file `path`.

    Args:
        in_progress: stop at the first line that is no JSON.

    Raises:
        CorruptError: a line is no JSON.
    """
    # a kill or a full disk can leave half a line at the end
    *whole, _ = content.split(b"\n")
    rows = []
    for line in whole:
        try:
            rows.append(json.loads(line.decode()))
        except (ValueError, RecursionError) as error:
            if in_progress:
                break
            raise CorruptError(f"{path}: a line is no JSON ({error}); delete the file to resume without it") from error
    return rows
