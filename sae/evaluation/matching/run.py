"""`sae match`: which latents several runs share, and how stable each latent of each run is.

report = match(["runs/seed0", "runs/seed1", "runs/seed2"], MatchConfig(out=Path("runs/seeds")))
report["runs"][0]["stability"]["mean"], report["pairs"][0]["atoms"]["mcc"]["value"]
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sae.base.files import publish_folder, publish_json, write_file
from sae.base.tables import number
from sae.config import ConfigError, MatchConfig
from sae.evaluation.bootstrap import Interval
from sae.evaluation.matching.activations import correlation
from sae.evaluation.matching.assignment import Nearest, Similarity, cosine_similarity, nearest
from sae.evaluation.matching.pairs import Compared, Pair, PairSettings, Side, compare, random_dictionary
from sae.evaluation.matching.pool import check_pool, write_pool
from sae.evaluation.matching.scores import Against, Scores, stability_of, summary, write_scores
from sae.evaluation.matching.sources import Common, Subject, activations_of, open_subject
from sae.evaluation.stability import over_pairs

RECORD, TABLE = "match.json", "match.md"


def match(runs: Sequence[str | Path], config: MatchConfig | None = None) -> dict[str, Any]:
    """Match the latents of two or more runs, and write every latent's stability into their folders.

    Args:
        runs: run folders, hub repositories with one, or checkpoints (RUN/checkpoints/STEP), which are matched by atoms
            alone. They may differ in seed, size, layer, variant and tool.
        config: how; with `out`, match.json and match.md are written there, with `pool` a run of the stable latents.

    Returns:
        JSON values: "pairs" (of every two runs), "runs" (stability of each), "mean_mcc" over all pairs compared by
        atoms; a number with an interval is {"value", "low", "high"}.

    Raises:
        ConfigError, CorruptError: a run cannot be used, or no two of them can be compared.

    Example:
        >>> import sae
        >>> report = sae.match(["runs/demo", "runs/seed1"], sae.MatchConfig(tokens=2_048, resamples=10))
        >>> pair, = report["pairs"]
        >>> pair["atoms"]["mcc"]["value"] > pair["atoms"]["chance"]["mcc"]["value"]
        True
        >>> sorted(pair["relations"])[:3]
        ['duplicates_first', 'duplicates_second', 'gone']
    """
    config = config or MatchConfig()
    _check(runs, config)
    begun = time.perf_counter()
    subjects = [open_subject(run) for run in runs]
    if config.pool is not None:
        check_pool(subjects[0])
    common = activations_of(subjects, config)
    sides = [_side(subject, common, place) for place, subject in enumerate(subjects)]
    settings = PairSettings(config.same, config.resamples, config.seed)
    places = list(itertools.combinations(range(len(subjects)), 2))
    pairs = {(i, j): compare(sides[i], sides[j], settings) for i, j in places}
    every = range(len(subjects))
    scores = [_scores(place, subjects, sides, pairs, common.tokens, config.seed) for place in every]
    if all(each is None for each in scores):
        reasons = "; ".join(common.missing.values()) or "their atoms have different widths"
        raise ConfigError(f"match: no two of these runs can be compared: {reasons}")
    report: dict[str, Any] = {
        "pairs": [_described(subjects, sides, i, j, pair) for (i, j), pair in pairs.items()],
        "runs": [_run(*each) for each in zip(subjects, sides, scores, strict=True)],
        "mean_mcc": _mean_mcc(len(subjects), pairs),
        common.what: common.tokens,
        "activations_missing": list(common.missing.values()),
        "notes": _notes(subjects, places),
        "same": config.same,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    if config.pool is not None:
        if scores[0] is None:
            raise ConfigError(f"--pool: {subjects[0].name} can be compared with none of the others")
        report["pool"] = write_pool(subjects[0], scores[0], config.pool, config.at_least)
    if config.out is not None:
        with publish_folder(config.out) as folder:
            publish_json(folder / RECORD, report)
            write_file(folder / TABLE, markdown(report))
    for subject, given, score in zip(subjects, runs, scores, strict=True):
        # a run downloaded from the hub is not ours to write into; a checkpoint is one file of a training run
        if score is not None and subject.kind != "checkpoint" and subject.folder == Path(given).expanduser():
            write_scores(subject.folder, score)
    return report


def shown(report: dict[str, Any]) -> dict[str, Any]:
    """What a reader of the terminal wants to know of a report."""
    rows = [
        {
            "pair": f"{Path(pair['first']).name} / {Path(pair['second']).name}",
            "MCC": _text(pair["atoms"], "mcc"),
            "over 0.9": _text(pair["atoms"], "over"),
            "same": _text(pair["atoms"], "same"),
            "MCC, activations": _text(pair["activations"], "mcc"),
            **({} if pair["counts"] is None else {name: pair["counts"][name] for name in ("gone", "new", "split")}),
        }
        for pair in report.get("pairs", [])
    ]
    stability = {Path(run["name"]).name: run["stability"] for run in report.get("runs", [])}
    plain = {
        name: report[name]
        for name in ("mean_mcc", "activations_missing", "notes", "pool", "seconds")
        if report.get(name)
    }
    return {"table": rows, "stability": stability, **plain}


def markdown(report: dict[str, Any]) -> str:
    """The table of pairs; behind each number, in brackets, its interval and what chance gives."""
    heads = (
        "pair",
        "MCC",
        "over 0.9",
        f"same ({report['same']})",
        "MCC of activations",
        "gone",
        "new",
        "split",
        "merged",
    )
    lines = [heads, ("---",) * len(heads)]
    for pair in report["pairs"]:
        counts = pair["counts"] or {}
        lines.append(
            (
                f"{pair['first']} / {pair['second']}",
                *(_text(pair["atoms"], name) for name in ("mcc", "over", "same")),
                _text(pair["activations"], "mcc"),
                *(number(counts.get(name)) for name in ("gone", "new", "split", "merged")),
            )
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _check(runs: Sequence[str | Path], config: MatchConfig) -> None:
    if len(runs) < 2 or len({Path(run).expanduser().resolve() for run in runs}) < len(runs):
        raise ConfigError(f"match: {', '.join(map(str, runs))}: expected two or more different runs")
    for flag, folder in (("out", config.out), ("pool", config.pool)):
        if folder is not None and folder.exists():
            raise ConfigError(f"--{flag} {folder}: exists already; give a new folder")


def _notes(subjects: Sequence[Subject], places: Sequence[tuple[int, int]]) -> list[str]:
    """Which pairs are alike for another reason than the data."""
    return [
        f"{subjects[i].name} and {subjects[j].name} have one seed and width: their atoms began alike, and may be still"
        for i, j in places
        if subjects[i].seed is not None
        and (subjects[i].seed, subjects[i].atoms.shape) == (subjects[j].seed, subjects[j].atoms.shape)
    ]


def _side(subject: Subject, common: Common, place: int) -> Side:
    activations = common.activations.get(place)
    latents = torch.arange(subject.width)
    if activations is not None:
        latents = (activations.fired > 0).nonzero().squeeze(1)
        if not len(latents):
            raise ConfigError(f"{subject.name}: no latent fired on the {common.tokens:,} {common.what} compared")
        activations = activations.select(latents)
    atoms = None if subject.space is None else subject.atoms[latents]
    encoder = None if subject.encoder is None or subject.space is None else subject.encoder[latents]
    return Side(latents, atoms, encoder, activations)


def _scores(
    place: int,
    subjects: Sequence[Subject],
    sides: Sequence[Side],
    pairs: dict[tuple[int, int], Pair],
    tokens: int,
    seed: int,
) -> Scores | None:
    """The stability of one subject's latents; None where it can be compared with no other."""
    mine, against = sides[place], []
    for other, subject in enumerate(subjects):
        if other == place:
            continue
        pair, theirs = pairs[min(place, other), max(place, other)], sides[other]
        atoms, activations = (_nearest(compared, place > other) for compared in (pair.atoms, pair.activations))
        if atoms is None and activations is None:
            continue
        alike = _by_chance(mine, theirs, seed, by_atoms=atoms is not None)
        head = (subject.name, str(subject.folder), subject.weights)
        chance = nearest(alike).rows.strength
        against.append(Against(*head, mine.latents, theirs.latents, atoms, activations, chance))
    subject = subjects[place]
    return stability_of(subject.width, subject.weights, against, tokens) if against else None


