"""Shards of a store: immutable files of rows, and the manifest in which each writer lists its own.

    entry = ShardEntry(...)                                     # what a manifest says of a shard
    manifest = read_manifest(objects, worker)                   # the shards of one worker, sealed by a hash
    rows = OpenShard(path, precision, sites)                    # mapped into memory

Layout: `identity.json` says what was harvested; `shards/I-of-N/000000.safetensors` are the shards of worker I of N, and
`shards/I-of-N/manifest.json`, replaced after each shard, names them with their SHA-256. A shard that no manifest names
was being written when its writer was killed, and is written again.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sae.base.files import CorruptError, parse_json
from sae.base.finite import all_finite, first_not_finite
from sae.base.objects import REMEDY, Objects, missing
from sae.data.packing import Cursor
from sae.harvest.int8 import Quantised, dequantise, quantise
from sae.harvest.rows import Rows

FORMAT = 2
IDENTITY, MANIFEST, FOLDER = "identity.json", "manifest.json", "shards"
LATER = {"start": torch.int32, "kind": torch.int8}
"""Columns that stores of earlier versions lack."""
COLUMNS = Rows._fields[1:]
QUANTISED = Quantised._fields


class Worker(NamedTuple):
    """One of several processes that harvest disjoint documents into one store."""

    number: int = 0
    """From 0."""
    count: int = 1

    @property
    def folder(self) -> str:
        """Where its shards are in a store."""
        return f"{FOLDER}/{self.number}-of-{self.count}"

    def share(self, tokens: int) -> int:
        """Its part of `tokens`."""
        return tokens // self.count + (self.number < tokens % self.count)


class ShardEntry(NamedTuple):
    """What a manifest says of a shard."""

    name: str
    """Of the object in the store."""
    rows: int
    bytes: int
    sha256: str
    end: Cursor
    """Where the next shard of the same worker begins in the data."""


class Manifest(NamedTuple):
    """The shards of one worker, in the order of its documents."""

    shards: list[ShardEntry]
    ended: bool = False
    """Whether the worker's documents are used up."""
    identity: str | None = None
    """Hash of the identity of the store; None in stores of earlier versions."""


def sealed(value: Mapping[str, Any]) -> bytes:
    """JSON with a hash of its own, so that a changed byte is noticed."""
    plain = {name: part for name, part in value.items() if name != "seal"}
    return (json.dumps({**plain, "seal": seal_of(plain)}, indent=1, allow_nan=False) + "\n").encode()


def read_sealed(objects: Objects, name: str) -> dict[str, Any] | None:
    """What `sealed` wrote; None where there is no such object. JSON of earlier versions has no seal.

    Raises:
        CorruptError: it is not JSON, or was changed; names it.
    """
    content = objects.read(name)
    if content is None:
        return None
    try:
        value = parse_json(content)
    except ValueError as error:
        raise CorruptError(f"{objects.where(name)}: cannot be read as JSON ({error}){REMEDY}") from error
    if not isinstance(value, dict):
        raise CorruptError(f"{objects.where(name)}: not an object of JSON{REMEDY}")
    if type(value.get("format", 1)) is not int:
        raise CorruptError(f"{objects.where(name)}: format {str(value['format'])[:40]}, expected a number{REMEDY}")
    seal = value.pop("seal", None)
    if seal != seal_of(value) and (seal is not None or value.get("format", 1) != 1):
        raise CorruptError(f"{objects.where(name)}: its content is not the one that was written{REMEDY}")
    return value


