"""A sweep's members side by side: evaluated in one pass over the same held-out text, in one table and one plot.

compare("runs/sweep")["table"]           # and comparison.md, .json, .svg, .png in the folder
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae.base.files import CorruptError, publish_file, publish_json
from sae.base.tables import markdown, number
from sae.config import CompareConfig, ConfigError, EvalConfig, to_json
from sae.evaluation.controls import RANDOM, SHUFFLED
from sae.evaluation.replicates import read_kept
from sae.evaluation.run import evaluate_all
from sae.evaluation.seeds import by_settings, settings_of
from sae.models.saved import CONFIG, read_config, read_description, read_report
from sae.reporting import variants
from sae.reporting.fidelity import draw_fidelity
from sae.reporting.figures import write_figure
from sae.runs.sweeps import Sweep, sweep_of
from sae.training.run_folder import is_finished

TABLE, RECORD, PLOT = "comparison.md", "comparison.json", "comparison"
EVALUATION = "eval.json"
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
OF_ONE_MEMBER = (SHUFFLED, RANDOM)
"""Controls that depend on a member's width or atoms."""
ERROR = "stopped by"
"""Heading of the column that is there where a member has not come to its end."""


def compare(folder: str | Path, evaluation: EvalConfig | None = None, *, again: bool = True) -> dict[str, Any]:
    """Evaluate all finished members of a sweep together, and write the table and the plot into its folder.

    Where variants have several seeds, `sae.reporting.variants` compares them over these.

    Args:
        folder: of `sae sweep`.
        evaluation: on which text, on how many tokens.
        again: also evaluate members that were evaluated with these settings before.

    Raises:
        ConfigError: the folder holds no sweep, or no member is finished; else as `evaluate`.
    """
    sweep = sweep_of(folder)
    if sweep is None:
        raise ConfigError(f"{folder}: no sweep; expected a folder that `sae sweep --out` wrote")
    finished = [member for member in sweep.members if (member / CONFIG).is_file() and is_finished(member)]
    reports = _evaluated(finished, evaluation or EvalConfig(), again)
    rows = [_row(member, report) for member, report in zip(finished, reports, strict=True)]
    rows += _stopped(sweep, finished)
    by_name = {row["run"]: row for row in rows}
    rows = [by_name[name] for name in sweep.names]
    pca = {r["site"]: r["baselines"] for r in reports if r["baselines"] and "target_site" not in r}
    controls = _controls(reports)
    record = {"rows": rows, "controls": controls, "baselines": pca, "tokens": reports[0]["tokens"] if reports else 0}
    publish_json(sweep.folder / RECORD, record)
    publish_file(
        sweep.folder / TABLE, (markdown(table(rows)) + ("\n" + markdown(table(controls)) if controls else "")).encode()
    )
    files = [TABLE, RECORD]
    if reports:
        figure = draw_fidelity(_curves(finished, reports), _sites(reports))
        files += write_figure(sweep.folder, PLOT, figure)
    over_seeds = _over_seeds(sweep.folder, finished, reports)
    files += over_seeds.pop("files", [])
    return {
        "table": table(rows),
        **({"controls": table(controls)} if controls else {}),
        **over_seeds,
        "files": files,
        "out": str(sweep.folder),
    }


def _evaluated(members: Sequence[Path], evaluation: EvalConfig, again: bool) -> list[dict[str, Any]]:
    """The reports of all members, from those that are there already and one evaluation of all others."""
    kept = {} if again else {member: each for member in members if (each := _kept(member, evaluation)) is not None}
    missing = [member for member in members if member not in kept]
    made = dict(zip(missing, evaluate_all(missing, evaluation), strict=True)) if missing else {}
    return [{**kept, **made}[member] for member in members]


def _kept(member: Path, evaluation: EvalConfig) -> dict[str, Any] | None:
    """The report of an evaluation with these settings; None where there is none that can be used."""
    try:
        kept = read_kept(member, str(read_description(member).get("sha256")))
        report = read_report(member, EVALUATION)
    except CorruptError:
        return None
    if kept is None or kept.settings != to_json(evaluation):
        return None
    fvu = kept.numbers.get("fvu")
    # both are of one evaluation
    return report if fvu is not None and fvu.value == (report["fvu"] or {}).get("value") else None


def _over_seeds(folder: Path, members: Sequence[Path], reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The comparison of variants over their seeds, place by place; nothing where there are no two of either."""
    places: dict[str, list[Path]] = {}
    for member, report in zip(members, reports, strict=True):
        places.setdefault(report.get("target_site", report["site"]), []).append(member)
    result: dict[str, Any] = {}
    for place, there in places.items():
        groups = by_settings([settings_of(member) for member in there])
        if len(groups) < 2 or max(map(len, groups)) < 2:
            continue
        out = folder if len(places) == 1 else folder / variants.NAME / place
        compared = variants.compare(there, CompareConfig(out=out))
        for name in ("table", "differences"):
            result.setdefault({"table": "variants"}.get(name, name), []).extend(compared[name])
        result.setdefault("files", []).extend(str((out / file).relative_to(folder)) for file in compared["files"])
    return result


def _row(folder: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    training = read_config(folder)["training"]
    form, losses = report["training_form"], report["downstream"]
    target = f" -> {report['target_site']}" if "target_site" in report else ""
    return {
        "run": folder.name,
        "site": report["site"] + target,
        "fvu": report["fvu"],
        "l0": report["l0"],
        "l0_in_training": report["l0"] if form is None else form["l0"],
        "delta_ce": losses["delta_ce"] if losses else None,
        "dead": report["dead"],
        "tokens_a_second": round(training["steps"] * training["batch"] / training["seconds"]),
        "route": training["route"],
        "error": None,
    }


def _controls(reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of what the members of a site are compared with; what is made of one member's atoms is in its eval.json."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for report in reports:
        site = report.get("target_site", report["site"])
        for control in report.get("controls") or ():
            if control["control"] in OF_ONE_MEMBER:
                continue
            losses = control.get("downstream")
            rows[site, control["control"]] = {
                **dict.fromkeys([*COLUMNS, "error"]),
                "run": control["control"],
                "site": site,
                "fvu": control["fvu"],
                "l0": control["l0"],
                "delta_ce": losses["delta_ce"] if losses else None,
            }
    return list(rows.values())


def _stopped(sweep: Sweep, finished: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows of the members that are not finished, with the reason."""
    others = [member for member in sweep.members if member not in finished]
    empty = dict.fromkeys([*COLUMNS, "route"])
    reasons = {member: sweep.errors.get(member.name, "a signal, or it has not begun") for member in others}
    return [{**empty, "run": member.name, "error": reasons[member]} for member in others]


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The table as text by heading, an interval as `value [low, high]`."""
    more = {"error": ERROR} if any(row["error"] for row in rows) else {}
    return [
        {heading: number(row[name]).replace("\n", " ") for name, heading in {**COLUMNS, **more}.items()} for row in rows
    ]


def _curves(folders: Sequence[Path], reports: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Evaluations by the name of a line: members that differ in k alone are points of one line."""
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for folder, report in zip(folders, reports, strict=True):
        settings = read_config(folder)["train"]["sae"]
        parts = [part for part in folder.name.split("-") if part != f"k{settings['k']}"]
        curves.setdefault("-".join(parts) or report["variant"], []).append(report)
    return curves


def _sites(reports: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Evaluations by the place that they reconstruct, for the line of its principal components."""
    sites: dict[str, list[Mapping[str, Any]]] = {}
    for report in reports:
        sites.setdefault(report.get("target_site", report["site"]), []).append(report)
    return sites
