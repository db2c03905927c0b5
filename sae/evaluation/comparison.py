"""Variants side by side, each trained with several seeds, all evaluated on the same documents; and their controls.

    record = compare_runs(["runs/sweep/topk-seed0", "runs/sweep/topk-seed1", ..., "runs/sweep/jumprelu-seed2"])
    record["variants"][1]["difference"]["fvu"]       # {"value", "low", "high", "p", "p_holm", "detectable", "seeds"}

Runs that differ in their seed alone are one variant. The numbers come from the sums that `sae eval` left in each run
(`sae.evaluation.documents`), the statistics from `sae.evaluation.paired`; no language model runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sae.config import CompareConfig, ConfigError
from sae.evaluation.bootstrap import ratio
from sae.evaluation.control_table import control_losses
from sae.evaluation.controls import RANDOM, SHUFFLED
from sae.evaluation.documents import Documents, read_documents
from sae.evaluation.matching.assignment import cosine_similarity, one_to_one
from sae.evaluation.matching.sources import Subject, open_subject
from sae.evaluation.paired import (
    Estimate,
    Uncertain,
    holm,
    less,
    over_documents,
    over_jackknife,
    over_pairs_of_seeds,
    rank_ranges,
)
from sae.evaluation.reconstruction import fvu_of
from sae.evaluation.seeds import but_for_seed, by_settings, settings_of
from sae.models.saved import locate_run, read_report

RANKED: dict[str, Literal[-1, 1]] = {"fvu": -1, "delta_ce": -1, "mcc": 1}
"""Number by which variants are ranked -> the better direction."""
NUMBERS = ("fvu", "delta_ce", "kl", "l0", "dead", "mcc")
OF_EACH_SEED = (SHUFFLED, RANDOM)
"""Controls that each seed has for itself."""
CLOSE = 1e-4
"""Relative difference up to which sums of two runs over a group of documents count as those of the same tokens."""


class Variant(NamedTuple):
    """Runs that differ in their seed alone."""

    name: str
    runs: list[str]
    seeds: tuple[int, ...]
    documents: list[Documents]
    subjects: list[Subject]
    """Their atoms."""
    components: list[int | None]
    """Principal components with which PCA reaches each run's FVU."""