def seal_of(value: Mapping[str, Any]) -> str:
    """Hash of JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_manifest(objects: Objects, worker: Worker) -> Manifest:
    """A worker's shards, each of them there and of the size that was written; empty where it has written none.

    Raises:
        CorruptError: the manifest was changed, or a shard is missing or cut short; names it.
    """
    name = f"{worker.folder}/{MANIFEST}"
    record = read_sealed(objects, name)
    if record is None:
        return Manifest([])
    try:
        shards = [
            ShardEntry(
                f"{worker.folder}/{s['name']}",
                operator.index(s["rows"]),
                operator.index(s["bytes"]),
                s["sha256"],
                Cursor(*map(operator.index, s["end"])),
            )
            for s in record["shards"]
        ]
        manifest = Manifest(shards, record["ended"], record.get("identity"))
        if not all(0 < shard.rows <= shard.bytes for shard in shards):
            raise ValueError("more rows than bytes")
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{objects.where(name)}: not a manifest of shards{REMEDY}") from error
    sizes = objects.names(worker.folder)
    for shard in shards:
        size = sizes.get(shard.name.rpartition("/")[2])
        if size is None:
            raise missing(objects.where(shard.name))
        if size != shard.bytes:
            raise CorruptError(f"{objects.where(shard.name)}: {size} bytes, {shard.bytes} were written{REMEDY}")
    return manifest


def write_manifest(objects: Objects, worker: Worker, manifest: Manifest) -> None:
    """Publish a worker's list of shards."""
    shards = [
        {**shard._asdict(), "name": shard.name.rpartition("/")[2], "end": list(shard.end)} for shard in manifest.shards
    ]
    worker_of = {"worker": worker.number, "workers": worker.count}
    record = {"format": FORMAT, **worker_of, "ended": manifest.ended, "identity": manifest.identity, "shards": shards}
    objects.write(f"{worker.folder}/{MANIFEST}", sealed(record))


def write_shard(objects: Objects, name: str, rows: Rows, precision: str, end: Cursor) -> ShardEntry:
    """Store rows under `name`; their activations are in `read_dtype(precision)`."""
    tensors: dict[str, Tensor] = {column: getattr(rows, column).contiguous() for column in COLUMNS}
    for site, activations in rows.activations.items():
        if precision == "int8":
            quantised = quantise(activations)
            tensors |= {f"{part}.{site}": getattr(quantised, part).contiguous() for part in QUANTISED}
        else:
            tensors[f"activations.{site}"] = activations.contiguous()
    content = save(tensors)
    objects.write(name, content)
    return ShardEntry(name, rows.size, len(content), hashlib.sha256(content).hexdigest(), end)


class OpenShard:
    """A shard's rows, mapped into memory: a read copies what it reads, and no more."""

    def __init__(self, path: Path, where: str, precision: str, sites: Sequence[str]) -> None:
        self.precision, self._where = precision, where
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                size = len(file.get_tensor("token"))
                columns = [
                    file.get_tensor(name) if name in names else torch.full((size,), -1, dtype=LATER[name])
                    for name in COLUMNS
                ]
                if precision == "int8":
                    self._quantised = {
                        site: Quantised(*(file.get_tensor(f"{part}.{site}") for part in QUANTISED)) for site in sites
                    }
                    activations: dict[str, Tensor] = {}
                else:
                    activations = {site: file.get_tensor(f"activations.{site}") for site in sites}
        except (SafetensorError, KeyError) as error:
            raise CorruptError(f"{where}: not a shard of these sites ({error}){REMEDY}") from error
        self.places = Rows(activations, *columns)
        """The columns, and activations unless they are quantised."""

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.places.size

    def whole(self) -> Rows:
        """All rows; without a copy unless they are quantised."""
        if self.precision != "int8":
            return self.places
        return self.places._replace(activations={site: dequantise(q) for site, q in self._quantised.items()})

    def check_finite(self, site: str) -> None:
        """Refuse activations at a site that are not finite.

        Raises:
            CorruptError: names the file and the row.
        """
        if self.precision == "int8":
            quantised = self._quantised[site]
            values = torch.cat([quantised.outlier, quantised.scale.unsqueeze(1)], 1)
        else:
            values = self.places.activations[site]
        if not all_finite(values):
            raise CorruptError(
                f"{self._where}: row {first_not_finite(values)} of site {site} is not finite (NaN or infinite), which "
                "no harvest stores; delete the store and harvest again"
            )

    def take(self, rows: slice | Tensor, sites: Sequence[str]) -> Rows:
        """Some rows (a slice, or indices int64 [n]) at some sites."""

        def of(values: Tensor) -> Tensor:
            return values[rows] if isinstance(rows, slice) else values.index_select(0, rows)

        columns = [of(column) for column in self.places[1:]]
        if self.precision == "int8":
            parts = {site: Quantised(*map(of, self._quantised[site])) for site in sites}
            return Rows({site: dequantise(part) for site, part in parts.items()}, *columns)
        return Rows({site: of(self.places.activations[site]) for site in sites}, *columns)
