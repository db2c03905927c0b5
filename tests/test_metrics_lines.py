"""`metrics.jsonl` of a run in progress, whose last lines may not have reached the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae.base.files import CorruptError
from sae.runs.metrics import METRICS, lines_of, read_metrics

LINES = b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'


@pytest.mark.parametrize("lost", [LINES[:-4], LINES[:24] + bytes(11) + b"\n", LINES[:24] + b"\0\0{\xff\n" + LINES[24:]])
def test_lines_from_the_first_that_a_loss_of_power_damaged_are_left_out(lost: bytes, tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(lost)
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_file_that_should_be_whole_is_refused_with_the_line(tmp_path: Path) -> None:
    assert len(lines_of(tmp_path, LINES)) == 3
    with pytest.raises(CorruptError, match="line 2 is no JSON"):
        lines_of(tmp_path, LINES.replace(b"2", b"\0"))
