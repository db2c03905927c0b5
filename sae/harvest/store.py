"""Harvested rows kept for several epochs: in memory, or on disk as immutable, hashed shards.

    store = fill_store(MemoryStore(identity, 400_000), harvest, tokens=400_000, progress=print)
    store.read(range(2048), ["resid_post.9"]).activations["resid_post.9"]     # [2048, d]

A disk store is a folder: `identity.json` (what was harvested, from which data, with which settings) and
`shards/000000/...`, each published whole with the place in the data where the next one begins. A killed harvest resumes
after its last whole shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sae.base.files import (
    CorruptError,
    check_folder,
    publish_folder,
    publish_json,
    read_json,
    remove_leftovers,
    save_tensors,
)
from sae.config import ConfigError
from sae.data.documents import DataError
from sae.data.packing import BEGINNING, Cursor
from sae.harvest.precision import PRECISIONS
from sae.harvest.rows import Rows, all_finite, first_not_finite
from sae.harvest.stream import Harvest

SHARD_ROWS = 65_536
CHECKED_ROWS = 4096  # rows checked at a time for values that are not finite, so that no large copy is made
_LATER = {"start": torch.int32, "kind": torch.int8}  # columns that stores of earlier versions lack


class Store:
    """Rows in the order of the data, in parts as they were appended: a `MemoryStore` or a `DiskStore`."""

    in_memory: bool
    parts: list[Rows]

    def __init__(self, identity: dict[str, Any]) -> None:
        self.identity = identity
        self.parts = []
        self.limit: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which activations are kept."""
        return getattr(torch, self.identity["precision"])

    @property
    def rows(self) -> int:
        """Number of rows served: all that there are, up to `limit`."""
        total = sum(part.size for part in self.parts)
        return total if self.limit is None else min(total, self.limit)

    def append(self, part: Rows, end: Cursor) -> None:
        """Keep `part`; `end` is where the next one begins in the data."""
        raise NotImplementedError

    def end(self) -> Cursor | None:
        """Where the next part begins in the data, or None for an empty store."""
        raise NotImplementedError

    def read(self, rows: range | Tensor, sites: Sequence[str]) -> Rows:
        """Rows by number (a range, or int64 [n] on the CPU), with activations at some sites, on the CPU."""
        if len(self.parts) == 1 and isinstance(rows, range) and rows.start == 0:
            return self.parts[0].at(sites).between(0, len(rows))
        numbers = rows if isinstance(rows, Tensor) else torch.arange(rows.start, rows.stop)
        sizes = torch.tensor([part.size for part in self.parts])
        starts = sizes.cumsum(0) - sizes
        shard = torch.bucketize(numbers, starts, right=True) - 1
        gathered = self.parts[0].at(sites).empty(len(numbers))
        for index in shard.unique().tolist():
            here = (shard == index).nonzero().squeeze(1)
            gathered.write(here, self.parts[index], numbers[here] - starts[index])
        return gathered


class MemoryStore(Store):
    """A store that lives as long as the process. Room for `capacity` rows is allocated once."""

    in_memory = True

    def __init__(self, identity: dict[str, Any], capacity: int) -> None:
        super().__init__(identity)
        self._capacity = capacity
        self._all: Rows | None = None
        self._end: Cursor | None = None

    def append(self, part: Rows, end: Cursor) -> None:
        if self._all is None:
            self._all = part.empty(self._capacity)
        begin = self.parts[0].size if self.parts else 0
        self._all.write(slice(begin, begin + part.size), part)
        self.parts, self._end = [self._all.between(0, begin + part.size)], end

    def end(self) -> Cursor | None:
        return self._end


