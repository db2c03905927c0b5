"""Stores on the disk or in object storage; `DiskStore`.

    store = DiskStore("s3://bucket/store")
    store.read(range(2048), ["resid_post.9"]).activations["resid_post.9"]     # [2048, d]

A store is a folder, or a URL: `identity.json` (what was harvested, from which data, with which settings), and the
shards of one or several workers (see `sae.harvest.shards`), each published whole with the place in the data where the
next one begins. Rows are numbered by worker, then by shard. Shards are only ever added, so the number of shards of each
worker (`view`) names the same rows for good: a run records it, and resumes on them although the store has grown.
"""

from __future__ import annotations

import contextlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base.files import CorruptError, remove_leftovers
from sae.base.objects import REMEDY, LocalObjects, Objects
from sae.base.storage import open_objects
from sae.config import ConfigError
from sae.data.cache import cache_dir
from sae.data.packing import Cursor
from sae.harvest.identity import check_identity
from sae.harvest.legacy import legacy_shards
from sae.harvest.precision import STORED
from sae.harvest.rows import Rows
from sae.harvest.shards import (
    FOLDER,
    FORMAT,
    IDENTITY,
    Manifest,
    OpenShard,
    ShardEntry,
    Worker,
    read_manifest,
    read_sealed,
    seal_of,
    sealed,
    write_manifest,
    write_shard,
)
from sae.harvest.store_memory import Store

OPEN_SHARDS = 64  # shards mapped into memory at once
VERIFIED_AT_ONCE = 4 << 30
"""Bytes up to which a local store is compared with its hashes when it is opened; of a larger one each shard is when it
is first read."""
FETCHERS = 4  # shards that are fetched or verified at once
LEAST_RUN = 32  # rows in a row, on average, from which on they are copied run by run


