"""All latents as one Parquet table, for pandas, polars or DuckDB."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sae.base.files import publish_file
from sae.features.store.records import examples
from sae.features.store.statistics import edges

if TYPE_CHECKING:
    from sae.features.store.store import FeatureStore

ROWS = 1024  # latents in one row group


def write_parquet(store: FeatureStore, path: Path) -> None:
    """Write a row a latent: the scalars, name, label, note, bookmark, histogram, and the 32 strongest examples.

    An example is {"text", "peak" (text of the peak token), "value", "document", "position"}. The histogram's lower
    edges are in the file's metadata under `histogram_edges`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names, said = store.annotations.names(), store.annotations.all()
    schema: pa.Schema | None = None
    scalars: Any = store.scalars

    def write(stream: Any) -> None:
        nonlocal schema
        writer: pq.ParquetWriter | None = None
        for begin in range(0, store.width, ROWS):
            latents = range(begin, min(begin + ROWS, store.width))
            part = scalars[begin : latents.stop]
            columns: dict[str, Any] = {"latent": pa.array(latents, pa.int32())}
            columns |= {name: pa.array(np.ascontiguousarray(part[name])) for name in part.dtype.names or ()}
            columns["name"] = pa.array([names.get(i, {}).get("name") for i in latents], pa.string())
            columns["label"] = pa.array([said.get(i, {}).get("label") for i in latents], pa.string())
            columns["note"] = pa.array([said.get(i, {}).get("note") for i in latents], pa.string())
            columns["bookmark"] = pa.array([bool(said.get(i, {}).get("bookmark")) for i in latents])
            columns["histogram"] = pa.array([store.raw(i).histogram.tolist() for i in latents], pa.list_(pa.int64()))
            columns["top"] = pa.array([_strongest(store, i) for i in latents], pa.list_(_EXAMPLE()))
            table = pa.table(columns)
            if writer is None:
                metadata = {"histogram_edges": ",".join(f"{e:g}" for e in edges()), "site": store.info["site"]}
                writer = pq.ParquetWriter(stream, table.schema.with_metadata(metadata), compression="zstd")
            writer.write_table(table.replace_schema_metadata(writer.schema.metadata))
        if writer is not None:
            writer.close()

    publish_file(path, write)


def _EXAMPLE() -> Any:  # noqa: N802 - a type, made when pyarrow is there
    import pyarrow as pa

    fields = {"text": pa.string(), "peak": pa.string(), "value": pa.float32()}
    return pa.struct({**fields, "document": pa.int64(), "position": pa.int32()})


def _strongest(store: FeatureStore, latent: int) -> list[dict[str, Any]]:
    found = []
    for example in examples(store.raw(latent), store.info["seed"]):
        if example.band != "top":
            break
        shown = store.example(example)
        row = {"text": "".join(shown["tokens"]), "peak": shown["tokens"][shown["peak"]]}
        found.append({**row, "value": example.value, "document": example.document, "position": example.position})
    return found