def compare_runs(
    runs: Sequence[str | Path], config: CompareConfig | None = None, known: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Compare evaluated runs: two variants at least, if possible with three seeds each.

    Args:
        runs: run folders that `sae eval` has evaluated on the same tokens.
        config: which variant is the reference; the bootstrap.
        known: MCC of pairs of runs that an earlier record has (`record["pairs"]`), which take seconds each.

    Returns:
        JSON values: "variants" (each with "numbers", "difference" to the reference, "ranks" and "values" of its seeds),
        "controls", "reference", "tokens", "documents", "notes", "pairs".

    Raises:
        ConfigError: a run has no evaluation, or they are on other tokens or sites; else as `settings_of`.
        CorruptError: a file is damaged.
    """
    config = config or CompareConfig()
    variants = _variants(runs)
    _check_same_documents(variants)
    reference = _reference(variants, config.reference)
    pairs = dict(known or {})
    estimates = [_estimates(variant, config, pairs) for variant in variants]
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
                "components": variant.components,
            }
        )
    _add_differences(rows, estimates, reference)
    _add_ranks(rows, estimates)
    documents = first.documents[0]
    return {
        "reference": first.name,
        "variants": rows,
        "controls": _controls(first, estimates[reference], config),
        "tokens": int(documents.rows["count"].sum()),
        "documents": len(documents.rows["count"]),
        "loss_tokens": int(documents.losses["count"].sum()) if documents.losses else 0,
        "loss_documents": len(documents.losses["count"]) if documents.losses else 0,
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
        reports = [read_report(folder, "eval.json") if (folder / "eval.json").is_file() else {} for folder in folders]
        components = [(report.get("baselines") or {}).get("pca_components_for_same_fvu") for report in reports]
        documents = [read_documents(folder) for folder in folders]
        subjects = [open_subject(runs[place]) for place in places]
        variants.append(Variant(name, [str(runs[p]) for p in places], seeds, documents, subjects, components))
    return variants


def _names(runs: Sequence[str | Path], settings: list[dict[str, Any]], groups: list[list[int]]) -> list[str]:
    """The variant's name and, where several variants share it, the settings in which these differ."""
    kinds = [str(each.get("sae.variant", Path(str(runs[places[0]])).name)) for each, places in zip(settings, groups)]  # noqa: B905
    names = []
    for kind, each in zip(kinds, settings, strict=True):
        alike = [but_for_seed(other) for other, its in zip(settings, kinds, strict=True) if its == kind]
        differing = [name for name in sorted({n for other in alike for n in other})
                     if any(other.get(name) != each.get(name) for other in alike)]  # fmt: skip
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
    """Refuse runs of which one was evaluated on other tokens, or at another place."""
    every = [(run, each) for variant in variants for run, each in zip(variant.runs, variant.documents, strict=True)]
    name, first = every[0]
    for run, other in every[1:]:
        for what, mine, theirs in (
            ("tokens", first.rows["count"], other.rows["count"]),
            ("activations", first.rows["square"], other.rows["square"]),
            ("tokens with losses", first.losses.get("count"), other.losses.get("count")),
            ("losses of the model itself", first.losses.get("clean"), other.losses.get("clean")),
        ):
            if not _same(mine, theirs):
                raise ConfigError(
                    f"{run}: evaluated on other {what} than {name}; evaluate both with the same settings (the members "
                    "of a sweep together, with sae eval SWEEP)"
                )


def _same(mine: Tensor | None, theirs: Tensor | None) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    return mine.shape == theirs.shape and bool(torch.isclose(mine, theirs, rtol=CLOSE, atol=CLOSE).all())


def _estimates(variant: Variant, config: CompareConfig, pairs: dict[str, float]) -> dict[str, Estimate]:
    """The numbers of a variant that its runs have; MCC of every two seeds is read from `pairs` or added to it."""
    documents, seeds = variant.documents, variant.seeds
    rows, losses = [each.rows for each in documents], [each.losses for each in documents]
    numbers: dict[str, Estimate | None] = {
        "fvu": _over(rows, lambda sums: fvu_of("error", sums), seeds, config),
        "l0": _over(rows, ratio("l0", "count"), seeds, config),
    }
    if losses[0]:
        numbers["delta_ce"] = _over(losses, _delta_ce("spliced"), seeds, config)
        numbers["kl"] = _over(losses, ratio("kl", "count"), seeds, config)
    dead = [(each.fired == 0).double().mean().item() for each in documents]
    numbers["dead"] = over_jackknife(dead, [each.dead_without for each in documents], seeds)
    if len(documents) > 1 and all(subject.space is not None for subject in variant.subjects):
        numbers["mcc"] = over_pairs_of_seeds(_mcc(variant, pairs), seeds)
    return {name: each for name in NUMBERS if (each := numbers.get(name)) is not None}


def _over(
    sums: Sequence[Mapping[str, Tensor]],
    metric: Callable[[Mapping[str, Tensor]], Tensor],
    seeds: Sequence[int],
    config: CompareConfig,
) -> Estimate | None:
    return over_documents(sums, metric, seeds, resamples=config.resamples, seed=config.seed)


def _delta_ce(spliced: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    return lambda sums: (sums[spliced] - sums["clean"]) / sums["count"]


def _mcc(variant: Variant, pairs: dict[str, float]) -> list[float]:
    """MCC of the live atoms of every two seeds."""
    values = []
    for i, j in itertools.combinations(range(len(variant.runs)), 2):
        live = [variant.documents[place].fired > 0 for place in (i, j)]
        # which latents live depends on the evaluation
        key = " ".join(f"{variant.subjects[place].weights}/{int(alive.sum())}" for place, alive in zip((i, j), live))  # noqa: B905
        if key not in pairs:
            first, second = (variant.subjects[p].atoms[alive] for p, alive in zip((i, j), live, strict=True))
            pairs[key] = one_to_one(cosine_similarity(first, second)).strength.double().mean().item()
        values.append(pairs[key])
    return values


def _interval(uncertain: Uncertain, name: str = "") -> dict[str, float | None]:
    """As JSON; that of a share within 0 and 1."""
    interval = uncertain.interval()
    if name == "dead":
        interval = interval._replace(low=max(interval.low, 0.0), high=min(interval.high, 1.0))
    return interval.to_json()


def _add_differences(rows: list[dict[str, Any]], estimates: list[dict[str, Estimate]], reference: int) -> None:
    """Every variant less the reference; p-values are adjusted over the variants, for each number by itself."""
    others = [place for place in range(len(rows)) if place != reference]
    for name in NUMBERS:
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


def _controls(variant: Variant, numbers: dict[str, Estimate], config: CompareConfig) -> list[dict[str, Any]]:
    """What the reference is compared with: a control of each seed as a mean over seeds, others by themselves."""
    rows = []
    for name in variant.documents[0].controls:
        seeds = variant.seeds if name in OF_EACH_SEED else ()
        several = [each for each in variant.documents if name in each.controls][: len(seeds) or 1]
        of_rows = [each.rows | each.controls[name] for each in several]
        estimates = {
            "fvu": _over(of_rows, lambda sums: fvu_of("error", sums), seeds, config),
            "l0": _over(of_rows, ratio("l0", "count"), seeds, config),
        }
        losses = [each.losses for each in several]
        if (spliced := control_losses(losses[0], name)) is not None:
            estimates["delta_ce"] = _over(losses, _delta_ce(spliced["spliced"]), seeds, config)
            estimates["kl"] = _over(losses, ratio(spliced["kl"], "count"), seeds, config)
        known = {number: each for number, each in estimates.items() if each is not None}
        rows.append(
            {
                "control": name,
                "numbers": {number: _interval(each.uncertain()) for number, each in known.items()},
                "difference": {
                    number: _interval(less(each, numbers[number]))
                    for number, each in known.items()
                    if number in numbers
                },
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
