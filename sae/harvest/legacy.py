"""Stores of the first format: a folder a shard, with a manifest each; read in place, continued in the present one."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from sae.base.files import CorruptError, check_folder, read_json
from sae.data.packing import Cursor
from sae.harvest.shards import FOLDER, ShardEntry

ROWS = "rows.safetensors"


def legacy_shards(folder: Path) -> list[ShardEntry]:
    """The shards `shards/000000/rows.safetensors` and on, every file compared with its hash; none in a newer store.

    Raises:
        CorruptError: one is missing or damaged; names it.
    """
    entries: list[ShardEntry] = []
    shards = sorted(path for path in (folder / FOLDER).glob("[0-9]*") if path.is_dir() and path.name.isdecimal())
    for index, shard in enumerate(shards):
        if shard.name != f"{index:06d}":
            raise CorruptError(f"{folder / FOLDER}: shard {index:06d} is missing, {shard.name} is there")
        check_folder(shard)
        written = read_json(shard / "manifest.json")["files"][ROWS]
        with safe_open(shard / ROWS, framework="pt") as file:
            rows = file.get_slice("token").get_shape()[0]
        end = Cursor(*read_json(shard / "end.json"))
        entries.append(ShardEntry(f"{FOLDER}/{shard.name}/{ROWS}", rows, written["bytes"], written["sha256"], end))
    return entries
