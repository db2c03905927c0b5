"""`sae compare`: variants with several seeds in one table, beside their controls, with a figure and a page.

compare(["runs/sweep"])["table"]           # and variants.md, .json, .html, .svg, .png in the folder
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae.base import tables
from sae.base.files import publish_file, publish_json, read_json
from sae.base.tables import number
from sae.config import CompareConfig, ConfigError
from sae.evaluation.comparison import RANKED, compare_runs
from sae.evaluation.paired import LEVEL, POWER
from sae.models.saved import CONFIG
from sae.pictures.page import Page
from sae.pictures.variants import draw_differences
from sae.reporting.figures import write_figure
from sae.runs.sweeps import sweep_of
from sae.training.run_folder import is_finished

NAME = "variants"
HEADS = {"fvu": "FVU", "delta_ce": "delta CE", "l0": "L0", "dead": "dead", "mcc": "MCC"}
"""Number -> its head in tables."""
DIFFERENCES = ("fvu", "delta_ce", "l0", "mcc")
"""Numbers whose differences are shown."""
EXPLAINED = (
    "A number is the mean over seeds on documents held out of training, in the saved form; its 95% interval holds what "
    "other seeds and other documents would change. Ranks are given as far as paired tests of every two variants tell "
    f"them (Holm, {LEVEL:.0%} for all ranks of a column together): 1-2 may be either. Dead latents fired on none of "
    "these tokens. MCC: how alike the atoms of two seeds are. PCA needs so many components for the same FVU."
)
EXPLAINED_DIFFERENCES = (
    "Each variant less the reference, on the same documents and seed by seed. An asterisk: told apart at "
    f"{LEVEL:.0%}, after Holm's correction over the column. Detectable: the least true difference that this comparison "
    f"finds with {POWER:.0%} probability; what is smaller needs more seeds or more documents, as the share of the "
    "variance from seeds says."
)
EXPLAINED_CONTROLS = (
    "Reconstructions without what was learnt, on the same tokens, and the reference's differences from them; shuffled "
    "atoms and the random dictionary (frozen random atoms, a trained encoder) for each seed."
)


def compare(runs: Sequence[str | Path], config: CompareConfig | None = None) -> dict[str, Any]:
    """Compare evaluated runs, variant by variant over their seeds, and write the tables, the figure and the page.

    Args:
        runs: run folders, or folders of sweeps for all their finished members; each was evaluated on the same tokens.
        config: the reference, and where the files go.

    Returns:
        "table", "differences" and "controls" as text by heading, the whole "record", and the "files" written.

    Raises:
        ConfigError: fewer than two variants, or a run that has no evaluation on these tokens.
        CorruptError: a file is damaged.

    Example:
        >>> import sae
        >>> settings = sae.EvalConfig(tokens=1_024, downstream_tokens=512, pca_tokens=1_024, resamples=10)
        >>> reports = [sae.evaluate(run, settings) for run in ("runs/demo", "runs/k16")]
        >>> result = sae.compare(["runs/demo", "runs/k16"], sae.CompareConfig(reference="topk k=16"))
        >>> [row["variant"] for row in result["table"]]
        ['topk k=8', 'topk k=16']
    """
    config = config or CompareConfig()
    out = config.out.expanduser() if config.out is not None else _folder_of(runs)
    record = compare_runs(_members(runs), config, _known_pairs(out))
    files = [] if out is None else write(out, record)
    shown = {"table": table(record), "differences": differences(record), "controls": controls(record)}
    notes = {"notes": record["notes"]} if record["notes"] else {}
    where = {} if out is None else {"out": str(out)}
    return {**shown, **notes, "files": files, **where, "record": record}


def _members(runs: Sequence[str | Path]) -> list[str | Path]:
    """The runs, with the finished members in place of a sweep."""
    members: list[str | Path] = []
    for run in runs:
        sweep = sweep_of(run)
        if sweep is None:
            members.append(run)
            continue
        finished = [member for member in sweep.members if (member / CONFIG).is_file() and is_finished(member)]
        if not finished:
            raise ConfigError(f"{run}: no member of this sweep is finished; run the same sae sweep again")
        members += finished
    return members


def _folder_of(runs: Sequence[str | Path]) -> Path | None:
    """The folder of the one sweep that is compared."""
    sweep = sweep_of(runs[0]) if len(runs) == 1 else None
    return None if sweep is None else sweep.folder


def _known_pairs(out: Path | None) -> dict[str, float]:
    """MCC of pairs of runs that an earlier comparison in the folder has."""
    path = None if out is None else out / f"{NAME}.json"
    return read_json(path).get("pairs", {}) if path is not None and path.is_file() else {}


def write(out: Path, record: Mapping[str, Any]) -> list[str]:
    """Write the record, the tables, the figure and the page into a folder; the names of the files."""
    out.mkdir(parents=True, exist_ok=True)
    publish_json(out / f"{NAME}.json", dict(record))
    publish_file(out / f"{NAME}.md", markdown(record).encode())
    figure = draw_differences(record)
    files = write_figure(out, NAME, figure)
    page(record, figure).write(out / f"{NAME}.html")
    return [f"{NAME}.{kind}" for kind in ("md", "json", "html")] + files


def table(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for every variant: its numbers, each that is ranked with its rank behind it."""
    names = [name for name in HEADS if any(name in row["numbers"] for row in record["variants"])]
    rows = []
    for row in record["variants"]:
        cells = {"variant": row["variant"]}
        for name in names:
            cells[HEADS[name]] = number(row["numbers"].get(name))
            if name in RANKED and name in row["ranks"]:
                best, worst = row["ranks"][name]
                cells[f"rank, {HEADS[name]}"] = f"{best}" if best == worst else f"{best}-{worst}"
        cells["PCA needs"] = _range(row["components"])
        rows.append(cells)
    return rows


