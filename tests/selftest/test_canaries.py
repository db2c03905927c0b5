"""Files that would run code when they are unpickled, in place of every file that a reader opens: none is executed."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.data.documents import DataError
from sae.data.tensors import open_tensors
from sae.interop import read
from sae.interop.registry import Published, entries
from sae.selftest import layouts


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.path, "executed"))


FORMATS: dict[str, Published] = {}
for entry in entries():
    if entry.of.format in layouts.WRITERS:
        FORMATS.setdefault(entry.of.format, entry)


def armed(path: Path, mark: Path) -> None:
    """Replace a file by one of its kind, as far as there is one, that holds the payload."""
    payload = np.array([Payload(mark)], dtype=object)
    if path.suffix == ".npz":
        np.savez(path, W_enc=payload)
    elif path.suffix == ".npy":
        np.save(path, payload, allow_pickle=True)
    elif path.suffix in (".pt", ".pth", ".bin"):
        torch.save({"W_enc": torch.zeros(2, 2), "payload": Payload(mark)}, path)
    elif path.suffix in (".yaml", ".yml"):
        path.write_text(
            f"a: !!python/object/apply:pathlib.Path.write_text [!!python/object/apply:pathlib.Path [{mark}], x]"
        )
    else:
        path.write_bytes(pickle.dumps(Payload(mark)))


@pytest.mark.parametrize("format", FORMATS)
def test_no_reader_of_another_tool_s_files_executes_one(format: str, tmp_path: Path) -> None:
    of = FORMATS[format]
    layouts.write(of, tmp_path / "whole")
    for file in sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file()):
        root, mark = tmp_path / file.name, tmp_path / f"mark-{file.name}"
        layouts.write(of, root)
        armed(root / file, mark)
        for arguments in ({}, {"format": format}):
            with pytest.raises((ConfigError, CorruptError)):
                read(root / of.path, **arguments)
        assert not mark.exists()


def test_no_table_of_numbers_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for name in ("rows.npy", "rows.safetensors", "rows.parquet"):
        armed(tmp_path / name, mark)
        with pytest.raises(DataError, match=name):
            open_tensors(tmp_path / name)
    assert not mark.exists()


def test_the_payload_works(tmp_path: Path) -> None:
    armed(tmp_path / "x.npz", tmp_path / "mark")
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert "W_enc.npy" in archive.namelist()
    np.load(tmp_path / "x.npz", allow_pickle=True)["W_enc"]
    assert (tmp_path / "mark").exists()
