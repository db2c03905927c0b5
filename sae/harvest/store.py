"""Harvested activations kept for several epochs: in memory, or on disk as immutable, hashed shards.

    store = fill_store(MemoryStore(identity), harvest, tokens=400_000, progress=print)
    store.read(range(2048), ["resid_post.9"])["resid_post.9"]     # [2048, d]

A disk store is a folder: `identity.json` (what was harvested, from what, how) and `shards/000000/...`, each published
whole with the place in the data where the next one begins. A killed harvest goes on after its last whole shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
from sae.data.packing import Cursor
from sae.harvest.precision import PRECISIONS
from sae.harvest.stream import ActivationError, Harvest

SHARD_ROWS = 65_536

End = tuple[int, int, int]
"""Where a harvest goes on: document and token of a forward pass, and how many of its rows were already taken."""


class Part(NamedTuple):
    """Consecutive rows of a store."""

    activations: dict[str, Tensor]
    """Site -> [n, d]."""
    token: Tensor
    """int32 [n]"""
    document: Tensor
    """int64 [n]"""
    position: Tensor
    """int32 [n]"""


class Store:
    """Rows of activations, in the order of the data; see `MemoryStore` and `DiskStore`."""

    in_memory: bool
    parts: list[Part]

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
        """Tokens served: those held, up to `limit`."""
        held = sum(len(part.token) for part in self.parts)
        return held if self.limit is None else min(held, self.limit)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one token's activations over all sites."""
        return sum(self.identity["sites"].values()) * self.dtype.itemsize

    def append(self, part: Part, end: End) -> None:
        """Keep `part`; `end` says where in the data the next one begins."""
        raise NotImplementedError

    def end(self) -> End | None:
        """Where the next part begins in the data, or None for an empty store."""
        raise NotImplementedError

    def read(self, rows: range | Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """Rows by number (a range, or int64 [n] on the CPU) -> site -> [n, d] on the CPU."""
        if len(self.parts) == 1 and isinstance(rows, range) and rows.start == 0:
            return {site: self.parts[0].activations[site][: len(rows)] for site in sites}
        wanted, shard, starts = self._locate(rows)
        gathered = {site: torch.empty(len(wanted), self.identity["sites"][site], dtype=self.dtype) for site in sites}
        for index in shard.unique().tolist():
            here = (shard == index).nonzero().squeeze(1)
            local = wanted[here] - starts[index]
            for site in sites:
                gathered[site][here] = self.parts[index].activations[site][local]
        return gathered

    def places(self, rows: range | Tensor) -> tuple[Tensor, Tensor]:
        """Document int64 [n] and position int32 [n] of rows by number."""
        wanted, shard, starts = self._locate(rows)
        document = torch.empty(len(wanted), dtype=torch.int64)
        position = torch.empty(len(wanted), dtype=torch.int32)
        for index in shard.unique().tolist():
            here = (shard == index).nonzero().squeeze(1)
            local = wanted[here] - starts[index]
            document[here] = self.parts[index].document[local]
            position[here] = self.parts[index].position[local]
        return document, position

    def _locate(self, rows: range | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row numbers int64 [n], the part that holds each, and the first row of every part."""
        wanted = torch.as_tensor(rows if isinstance(rows, Tensor) else torch.arange(rows.start, rows.stop))
        sizes = torch.tensor([len(part.token) for part in self.parts])
        starts = sizes.cumsum(0) - sizes
        return wanted, torch.bucketize(wanted, starts, right=True) - 1, starts


class MemoryStore(Store):
    """A store that lives as long as the process. Rows are kept in one tensor a site, allocated once."""

    in_memory = True

    def __init__(self, identity: dict[str, Any], capacity: int) -> None:
        super().__init__(identity)
        self._filled = 0
        sites: dict[str, int] = identity["sites"]
        self._all = Part(
            {site: torch.empty(capacity, width, dtype=self.dtype) for site, width in sites.items()},
            torch.empty(capacity, dtype=torch.int32),
            torch.empty(capacity, dtype=torch.int64),
            torch.empty(capacity, dtype=torch.int32),
        )
        self._end: End | None = None

    def append(self, part: Part, end: End) -> None:
        """See `Store`."""
        stop = self._filled + len(part.token)
        for site, activations in part.activations.items():
            self._all.activations[site][self._filled : stop] = activations
        for name in ("token", "document", "position"):
            getattr(self._all, name)[self._filled : stop] = getattr(part, name)
        self._filled, self._end = stop, end
        held = {site: a[:stop] for site, a in self._all.activations.items()}
        self.parts = [Part(held, self._all.token[:stop], self._all.document[:stop], self._all.position[:stop])]

    def end(self) -> End | None:
        """See `Store`."""
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
        self._ends: list[End] = []
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

    def append(self, part: Part, end: End) -> None:
        """See `Store`."""
        shard = self.folder / "shards" / f"{len(self.parts):06d}"
        with publish_folder(shard) as temporary:
            tensors = {f"activations.{site}": a.contiguous() for site, a in part.activations.items()}
            rest = {name: getattr(part, name).contiguous() for name in ("token", "document", "position")}
            save_tensors(temporary / "rows.safetensors", {**tensors, **rest})
            publish_json(temporary / "end.json", list(end))
        self._open(shard)

    def end(self) -> End | None:
        """See `Store`."""
        return self._ends[-1] if self._ends else None

    def _open(self, shard: Path) -> None:
        with safe_open(shard / "rows.safetensors", framework="pt") as file:
            activations = {site: file.get_tensor(f"activations.{site}") for site in self.identity["sites"]}
            self.parts.append(Part(activations, *(file.get_tensor(name) for name in ("token", "document", "position"))))
        self._ends.append(tuple(read_json(shard / "end.json")))


def to_stored(
    activations: Tensor, dtype: torch.dtype, site: str, name_of: Callable[[int], str] = lambda row: f"row {row}"
) -> Tensor:
    """Activations [n, d] in the buffer's precision; `name_of` names the document of a row where one is refused.

    Raises:
        ActivationError: a value is not finite, or does not fit the precision; names site, document and the way out.
    """
    stored = activations.to(dtype)
    # the sum is finite exactly where every entry is (float32: no overflow below 1e38 / n); one pass, one number
    if not torch.isfinite(stored.float().sum()):
        where = name_of(int((~torch.isfinite(stored)).any(dim=1).nonzero()[0]))
        if not torch.isfinite(activations.float().sum()):
            raise ActivationError(f"site {site}: the model's activations are not finite in {where}")
        largest = activations.abs().max().item()
        raise ActivationError(
            f"site {site}: {largest:.3g} in {where} does not fit {dtype}; choose --store-precision bfloat16"
        )
    return stored


def fill_store(store: Store, harvest: Harvest, *, tokens: int, progress: Callable[[int], None]) -> Store:
    """Harvest until the store serves `tokens` rows or the data ends; `progress` gets the rows added, a call a pass.

    A disk store that holds some already goes on behind its last shard; one that holds more serves its first `tokens`.

    Raises:
        DataError: the data set gave no token to train on.
    """
    store.limit = tokens
    held = store.rows
    progress(held)
    lacking = store.identity["sites"].keys() - {site.name for site in harvest.sites}
    if held < tokens and lacking:
        raise ConfigError(
            f"--store: it holds {held} tokens of more sites ({', '.join(sorted(lacking))}), this run wants {tokens} "
            "and harvests its own alone; expected fewer --tokens or another --store"
        )
    waiting: list[Part] = []
    document, token, skip = end = store.end() or (0, 0, 0)
    for harvested in harvest.batches(Cursor(document, token)) if held < tokens else ():
        rows = harvest.trained_on(harvested.rows)
        taken = slice(skip, skip + tokens - held)
        name_of = partial(harvest.name_of, rows.token[taken], rows.document[taken])
        stored = {name: to_stored(a[taken], store.dtype, name, name_of).cpu() for name, a in rows.activations.items()}
        waiting.append(Part(stored, rows.token[taken], rows.document[taken], rows.position[taken]))
        added = len(waiting[-1].token)
        full = held + added == tokens
        begin = harvested.here if full else harvested.contexts.next
        end = (begin.document, begin.token, skip + added if full else 0)
        held, skip = held + added, 0
        progress(added)
        if full or store.in_memory or sum(len(part.token) for part in waiting) >= SHARD_ROWS:
            store.append(_joined(waiting), end)
            waiting = []
        if full:
            break
    if waiting:
        store.append(_joined(waiting), end)
    if store.rows == 0:
        raise DataError("the data set gave no token to train on")
    return store


def _joined(parts: list[Part]) -> Part:
    activations = {site: torch.cat([part.activations[site] for part in parts]) for site in parts[0].activations}
    return Part(
        activations, *(torch.cat([getattr(part, n) for part in parts]) for n in ("token", "document", "position"))
    )


def stored_precision(folder: Path | None) -> str | None:
    """The precision of the store in `folder`; None where there is none, or none that says so."""
    if folder is None or not (folder / "identity.json").is_file():
        return None
    identity = read_json(folder / "identity.json")
    precision = identity.get("precision") if isinstance(identity, dict) else None
    return precision if precision in PRECISIONS else None


def check_store(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether `folder` is a store of this harvest already, maybe of further sites; False where it is missing or empty.

    Raises:
        ConfigError: it is something else; names the first field that differs.
    """
    if (folder / "identity.json").exists():
        found = read_json(folder / "identity.json")
        for name, value in identity.items():
            other = found.get(name) if isinstance(found, dict) else None
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
