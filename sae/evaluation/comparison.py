"""Variants side by side, each trained with several seeds, all evaluated on the same documents; and their controls.

    record = compare_runs(["runs/sweep/topk-seed0", "runs/sweep/topk-seed1", ..., "runs/sweep/jumprelu-seed2"])
    record["variants"][1]["difference"]["fvu"]       # {"value", "low", "high", "p", "p_holm", "detectable", "of_seeds"}

Runs that differ in their seed alone are one variant. The numbers and their resamples are those that `sae eval` left in
each run (`sae.evaluation.replicates`), the statistics those of `sae.evaluation.paired`; no language model runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from sae.config import CompareConfig, ConfigError
from sae.evaluation.controls import RANDOM, SHUFFLED
from sae.evaluation.matching.assignment import cosine_similarity, one_to_one
from sae.evaluation.matching.sources import Subject, open_subject
from sae.evaluation.paired import Estimate, Uncertain, holm, less, over_pairs_of_seeds, over_replicates, rank_ranges
from sae.evaluation.replicates import Kept, Replicate, of_control, read_kept
from sae.evaluation.seeds import but_for_seed, by_settings, settings_of
from sae.models.saved import locate_run, read_description, read_report

RANKED: dict[str, Literal[-1, 1]] = {"fvu": -1, "delta_ce": -1, "mcc": 1}
"""Number by which variants are ranked -> the better direction."""
KEYS = {"fvu": "fvu", "delta_ce": "downstream.delta_ce", "kl": "downstream.kl", "l0": "l0", "dead": "dead"}
"""Number -> its key in eval.json."""
MCC = "mcc"
"""The number that every two seeds have."""
OF_EACH_SEED = (SHUFFLED, RANDOM)
"""Controls that each seed has for itself."""


class Variant(NamedTuple):
    """Runs that differ in their seed alone."""

    name: str
    runs: list[str]
    seeds: tuple[int, ...]
    reports: list[dict[str, Any]]
    """Their eval.json."""
    kept: list[Kept]
    subjects: list[Subject]
    """Their atoms."""


def compare_runs(
    runs: Sequence[str | Path], config: CompareConfig | None = None, known: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Compare evaluated runs: two variants at least, if possible with three seeds each.

    Args:
        runs: run folders that `sae eval` has evaluated on the same tokens.
        config: which variant is the reference.
        known: MCC of pairs of runs that an earlier record has (`record["pairs"]`), which take seconds each.

    Returns:
        JSON values: "variants" (each with "numbers", "difference" to the reference, "ranks" and "values" of its seeds),
        "controls", "reference", "tokens", "documents", "notes", "pairs".

    Raises:
        ConfigError: a run has no evaluation, or they are on other tokens or sites; else as `settings_of`.
        CorruptError: a file is damaged.
    """
    return compare_variants(_variants(runs), (config or CompareConfig()).reference, known)


