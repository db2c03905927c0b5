"""The tables that show an eval.json: on pages, on model cards and in the terminal, from the same numbers.

for row in beside_controls(numbers):
    print(row[NAME], row["FVU"])
for table in added_tables(numbers):
    print(table.title, table.rows)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sae.evaluation.controls import pca_name
from sae.evaluation.token_classes import PARTITIONS
from sae.evaluation.words import value_at

NAME = "name"
"""Column with the name of the autoencoder or the control."""
COLUMNS = {
    "fvu": "FVU",
    "l0": "L0",
    "dead": "dead",
    "cosine": "cosine",
    "downstream.delta_ce": "delta CE",
    "downstream.kl": "KL",
    "downstream.ce_recovered_zero": "CE recovered (zero)",
    "downstream.ce_recovered_mean": "CE recovered (mean)",
}
"""Key of an autoencoder's or a control's number in eval.json -> its heading."""
MEANING = (
    "Controls are reconstructions without the learnt dictionary, of the same tokens: a number says something about the "
    "latents only as far as it is better than its control's. FVU is the share of the variance that is not explained, "
    "delta CE the nats a token that the model's next-token loss rises by with the reconstruction in place."
)
"""What a reader needs to know to read `beside_controls`."""


def controls_of(numbers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The controls of an eval.json by name, with the numbers that each has; of an older one those of its baselines."""
    if rows := numbers.get("controls"):
        return {row["control"]: row for row in rows}
    baselines: dict[str, Any] = numbers.get("baselines") or {}
    controls: dict[str, dict[str, Any]] = {}
    if "pca_fvu" in baselines:
        k = baselines["pca_components"]
        controls[pca_name(k)] = {"fvu": baselines["pca_fvu"], "l0": k}
    if same := baselines.get("pca_components_for_same_fvu"):
        controls[pca_name(same)] = {"fvu": numbers["fvu"], "l0": same}
    if "mean_fvu" in baselines:
        controls["the training mean"] = {"fvu": baselines["mean_fvu"], "l0": 0}
    return controls


def same_fvu(numbers: Mapping[str, Any]) -> str | None:
    """The name of the control that has the autoencoder's FVU: PCA with as many components as that takes."""
    same = (numbers.get("baselines") or {}).get("pca_components_for_same_fvu")
    return pca_name(same) if same else None


def beside_controls(numbers: Mapping[str, Any], name: str = "this autoencoder") -> list[dict[str, Any]]:
    """The autoencoder's row and those of its controls: `NAME`, and the `COLUMNS` that any of them has; else None."""
    named = {name: numbers, **controls_of(numbers)}
    rows = [{NAME: row, **{key: value_at(dict(of), key) for key in COLUMNS}} for row, of in named.items()]
    known = [key for key in COLUMNS if any(row[key] is not None for row in rows)]
    return [{NAME: row[NAME], **{COLUMNS[key]: row[key] for key in known}} for row in rows]


class AddedTable(NamedTuple):
    """Delta CE by the classes of one partition."""

    partition: str
    title: str
    meaning: str
    rows: list[dict[str, Any]]
    """A class each: its name under `title`, "tokens", "clean CE", "delta CE", and the delta CE of every control."""


def added_tables(numbers: Mapping[str, Any]) -> list[AddedTable]:
    """Delta CE by position and class of an eval.json; empty where it has none."""
    added = numbers.get("added_by_class") or {}
    tables = []
    for name, partition in PARTITIONS.items():
        rows = [
            {
                partition.title: "BOS" if row["class"] == "bos" else row["class"].replace("_", " "),
                "tokens": row["tokens"],
                "clean CE": row["ce_clean"],
                "delta CE": row["delta_ce"],
                **row["controls"],
            }
            for row in added.get(name, ())
        ]
        if rows:
            counted = f" ({added['counted']:,} of them)" if name == "frequency" else ""
            tables.append(AddedTable(name, partition.title, partition.meaning + counted, rows))
    return tables
