"""The race's table, its JSON and its figure."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import torch

from sae.base.tables import number
from sae.evaluation.bootstrap import ratio
from sae_kernels.bench.timing import machine
from scripts.race.data import DATA
from scripts.race.evaluate import Parts, baseline, difference_over_seeds, fvu_over_seeds, load_sums, over_seeds, splice
from scripts.race.settings import ENTRIES, Race

mpl.use("svg")
import matplotlib.pyplot as plt

BLUE, GREY, INK = "#0072B2", "#9ca3af", "#111827"
COLUMNS = {
    "entry": "tool, variant",
    "lr": "rate",
    "fvu": "FVU",
    "over_ours": "FVU over ours of its kind, %",
    "delta_ce": "delta CE (seed 0)",
    "l0": "L0",
    "dead": "dead",
    "step_ms": "step, ms",
    "step_processor_ms": "processor, ms",
    "peak_mib": "memory, MiB",
}


class Lane(NamedTuple):
    """What an entry came to."""

    entry: str
    grid: dict[float, float]
    """Multiple -> FVU on the validation rows, the best first."""
    seeds: list[dict[str, Any]]
    """What was measured of every seed at the best rate."""
    folders: list[Path]


def report(race: Race, folder: Path, lanes: list[Lane]) -> tuple[str, dict[str, Any]]:
    """The table in Markdown, and everything as JSON values."""
    rows = Parts.read(folder)
    # of the first seed alone: every forward pass of the language model costs as much as training on its tokens
    losses = splice(folder, [lane.folders[0] for lane in lanes], race, rows) if race.downstream else {}
    ours = {ENTRIES[lane.entry].variant: lane for lane in lanes if _is_ours(lane)}
    values = [_values(lane, losses, ours.get(ENTRIES[lane.entry].kind)) for lane in lanes]
    pca = baseline(folder, race, rows).to_json()
    shown = [[_shown(column, row[column]) for column in COLUMNS] for row in values]
    shown.append([f"PCA, {race.k} components", "-", _shown("fvu", pca), "-", "-", number(race.k), *["-"] * 4])
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS), *shown]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if (best := _best(lanes)) is not None:
        over = _shown("over_ours", best["fvu_over"])
        text += f"\nFVU of {best['ours']} over that of {best['other']}, %: {over}\n"
    everything = {
        "bench": "race",
        "race": race.to_json(),
        "data": json.loads((folder / DATA).read_text()),
        "rows": values,
        "best": best,
        "pca_fvu": pca,
        "machine": machine("cpu"),
    }
    return text, everything


def _is_ours(lane: Lane) -> bool:
    return ENTRIES[lane.entry].tool == "Sparsight"


def _best(lanes: list[Lane]) -> dict[str, Any] | None:
    """Our best entry against the best of the others, both by their validation rows."""
    parts = [[lane for lane in lanes if _is_ours(lane) == ours] for ours in (True, False)]
    if not all(parts):
        return None
    ours, other = (min(part, key=lambda lane: min(lane.grid.values())) for part in parts)
    return {
        "ours": ours.entry,
        "other": other.entry,
        "fvu_over": difference_over_seeds(ours.folders, other.folders).to_json(),
    }


def _values(lane: Lane, losses: dict[str, dict[str, torch.Tensor]], reference: Lane | None) -> dict[str, Any]:
    sums = [load_sums(out).sums for out in lane.folders]

    def middle(name: str) -> float:
        return statistics.median(seed[name] for seed in lane.seeds)

    spliced = losses.get(lane.folders[0].name)
    delta = over_seeds([spliced], lambda s: (s["spliced"] - s["clean"]) / s["count"]) if spliced else None
    compared = reference is not None and not _is_ours(lane)
    return {
        "entry": lane.entry,
        "version": lane.seeds[0]["version"],
        "lr": lane.seeds[0]["lr"],
        "validation_fvu_by_rate": {
            f"{ENTRIES[lane.entry].rate(_width(lane), multiple):.3g}": fvu for multiple, fvu in lane.grid.items()
        },
        "fvu": fvu_over_seeds(lane.folders).to_json(),
        "fvu_of_seeds": [seed["fvu"]["value"] for seed in lane.seeds],
        "over_ours": difference_over_seeds(lane.folders, reference.folders).to_json() if compared else None,
        "delta_ce": None if delta is None else delta.to_json(),
        "l0": over_seeds(sums, ratio("l0", "count")).to_json(),
        "dead": statistics.mean(seed["dead"]["value"] for seed in lane.seeds),
        "step_ms": middle("step_ms"),
        "step_processor_ms": middle("step_processor_ms"),
        "peak_mib": round(middle("peak_mib")),
        "difference": max(seed["difference"] for seed in lane.seeds),
        "settings": lane.seeds[0]["settings"],
    }


def _width(lane: Lane) -> int:
    return Race.read(lane.folders[0].parent).width


DIGITS = {"fvu": ".4f", "l0": ".2f", "delta_ce": ".3f", "over_ours": "+.1f"}


def _shown(column: str, value: Any) -> str:
    if isinstance(value, dict):
        numbers = (format(value[name] * (100 if column == "over_ours" else 1), DIGITS[column]) for name in value)
        return "{} [{}, {}]".format(*numbers)
    return f"{value:.1%}" if column == "dead" else number(value)


def draw(values: dict[str, Any], target: Path) -> None:
    """FVU with its intervals, and beside it processor time a step."""
    rows = values["rows"][::-1]
    names = [row["entry"] for row in rows]
    colours = [BLUE if name.startswith("Sparsight") else GREY for name in names]
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "0"})
    figure, (quality, speed) = plt.subplots(
        1, 2, figsize=(11, 0.45 * len(rows) + 1.4), layout="constrained", sharey=True
    )
    for place, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        fvu = row["fvu"]
        spread = [[fvu["value"] - fvu["low"]], [fvu["high"] - fvu["value"]]]
        quality.errorbar(fvu["value"], place, xerr=spread, fmt="o", color=colour, ecolor=INK, capsize=3)
        quality.annotate(
            f"{fvu['value']:.4f}  (L0 {row['l0']['value']:.1f})", (fvu["high"], place), xytext=(8, 0),
            textcoords="offset points", va="center",
        )  # fmt: skip
    quality.set(xlabel="FVU on held-out documents, 95% over documents and seeds", yticks=range(len(rows)))
    quality.set_yticklabels(names)
    quality.margins(x=0.35)
    drawn = speed.barh(range(len(rows)), [row["step_processor_ms"] for row in rows], color=colours)
    speed.bar_label(drawn, [f" {row['step_processor_ms']:,.0f}" for row in rows])
    speed.set(xlabel="processor time a step, ms")
    speed.margins(x=0.15)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