def _nearest(compared: Compared | None, second: bool) -> Nearest | None:
    return None if compared is None else compared.near[int(second)]


def _by_chance(mine: Side, theirs: Side, seed: int, *, by_atoms: bool) -> Similarity:
    """Similarity with a random dictionary like theirs, or with their activations at permuted tokens."""
    if by_atoms and mine.atoms is not None and theirs.atoms is not None:
        return cosine_similarity(mine.atoms, random_dictionary(theirs.atoms, seed))
    if mine.activations is None or theirs.activations is None:
        raise AssertionError("two sides were compared by what one of them lacks")
    return correlation(mine.activations, theirs.activations.permuted(seed))


def _mean_mcc(count: int, pairs: dict[tuple[int, int], Pair]) -> dict[str, Any] | float | None:
    """Mean MCC by atoms with an interval over runs; the mean alone for two runs, None where a pair has none."""
    values = [pair.atoms.likeness.mcc.value for pair in pairs.values() if pair.atoms is not None]
    if len(values) < count * (count - 1) // 2:
        return None
    mean = over_pairs(values)
    return mean.to_json() if isinstance(mean, Interval) else mean


def _described(subjects: list[Subject], sides: list[Side], i: int, j: int, pair: Pair) -> dict[str, Any]:
    def plain(interval: Interval | None) -> dict[str, Any] | None:
        return None if interval is None else interval.to_json()

    relations = None if pair.relations is None else pair.relations.of(sides[i].latents, sides[j].latents)
    return {
        "first": subjects[i].name,
        "second": subjects[j].name,
        "atoms": _compared(pair.atoms),
        "activations": _compared(pair.activations),
        "encoder": plain(pair.encoder),
        "both": plain(pair.both),
        "positive": plain(pair.positive),
        "counts": None if relations is None else relations.counts(),
        "chance_counts": pair.chance_relations,
        "relations": None if relations is None else relations.to_json(),
    }


def _compared(compared: Compared | None) -> dict[str, Any] | None:
    if compared is None:
        return None
    return {**compared.likeness.to_json(), "chance": compared.chance.to_json()}


def _run(subject: Subject, side: Side, scores: Scores | None) -> dict[str, Any]:
    return {
        "name": subject.name,
        "width": subject.width,
        "compared": len(side.latents),
        "weights": subject.weights,
        "stability": None if scores is None else summary(scores),
    }


def _text(compared: dict[str, Any] | None, name: str) -> str:
    """A number with its interval, and behind it what chance gives."""
    if compared is None:
        return "-"
    return f"{number(compared[name])}, chance {number(compared['chance'][name]['value'])}"