def differences(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for every variant but the reference."""
    others = [row for row in record["variants"] if row["difference"] is not None]
    rows = []
    for row in others:
        cells = {f"variant, less {record['reference']}": row["variant"]}
        for name in DIFFERENCES:
            if not any(name in other["difference"] for other in others):
                continue
            each = row["difference"].get(name)
            told = each is not None and each["p_holm"] is not None and each["p_holm"] <= LEVEL
            cells[HEADS[name]] = number(each and _numbers(each)) + ("*" if told else "")
            if name in RANKED:
                cells[f"detectable, {HEADS[name]}"] = number(each and each["detectable"])
                if name != "mcc":  # which has no documents
                    cells[f"of seeds, {HEADS[name]}"] = "-" if each is None else f"{each['of_seeds']:.0%}"
        rows.append(cells)
    return rows


def controls(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for every control: its numbers, and how much they differ from the reference's."""
    names = [name for name in ("fvu", "delta_ce", "l0") if any(name in row["numbers"] for row in record["controls"])]
    rows = []
    for row in record["controls"]:
        cells = {"control": row["control"], **{HEADS[name]: number(row["numbers"].get(name)) for name in names}}
        for name in names[:-1]:
            cells[f"{HEADS[name]}, less {record['reference']}'s"] = number(row["difference"].get(name))
        rows.append(cells)
    return rows


def markdown(record: Mapping[str, Any]) -> str:
    """The three tables in Markdown, with what they say."""
    parts = [_measured(record), tables.markdown(table(record)).rstrip(), EXPLAINED]
    parts += [tables.markdown(differences(record)).rstrip(), EXPLAINED_DIFFERENCES]
    if rows := controls(record):
        parts += [tables.markdown(rows).rstrip(), EXPLAINED_CONTROLS]
    return "\n\n".join([*parts, *record["notes"]]) + "\n"


def page(record: Mapping[str, Any], figure: Any) -> Page:
    """The page: tables, the figure, controls."""
    made = Page(f"{len(record['variants'])} variants", f"Compared on {time.strftime('%Y-%m-%d')}. {_measured(record)}")
    made.section("Variants", EXPLAINED)
    made.table([{**cells, **_shown(row)} for cells, row in zip(table(record), record["variants"], strict=True)])
    for note in record["notes"]:
        made.text(f"{note[0].upper()}{note[1:]}.")
    made.section(f"Differences from {record['reference']}", EXPLAINED_DIFFERENCES)
    made.figure(
        figure,
        "Differences with 95% intervals, small marks seed by seed (of MCC, pair by pair). Filled: told apart from the "
        "reference. Grey: differences that are too small to be detected with 80% probability.",
    )
    made.table(differences(record))
    if rows := controls(record):
        made.section("Controls", EXPLAINED_CONTROLS)
        made.table(rows)
    made.section("Runs")
    made.table([{"variant": row["variant"], "runs": ", ".join(row["runs"])} for row in record["variants"]])
    return made


def _measured(record: Mapping[str, Any]) -> str:
    documents = f" of {record['documents']:,} documents" if record["documents"] else ""
    losses = f", cross-entropies on {record['loss_tokens']:,}" if record["loss_tokens"] else ""
    seeds = sorted({len(row["runs"]) for row in record["variants"]})
    times = " or ".join(f"{count}" for count in seeds) + (" seed" if seeds == [1] else " seeds")
    return f"{times} each; {record['tokens']:,} held-out tokens{documents}{losses}."


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """Intervals as the page shows them, under their heads."""
    return {HEADS[n]: each for n, each in row["numbers"].items() if n in HEADS and each["low"] is not None}


def _numbers(each: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each[name] for name in ("value", "low", "high")}


def _range(components: Sequence[int | None]) -> str:
    known = sorted({each for each in components if each is not None})
    return "-" if not known else f"{known[0]}" if len(known) == 1 else f"{known[0]}-{known[-1]}"