def compare_variants(
    variants: Sequence[Variant], reference_name: str | None = None, known: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """`compare_runs` of variants that are read already."""
    _check_same_documents(variants)
    reference = _reference(variants, reference_name)
    pairs = dict(known or {})
    estimates = [_estimates(variant, pairs) for variant in variants]
    first = variants[reference]
    rows = []
    for place, (variant, numbers) in enumerate(zip(variants, estimates, strict=True)):
        rows.append(
            {
                "variant": variant.name,
                "runs": variant.runs,
                "seeds": list(variant.seeds),
                "numbers": {name: _interval(each.uncertain(), name) for name, each in numbers.items()},
                "values": {name: list(each.values) for name, each in numbers.items()},
                "of_seeds": {name: each.uncertain().share("seeds") for name, each in numbers.items()},
                "difference": None if place == reference else {},
                "ranks": {},
                # with as many, PCA has the same FVU
                "components": [(r.get("baselines") or {}).get("pca_components_for_same_fvu") for r in variant.reports],
            }
        )
    _add_differences(rows, estimates, reference)
    _add_ranks(rows, estimates)
    report = first.reports[0]
    losses = report.get("downstream") or {}
    return {
        "reference": first.name,
        "variants": rows,
        "controls": _controls(first, estimates[reference]),
        "tokens": report.get("tokens", report.get("rows")),
        "documents": report.get("documents"),
        "loss_tokens": losses.get("tokens"),
        "loss_documents": losses.get("documents"),
        "notes": _notes(variants),
        "pairs": pairs,
    }


def _variants(runs: Sequence[str | Path]) -> list[Variant]:
    folders = [Path(run).expanduser().resolve() for run in runs]
    if twice := next((run for run, folder in zip(runs, folders, strict=True) if folders.count(folder) > 1), None):
        raise ConfigError(f"compare: {twice} is given twice; expected different runs")
    settings = [settings_of(run) for run in runs]
    groups = by_settings(settings)
    if len(groups) < 2:
        what = "no run" if not groups else f"one variant with {len(runs)} seeds"
        raise ConfigError(f"compare: {what}; expected two variants or more (sae match compares the seeds of one)")
    names = _names(runs, [settings[places[0]] for places in groups], groups)
    variants = []
    for name, places in zip(names, groups, strict=True):
        places = sorted(places, key=lambda place: settings[place].get("seed", 0))
        folders = [locate_run(runs[place]) for place in places]
        seeds = tuple(settings[place]["seed"] for place in places if "seed" in settings[place])
        evaluations = [_evaluation(folder) for folder in folders]
        subjects = [open_subject(runs[place]) for place in places]
        named = [str(runs[place]) for place in places]
        reports = [report for report, _ in evaluations]
        kept = [numbers for _, numbers in evaluations]
        variants.append(Variant(name, named, seeds, reports, kept, subjects))
    return variants


def _evaluation(folder: Path) -> tuple[dict[str, Any], Kept]:
    """A run's eval.json, and what is kept beside it for comparisons."""
    weights = read_description(folder).get("sha256")
    report = read_report(folder, "eval.json") if (folder / "eval.json").is_file() else None
    kept = read_kept(folder, str(weights))
    fvu = {} if report is None else report["fvu"] or {}
    if report is None or kept is None or "fvu" not in kept.numbers or kept.numbers["fvu"].value != fvu.get("value"):
        raise ConfigError(f"{folder}: no evaluation with resamples that are of it; evaluate it: sae eval {folder}")
    return report, kept


def _names(runs: Sequence[str | Path], settings: list[dict[str, Any]], groups: list[list[int]]) -> list[str]:
    """The variant's name and, where several variants share it, the settings in which these differ."""
    firsts = [Path(str(runs[places[0]])).name for places in groups]
    kinds = [str(each.get("sae.variant", first)) for each, first in zip(settings, firsts, strict=True)]
    names = []
    for kind, each in zip(kinds, settings, strict=True):
        alike = [but_for_seed(other) for other, its in zip(settings, kinds, strict=True) if its == kind]
        every = sorted({name for other in alike for name in other})
        differing = [name for name in every if any(other.get(name) != each.get(name) for other in alike)]
        names.append(" ".join([kind, *(f"{name.rpartition('.')[2]}={each.get(name)}" for name in differing)]))
    return names


def _reference(variants: Sequence[Variant], name: str | None) -> int:
    names = [variant.name for variant in variants]
    if name is None:
        return 0
    if name not in names:
        raise ConfigError(f"--reference {name}: no such variant; these are there: {', '.join(names)}")
    return names.index(name)


def _check_same_documents(variants: Sequence[Variant]) -> None:
    """Refuse runs of which one was evaluated on other documents, or at another place."""
    every = [each for v in variants for each in zip(v.runs, v.reports, v.kept, strict=True)]
    name, report, kept = every[0]
    for run, other_report, other in every[1:]:
        here, there = (each.get("target_site", each.get("site")) for each in (report, other_report))
        if here != there:
            raise ConfigError(f"{run}: evaluated at {there}, {name} at {here}; expected one place")
        for key in KEYS.values():
            mine, theirs = (each.numbers.get(key) for each in (kept, other))
            if (mine and mine.documents) != (theirs and theirs.documents):
                raise ConfigError(
                    f"{run}: its {key} is of other documents or resamples than that of {name}; evaluate both with the "
                    "same settings (the members of a sweep together, with sae eval SWEEP)"
                )


def _estimates(variant: Variant, pairs: dict[str, float]) -> dict[str, Estimate]:
    """The numbers of a variant that its runs have; MCC of every two seeds is read from `pairs` or added to it."""
    numbers = {
        name: _over(replicates, variant.seeds)
        for name, key in KEYS.items()
        if len(replicates := [kept.numbers[key] for kept in variant.kept if key in kept.numbers]) == len(variant.kept)
    }
    if len(variant.runs) > 1 and all(subject.space is not None for subject in variant.subjects):
        numbers[MCC] = over_pairs_of_seeds(_mcc(variant, pairs), variant.seeds)
    return numbers


def _over(replicates: Sequence[Replicate], seeds: Sequence[int]) -> Estimate:
    first = replicates[0]
    values, draws = [each.value for each in replicates], [each.draws for each in replicates]
    return over_replicates(values, draws, seeds, factor=first.factor, groups=first.groups)


def _mcc(variant: Variant, pairs: dict[str, float]) -> list[float]:
    """MCC of the live atoms of every two seeds."""
    values = []
    for i, j in itertools.combinations(range(len(variant.runs)), 2):
        live = [torch.from_numpy(variant.kept[place].fired > 0) for place in (i, j)]
        # which latents live depends on the evaluation
        weights = [variant.subjects[place].weights for place in (i, j)]
        key = " ".join(f"{sha}/{int(alive.sum())}" for sha, alive in zip(weights, live, strict=True))
        if key not in pairs:
            first, second = (variant.subjects[p].atoms[alive] for p, alive in zip((i, j), live, strict=True))
            pairs[key] = one_to_one(cosine_similarity(first, second)).strength.double().mean().item()
        values.append(pairs[key])
    return values


def _interval(uncertain: Uncertain, name: str = "") -> dict[str, float | None]:
    """As JSON; that of a share or an MCC within 0 and 1."""
    interval = uncertain.interval()
    if name in ("dead", MCC):
        interval = interval._replace(low=max(interval.low, 0.0), high=min(interval.high, 1.0))
    return interval.to_json()


def _add_differences(rows: list[dict[str, Any]], estimates: list[dict[str, Estimate]], reference: int) -> None:
    """Every variant less the reference; p-values are adjusted over the variants, for each number by itself."""
    others = [place for place in range(len(rows)) if place != reference]
    for name in (*KEYS, MCC):
        able = [place for place in others if name in estimates[place] and name in estimates[reference]]
        differences = [less(estimates[place][name], estimates[reference][name]) for place in able]
        adjusted = holm([each.p_value() for each in differences])
        for place, each, p in zip(able, differences, adjusted, strict=True):
            rows[place]["difference"][name] = {
                **_interval(each),
                "p": _known(each.p_value()),
                "p_holm": _known(p),
                "detectable": _known(each.detectable()),
                "of_seeds": each.share("seeds"),
            }


def _add_ranks(rows: list[dict[str, Any]], estimates: list[dict[str, Estimate]]) -> None:
    for name, better in RANKED.items():
        if all(name in numbers for numbers in estimates):
            ranges = rank_ranges([numbers[name] for numbers in estimates], better=better)
            for row, ranks in zip(rows, ranges, strict=True):
                row["ranks"][name] = list(ranks)


def _known(number: float) -> float | None:
    return None if number != number else number


def _controls(variant: Variant, numbers: dict[str, Estimate]) -> list[dict[str, Any]]:
    """What the reference is compared with: a control of each seed as a mean over seeds, others by themselves."""
    rows = []
    for name in [row["control"] for row in variant.reports[0].get("controls") or ()]:
        seeds = variant.seeds if name in OF_EACH_SEED else ()
        several = variant.kept[: len(seeds) or 1]
        known = {
            number: _over([each.numbers[of_control(name, key)] for each in several], seeds)
            for number, key in KEYS.items()
            if all(of_control(name, key) in each.numbers for each in several)
        }
        rows.append(
            {
                "control": name,
                "numbers": {number: _interval(each.uncertain()) for number, each in known.items()},
                "difference": {number: _interval(less(each, numbers[number])) for number, each in known.items()},
            }
        )
    return rows


def _notes(variants: Sequence[Variant]) -> list[str]:
    """What limits the comparison."""
    notes = []
    for variant in variants:
        if len(variant.runs) < 2:
            notes.append(f"{variant.name} has one seed: its intervals do not hold what another seed changes")
        elif len(variant.runs) < 3:
            notes.append(f"{variant.name} has two seeds: how sure its MCC is cannot be told")
    if len({variant.seeds for variant in variants}) > 1:
        notes.append("variants have different seeds: differences are paired by documents alone")
    return notes