class DiskStore(Store):
    """A store in a folder, read through memory maps.

    Raises:
        ConfigError: the folder holds a harvest of something else; names the first field that differs.
        CorruptError: a shard is damaged; names the file.
    """

    in_memory = False

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        super().__init__(identity)
        self.folder = folder
        self._ends: list[Cursor] = []
        if check_store(folder, identity):
            self.identity = read_json(folder / "identity.json")
        else:
            publish_json(folder / "identity.json", identity)
        remove_leftovers(folder / "shards")
        for index, shard in enumerate(sorted((folder / "shards").glob("[0-9]*"))):
            if shard.name != f"{index:06d}":
                raise CorruptError(f"{folder / 'shards'}: shard {index:06d} is missing, {shard.name} is there")
            check_folder(shard)
            self._open(shard)

    def append(self, part: Rows, end: Cursor) -> None:
        shard = self._shard(len(self.parts))
        with publish_folder(shard) as temporary:
            tensors = {f"activations.{site}": a.contiguous() for site, a in part.activations.items()}
            columns = {name: getattr(part, name).contiguous() for name in Rows._fields[1:]}
            save_tensors(temporary / "rows.safetensors", {**tensors, **columns})
            publish_json(temporary / "end.json", list(end))
        self._open(shard)

    def end(self) -> Cursor | None:
        return self._ends[-1] if self._ends else None

    def read(self, rows: range | Tensor, sites: Sequence[str]) -> Rows:
        """Rows by number, as in `Store`.

        Raises:
            CorruptError: an activation is not finite; names the file and the row in it.
        """
        result = super().read(rows, sites)
        for site, activations in result.activations.items():
            for first in range(0, result.size, CHECKED_ROWS):
                if not all_finite(part := activations[first : first + CHECKED_ROWS]):
                    number, index = int(rows[first + first_not_finite(part)]), 0
                    while number >= self.parts[index].size:
                        number, index = number - self.parts[index].size, index + 1
                    raise CorruptError(
                        f"{self._shard(index) / 'rows.safetensors'}: row {number} of site {site} is not finite (NaN or "
                        f"infinite), which no harvest stores; delete {self.folder} and harvest again"
                    )
        return result

    def _shard(self, index: int) -> Path:
        return self.folder / "shards" / f"{index:06d}"

    def _open(self, shard: Path) -> None:
        with safe_open(shard / "rows.safetensors", framework="pt") as file:
            activations = {site: file.get_tensor(f"activations.{site}") for site in self.identity["sites"]}
            size, names = len(file.get_tensor("token")), set(file.keys())
            columns = [
                file.get_tensor(name) if name in names else torch.full((size,), -1, dtype=_LATER[name])
                for name in Rows._fields[1:]
            ]
        self.parts.append(Rows(activations, *columns))
        self._ends.append(Cursor(*read_json(shard / "end.json")))


def fill_store(store: Store, harvest: Harvest, *, tokens: int, progress: Callable[[int], None]) -> Store:
    """Harvest until the store serves `tokens` rows or the data ends; `progress` gets the rows added, a call a pass.

    A disk store that holds some rows is continued after its last shard; one that holds more serves its first `tokens`.

    Raises:
        ConfigError: rows are missing, and the store holds sites that this harvest does not.
        DataError: the data set gave no token to train on.
    """
    store.limit = tokens
    rows_stored = store.rows
    progress(rows_stored)
    lacking = store.identity["sites"].keys() - {site.name for site in harvest.sites}
    if rows_stored < tokens and lacking:
        raise ConfigError(
            f"--store: it holds {rows_stored} tokens of more sites ({', '.join(sorted(lacking))}), this run wants "
            f"{tokens} and harvests only its own sites; expected fewer --tokens or another --store"
        )
    waiting: list[Rows] = []
    begin = store.end() or BEGINNING
    skip, end = begin.taken, begin
    for harvested in harvest.batches(begin) if rows_stored < tokens else ():
        rows = harvest.trained_on(harvested.rows).between(skip, skip + tokens - rows_stored)
        rows = rows.stored(store.dtype, rows.activations, harvest.name_of).cpu()
        waiting.append(rows)
        rows_stored += rows.size
        full = rows_stored == tokens
        end = harvested.begin._replace(taken=skip + rows.size) if full else harvested.contexts.next
        skip = 0
        progress(rows.size)
        if full or store.in_memory or sum(part.size for part in waiting) >= SHARD_ROWS:
            store.append(Rows.join(waiting), end)
            waiting = []
        if full:
            break
    if waiting:
        store.append(Rows.join(waiting), end)
    if store.rows == 0:
        raise DataError("the data set gave no token to train on")
    return store


def stored_precision(folder: Path | None) -> str | None:
    """The precision of the store in `folder`; None where there is no store, or it does not record one."""
    if folder is None or not (folder / "identity.json").is_file():
        return None
    identity = read_json(folder / "identity.json")
    precision = identity.get("precision") if isinstance(identity, dict) else None
    return precision if precision in PRECISIONS else None


def check_store(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether `folder` is already a store of this harvest (perhaps of more sites); False if it is missing or empty.

    Raises:
        ConfigError: it is something else; names the first field that differs.
    """
    if (folder / "identity.json").exists():
        recorded = read_json(folder / "identity.json")
        for name, value in identity.items():
            if name in ("model_sha256", "tokenizer_sha256") and isinstance(recorded, dict) and name not in recorded:
                continue  # stores of earlier versions
            other = recorded.get(name) if isinstance(recorded, dict) else None
            more = name == "sites" and isinstance(other, dict) and value.items() <= other.items()
            any_precision = name == "precision" and value == "auto" and other in PRECISIONS
            if other != value and not more and not any_precision:
                raise ConfigError(
                    f"--store {folder}: it holds a harvest with {name} = {other!r}, this run wants {value!r}; "
                    "choose another folder"
                )
        return True
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--store {folder}: a file; expected a folder")
    if folder.exists() and any(not path.name.startswith("run.") for path in folder.iterdir()):
        raise ConfigError(f"--store {folder}: the folder is not empty and is no activation store")
    return False