class DiskStore(Store):
    """A store in a folder or under a URL, read through memory maps.

    Args:
        place: the folder, or a URL such as s3://bucket/store.
        identity: what is wanted of the store (see `sae.harvest.identity`); written where there is no store yet. None
            takes what is there.
        worker: serve and extend the shards of this worker alone; by default all are served, and a store of one worker
            is extended.
        view: worker -> number of its shards, as `view` gave it: serve these alone.
        verify: compare a small local store with its hashes at once; else each shard is when it is first read.

    Raises:
        ConfigError: there is a harvest of something else; names the first field that differs. Or there is no store.
        CorruptError: a shard is missing or damaged; names the file.
        StorageError: the object storage cannot be reached.
    """

    in_memory = False

    def __init__(
        self,
        place: str | Path,
        identity: dict[str, Any] | None = None,
        *,
        worker: Worker | None = None,
        view: Mapping[str, int] | None = None,
        verify: bool = True,
    ) -> None:
        self.place = place
        self.objects: Objects = open_objects(place, cache=cache_dir() / "shards")
        recorded = read_store(place, identity or {}, self.objects)
        if recorded is None:
            if identity is None:
                raise ConfigError(f"--store {place}: no store of activations there")
            count = {} if worker is None or worker.count == 1 else {"workers": worker.count}
            plain = json.loads(json.dumps({**identity, **count, "format": FORMAT}))
            if not self.objects.create(IDENTITY, sealed(plain)):  # another worker was faster
                plain = read_store(place, identity, self.objects) or plain
            recorded = plain
        if not isinstance(recorded.get("sites"), dict):
            raise CorruptError(f"{self.objects.where(IDENTITY)}: sites are missing{REMEDY}")
        super().__init__(recorded)
        count = recorded.get("workers", 1)
        if worker is not None and worker.count != count:
            raise ConfigError(
                f"--worker {worker.number}/{worker.count}: {place} is harvested by {count}; expected i/{count}, or "
                "another --store"
            )
        self._workers = [Worker(i, count) for i in range(count)] if worker is None else [worker]
        self._legacy = legacy_shards(self.objects.folder) if isinstance(self.objects, LocalObjects) else []
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._paths: dict[int, Future[Path]] = {}
        self._finite: set[tuple[int, str]] = set()
        self._fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="sae-shards")
        self._manifests: list[Manifest] = []
        self._check_writing: Callable[[], None] | None = None
        self._list(view)
        if verify and not self.objects.remote and sum(shard.bytes for shard in self.shards) <= VERIFIED_AT_ONCE:
            for shard in self.shards:
                self.objects.local(shard.name, shard.bytes, shard.sha256)

    def _list(self, view: Mapping[str, int] | None = None) -> None:
        """Read the workers' manifests."""
        self._manifests = []
        for worker in self._workers:
            manifest = read_manifest(self.objects, worker)
            if manifest.identity not in (None, seal_of(self.identity)):
                raise CorruptError(f"{self.objects.where(IDENTITY)}: is not that of the shards beside it{REMEDY}")
            if worker.number == 0:
                manifest = manifest._replace(shards=[*self._legacy, *manifest.shards])
            if view is not None:
                wanted = view.get(worker.folder, 0)
                if len(manifest.shards) < wanted:
                    raise CorruptError(
                        f"{self.objects.where(worker.folder)}: {len(manifest.shards)} shards are there, {wanted} were "
                        f"when the run began{REMEDY}"
                    )
                manifest = manifest._replace(shards=manifest.shards[:wanted])
            self._manifests.append(manifest)

    @property
    def shards(self) -> list[ShardEntry]:
        """All shards that are served, in the order of their rows."""
        return [shard for manifest in self._manifests for shard in manifest.shards]

    @property
    def view(self) -> dict[str, int]:
        """Worker -> number of its shards."""
        return {w.folder: len(m.shards) for w, m in zip(self._workers, self._manifests, strict=True)}

    @property
    def part_rows(self) -> list[int]:
        return [shard.rows for shard in self.shards]

    @property
    def parts(self) -> list[Rows]:
        """Every shard's rows."""
        return [self._opened(index).whole() for index in range(len(self.shards))]

    def places(self) -> Rows:
        """The columns of all rows, up to `limit`, without activations."""
        columns = [self._opened(index).places.at(()) for index in range(len(self.shards))]
        return Rows.join(columns).between(0, self.rows)

    @property
    def ended(self) -> bool:
        return all(manifest.ended for manifest in self._manifests)

    @property
    def _writer(self) -> Worker:
        if len(self._workers) > 1:
            raise ConfigError(
                f"--store {self.place}: {len(self._workers)} workers harvest it; extend it with sae harvest "
                "--worker i/n"
            )
        return self._workers[0]

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the one process that writes this worker's shards; what another has added meanwhile is seen.

        Raises:
            ConfigError: another process writes them; names it.
        """
        worker = self._writer
        name = "run" if worker.count == 1 else f"run-{worker.number}-of-{worker.count}"
        what = f"harvesting into {self.place} as worker {worker.number} of {worker.count}"
        with self.objects.writing(name, what) as check:
            if isinstance(self.objects, LocalObjects):
                remove_leftovers(self.objects.folder / worker.folder)
                remove_leftovers(self.objects.folder / FOLDER)
            self._check_writing = check
            self._list()
            try:
                yield
            finally:
                self._check_writing = None

    def append(self, part: Rows, end: Cursor) -> None:
        worker, (manifest,) = self._writer, self._manifests
        number = len(manifest.shards) - (len(self._legacy) if worker.number == 0 else 0)
        if self._check_writing is not None:
            self._check_writing()
        name = f"{worker.folder}/{number:06d}.safetensors"
        shard = write_shard(self.objects, name, part, self.identity["precision"], end)
        self._publish(manifest._replace(shards=[*manifest.shards, shard]))

    def finish(self) -> None:
        (manifest,) = self._manifests
        if not manifest.ended:
            self._publish(manifest._replace(ended=True))

    def _publish(self, manifest: Manifest) -> None:
        own = manifest.shards[len(self._legacy) if self._writer.number == 0 else 0 :]
        manifest = manifest._replace(identity=seal_of(self.identity))
        write_manifest(self.objects, self._writer, manifest._replace(shards=own))
        self._manifests = [manifest]

    def end(self) -> Cursor | None:
        shards = self._manifests[0].shards
        return shards[-1].end if self._writer is not None and shards else None

    def read(self, rows: range | Tensor, sites: Sequence[str], into: Rows | None = None) -> Rows:
        """Rows by number, as in `Store`.

        Args:
            into: rows of an earlier read that are no longer needed: their memory is used again if it suffices, which
                saves touching it anew.

        Raises:
            CorruptError: a shard was changed since it was written, or an activation is not finite; names the file, and
                the row in it.
        """
        sizes = torch.tensor(self.part_rows)
        starts = sizes.cumsum(0) - sizes
        if isinstance(rows, range) and len(rows):
            first = int(torch.searchsorted(starts, rows.start, right=True)) - 1
            if rows.stop <= starts[first] + sizes[first]:
                begin = rows.start - int(starts[first])
                return self._opened(first, sites).take(slice(begin, begin + len(rows)), sites)
        numbers = rows if isinstance(rows, Tensor) else torch.arange(rows.start, rows.stop)
        fits = into is not None and into.size >= len(numbers) and into.activations.keys() == set(sites)
        gathered = into.between(0, len(numbers)) if fits and into is not None else self._empty(len(numbers), sites)
        shard = torch.bucketize(numbers, starts, right=True) - 1
        new = torch.ones(len(numbers), dtype=torch.bool)
        new[1:] = (numbers[1:] != numbers[:-1] + 1) | (shard[1:] != shard[:-1])
        begins = new.nonzero().squeeze(1)
        if len(begins) * LEAST_RUN <= len(numbers):
            lengths = torch.diff(begins, append=torch.tensor([len(numbers)]))
            order = shard[begins].argsort(stable=True)
            runs = torch.stack([begins, lengths, shard[begins], numbers[begins] - starts[shard[begins]]], 1)[order]
            for at, length, index, of in runs.tolist():
                gathered.write(slice(at, at + length), self._opened(index, sites).take(slice(of, of + length), sites))
        else:
            for index in shard.unique().tolist():
                here = (shard == index).nonzero().squeeze(1)
                gathered.write(here, self._opened(index, sites).take(numbers[here] - starts[index], sites))
        return gathered

    def _empty(self, size: int, sites: Sequence[str]) -> Rows:
        """Uninitialised rows."""
        activations = {site: torch.empty(size, self.identity["sites"][site], dtype=self.dtype) for site in sites}
        types = {"token": torch.int32, "document": torch.int64, "position": torch.int32, "start": torch.int32}
        columns = [torch.empty(size, dtype=types.get(name, torch.int8)) for name in Rows._fields[1:]]
        return Rows(activations, *columns)

    def ahead(self, rows: range | Tensor) -> None:
        """Fetch and verify the shards of these rows in the background; the `read` that needs them raises errors."""
        numbers = rows if isinstance(rows, Tensor) else torch.tensor([rows.start, *rows[:: min(self.part_rows)]])
        ends = torch.tensor(self.part_rows).cumsum(0)
        for index in torch.bincount(torch.bucketize(numbers, ends, right=True)).nonzero().flatten().tolist():
            self._path(index)

    def _path(self, index: int) -> Future[Path]:
        """A shard's file on this machine, its content compared with its hash once."""
        if index not in self._paths:
            entry = self.shards[index]
            self._paths[index] = self._fetchers.submit(self.objects.local, entry.name, entry.bytes, entry.sha256)
        return self._paths[index]

    def _opened(self, index: int, sites: Sequence[str] = ()) -> OpenShard:
        """A shard, its content compared with its hash, and activations at these sites known to be finite."""
        if index in self._open:
            self._open.move_to_end(index)
        else:
            path = self._path(index).result()
            if not path.exists():  # given up to make room in the cache before it was mapped
                del self._paths[index]
                path = self._path(index).result()
            where, precision = self.objects.where(self.shards[index].name), self.identity["precision"]
            self._open[index] = OpenShard(path, where, precision, list(self.identity["sites"]))
            if len(self._open) > OPEN_SHARDS:
                closed, _ = self._open.popitem(last=False)
                del self._paths[closed]  # a remote shard may leave the cache
        shard = self._open[index]
        for site in sites:
            if (index, site) not in self._finite:
                shard.check_finite(site)
                self._finite.add((index, site))
        return shard


