"""`sae choose-l0` on runs that exist: what their dictionaries say about the right L0.

report = choose_l0(["runs/k16-seed0", "runs/k16-seed1", "runs/k32-seed0", ...], L0Config(out=Path("runs/l0")))
report["l0"], report["advice"]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae.base.files import publish_folder, publish_json
from sae.base.tables import number
from sae.config import ConfigError, L0Config, MatchConfig
from sae.evaluation.l0.choice import Level, choose
from sae.evaluation.matching.sources import Subject, activations_of, open_subject
from sae.evaluation.seeds import but_for_seed, by_settings, settings_of

RECORD = "l0.json"
SPARSITY = ("k", "l0_target", "sparsity")
"""Settings of an autoencoder that set its L0, in which levels may differ."""


def choose_l0(runs: Sequence[str | Path], config: L0Config | None = None) -> dict[str, Any]:
    """What the dictionaries of runs say about the right L0; they must differ in L0 and seed alone.

    Runs of the same settings but for the seed are one level. With two seeds or more a level, the agreement of the seeds
    decides, else the cosines between a dictionary's atoms; see `sae.evaluation.l0.statistics`.

    Args:
        runs: run folders, three levels of L0 at least, and two seeds each if possible.
        config: how; with `out`, l0.json is written there.

    Returns:
        JSON values: "advice", "l0" (None where it cannot be told), "low" and "high" (the levels between which the right
        L0 lies), "levels" (each with its L0 on held-out data, its statistics and its verdict) and "runs".

    Raises:
        ConfigError, CorruptError: a run cannot be used, or there are too few.

    Example:
        >>> import sae
        >>> choice = sae.choose_l0(["runs/k4", "runs/demo", "runs/k16"], sae.L0Config(tokens=1_024, resamples=50))
        >>> [round(level["l0"]) for level in choice["levels"]], choice["decided_by"]
        ([4, 8, 16], 'decoder_cosine')
    """
    config = config or L0Config()
    if config.out is not None and config.out.exists():
        raise ConfigError(f"--out {config.out}: exists already; give a new folder")
    names = [str(run) for run in runs]
    settings = [settings_of(run) for run in runs]
    check_levels(names, settings)
    subjects = [open_subject(run) for run in runs]
    levels, described = _levels(subjects, settings, config)
    choice = choose(levels, resamples=config.resamples, seed=config.seed)
    report = {**choice.to_json(), "runs": described}
    if config.out is not None:
        with publish_folder(config.out) as folder:
            publish_json(folder / RECORD, report)
    return report


def shown(report: dict[str, Any]) -> dict[str, Any]:
    """What a reader of the terminal wants to know of a report."""

    def text(level: dict[str, Any], name: str) -> str:
        if name not in level:
            return "-"
        return "{} [{}, {}]".format(*(number(level[name][part]) for part in ("value", "low", "high")))

    rows = [
        {
            "L0": level["l0"],
            "agreement of seeds (MCC)": text(level, "agreement"),
            "decoder cosine": text(level, "decoder_cosine"),
            "verdict": level["verdict"],
        }
        for level in report.get("levels", [])
    ]
    return {
        "table": rows,
        **{name: report[name] for name in ("advice", "l0", "low", "high", "picture") if name in report},
    }


def check_levels(names: Sequence[str], settings: Sequence[dict[str, Any]]) -> None:
    """Refuse runs that differ in more than L0 and seed, or not in these.

    Raises:
        ConfigError: names the runs and what differs.
    """
    if not names:
        raise ConfigError("choose-l0: expected run folders, or the flags of sae sweep with several --k")
    known: dict[str, str] = {}
    for name, each in zip(names, settings, strict=True):
        whole = json.dumps([but_for_seed(each), each.get("seed")])
        if whole in known:
            raise ConfigError(f"{name}: has the settings and the seed of {known[whole]}; expected another seed")
        known[whole] = name
        here, first = _alike(each), _alike(settings[0])
        for field in sorted({*here, *first}):
            if here.get(field) != first.get(field):
                raise ConfigError(
                    f"{name}: {field} is {here.get(field)!r}, in {names[0]} {first.get(field)!r}; expected runs that "
                    "differ in L0 and seed alone"
                )


def _alike(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that are the same in all levels."""
    return {name: value for name, value in but_for_seed(settings).items() if name.rpartition(".")[2] not in SPARSITY}


def _levels(
    subjects: Sequence[Subject], settings: Sequence[dict[str, Any]], config: L0Config
) -> tuple[list[Level], list[dict[str, Any]]]:
    """Live atoms and measured L0 by level, and what is said of each run."""
    common = activations_of(subjects, MatchConfig(tokens=config.tokens, device=config.device))
    if common.missing:
        raise ConfigError(f"choose-l0: {'; '.join(common.missing.values())}")
    levels, described = [], []
    for places in by_settings(settings):
        measured = [common.activations[place] for place in places]
        l0 = sum(each.l0 for each in measured) / len(places)
        atoms = []
        for place, each in zip(places, measured, strict=True):
            live = (each.fired > 0).nonzero().squeeze(1)
            if subjects[place].space is None:
                raise ConfigError(f"{subjects[place].name}: its atoms lie before a head, where cosines say nothing")
            atoms.append(subjects[place].atoms[live])
            described.append({"run": subjects[place].name, "l0": each.l0, "level": l0, "live": len(live)})
        levels.append(Level(l0, tuple(atoms)))
    return levels, sorted(described, key=lambda row: row["level"])
