"""`sae sweep`: many autoencoders from one harvest, trained, evaluated on the same tokens, compared in one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae.base.files import publish_file, publish_json, remove_leftovers
from sae.base.tables import number
from sae.config import EvalConfig, TrainConfig
from sae.evaluation.run import evaluate_all
from sae.models.saved import CONFIG, WEIGHTS, read_config
from sae.training.sweep import sweep

TABLE, RECORD = "comparison.md", "comparison.json"
COLUMNS = {
    "run": "run",
    "site": "site",
    "fvu": "FVU",
    "l0": "L0",
    "l0_in_training": "L0, training form",
    "delta_ce": "delta CE",
    "dead": "dead",
    "tokens_a_second": "tokens/s",
}
"""Column of the table -> its heading."""


def run_sweep(out: Path, members: Sequence[TrainConfig], evaluation: EvalConfig) -> dict[str, Any]:
    """Train the members that are not finished, evaluate all of them together, write the comparison into `out`.

    Args:
        out: folder of the members, of the shared store unless they name another, and of the comparison.
        members: each with its own folder inside `out`.
    """
    remove_leftovers(out, "comparison")
    shared = [dataclasses.replace(member, store=member.store or out / "store") for member in members]
    unfinished = [config for config in shared if not is_finished(config.out)]
    if unfinished:
        sweep([dataclasses.replace(config, resume=(config.out / CONFIG).is_file()) for config in unfinished])
    reports = evaluate_all([config.out for config in shared], evaluation)
    rows = [_row(config, report) for config, report in zip(shared, reports, strict=True)]
    pca = {r["site"]: r["baselines"] for r in reports if r["baselines"] and "target_site" not in r}
    record = {"rows": rows, "baselines": pca, "tokens": reports[0]["tokens"]}
    publish_json(out / RECORD, record)
    publish_file(out / TABLE, markdown(rows).encode())
    return {
        "table": [{heading: _shown(row[name]) for name, heading in COLUMNS.items()} for row in rows],
        "out": str(out),
    }


def is_finished(folder: Path) -> bool:
    """Whether a run's autoencoder is saved there."""
    return (folder / WEIGHTS).is_file() and bool(read_config(folder).get("autoencoder"))


def _row(config: TrainConfig, report: dict[str, Any]) -> dict[str, Any]:
    training = read_config(config.out)["training"]
    form, losses = report["training_form"], report["downstream"]
    target = f" -> {report['target_site']}" if "target_site" in report else ""
    return {
        "run": config.out.name,
        "site": report["site"] + target,
        "fvu": report["fvu"],
        "l0": report["l0"],
        "l0_in_training": report["l0"] if form is None else form["l0"],
        "delta_ce": losses["delta_ce"] if losses else None,
        "dead": report["dead"],
        "tokens_a_second": round(training["steps"] * training["batch"] / training["seconds"]),
        "route": training["route"],
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown, an interval as `value [low, high]`."""
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS)]
    lines += [[_shown(row[name]) for name in COLUMNS] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{number(value['value'])} [{number(value['low'])}, {number(value['high'])}]"
    return number(value)