def stored_precision(place: str | Path | None) -> str | None:
    """The precision of the store at a place; None where there is no store, or it does not record one."""
    precision = None if place is None else _recorded(place).get("precision")
    return precision if precision in STORED else None


def stored_contexts(place: str | Path) -> int | None:
    """Contexts of the forward passes that filled the store at a place; None where there is no store."""
    contexts = _recorded(place).get("contexts")
    return contexts if isinstance(contexts, int) else None


def _recorded(place: str | Path) -> dict[str, Any]:
    """What the store at a place records; nothing where there is none."""
    return read_sealed(open_objects(place, cache=cache_dir() / "shards"), IDENTITY) or {}


def check_store(place: str | Path, identity: dict[str, Any]) -> bool:
    """Whether there is already a store of this harvest (perhaps of more sites); False if the place is empty.

    Raises:
        ConfigError: it is something else; names the first field that differs.
    """
    return read_store(place, identity) is not None


def read_store(place: str | Path, identity: Mapping[str, Any], objects: Objects | None = None) -> dict[str, Any] | None:
    """What the store at a place records of its harvest; None where there is nothing.

    Raises:
        ConfigError: it is another harvest than `identity` wants, of a later format, or no store.
        CorruptError: its record was changed.
    """
    objects = objects or open_objects(place, cache=cache_dir() / "shards")
    if isinstance(objects, LocalObjects) and objects.folder.exists() and not objects.folder.is_dir():
        raise ConfigError(f"--store {place}: a file; expected a folder")
    recorded = read_sealed(objects, IDENTITY)
    if recorded is not None:
        if recorded.get("format", 1) > FORMAT:
            raise ConfigError(
                f"--store {place}: format {recorded['format']}, this version reads up to {FORMAT}; update sparsight"
            )
        check_identity(place, recorded, json.loads(json.dumps(dict(identity))))
        return recorded
    others = [name for name in objects.names("") if not name.startswith(("run", "create", ".partial-"))]
    if IDENTITY in others:  # another worker has just written it
        return read_store(place, identity, objects)
    if others:
        raise ConfigError(
            f"--store {place}: the folder is not empty and is no activation store (it holds {', '.join(others[:3])})"
        )
    return None
