"""`sae explain RUN`: a name for every latent that fires, scored on examples it was not made from.

report = explain("runs/demo", ExplainConfig())
report["score"]["value"], report["control"]["value"]

The score is the AUROC of the latent's rule on held-out documents: firings from all quantiles of the activation
against tokens at which the latent is silent, some random and some where its neighbours fire. The control gives every
latent another one's rule. Names are saved batch by batch beside the features, with the weights' SHA-256, so that an
interrupted run resumes and a new collection keeps them. Rules need no key and no network.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae.base.device import pick_device
from sae.base.files import remove_leftovers
from sae.base.locks import locked
from sae.base.progress import Progress, StopSignal
from sae.config import ConfigError, ExplainConfig
from sae.features.explain.examples import Examples, Pool
from sae.features.explain.explainers import Chat, EndpointChat, LocalChat, Marked, ask_name, ask_verdicts
from sae.features.explain.induction import Rule, induce
from sae.features.explain.naming import name_of, token_groups
from sae.features.explain.scoring import auroc, judge, mean_interval
from sae.features.store.keys import FeatureError
from sae.features.store.store import FeatureStore
from sae.harvest.language_model import ModelError
from sae.models.saved import locate_run, publish_report
from sae.runs.base import check_language

SCORES = ("score", "control", "score_random", "score_neighbours", "precision", "recall")
REPORT = "explain.json"
BATCH = 128  # latents between two saves; a control gets its rule from the same batch
SURE = 0.75  # a verdict is 0, 0.5 (no clear answer) or 1
PROMOTED = 8  # tokens that the latent makes likely, shown to the explainer


class LatentRule(NamedTuple):
    """A latent with its rule and examples."""

    latent: int
    rule: Rule
    examples: Examples


def explain(run: str | Path, config: ExplainConfig | None = None) -> dict[str, Any]:
    """Name and score the latents of a run whose features are collected.

    Args:
        run: run folder.
        config: which latents, and who explains.

    Returns:
        JSON values, also written to the run's explain.json: "live" latents, "named", "scored" (with enough held-out
        examples), "score" and "control" (mean held-out AUROC over scored latents, {"value", "low", "high"}, latents
        resampled), "score_random" and "score_neighbours" (against either kind of silent tokens alone), "precision",
        "recall", "clear" (share of scored latents whose interval excludes 0.5).

    Raises:
        FeatureError: the features are not collected, or the run has no such latent.
        ConfigError, ModelError, ExplainerError: the run is on images, or the explainer cannot be used.

    Example:
        >>> import sae
        >>> sae.explain("runs/demo")["method"]
        'rules'
    """
    config = config or ExplainConfig()
    check_language(run, "naming latents from text")
    folder = locate_run(run)
    store = FeatureStore(folder)
    begun = time.perf_counter()
    chat = _chat(config)
    method = "rules" if chat is None else f"{config.explainer}:{chat.name}"
    live = np.flatnonzero(store.scalars["count"] > 0)
    wanted = _wanted(config, live, store.width)
    names = {} if config.again else store.annotations.names()
    # a model's name replaces a rule's, and not the other way round
    done = {latent for latent, name in names.items() if chat is None or name["method"] == method}
    left = [latent for latent in wanted if latent not in done]
    hint = f"names made so far are kept; continue with: sae explain {run}"
    with locked(folder, "explain", "naming the latents of this run"), StopSignal() as stop, Progress() as progress:
        remove_leftovers(folder, REPORT)
        if left:
            progress.say(f"Reading the examples of {store.width:,} latents")
            pool = open_pool(store, progress.say)
            with progress.bar("Naming", len(wanted), "latents") as bar:
                bar.skip(len(wanted) - len(left))
                for begin in range(0, len(left), BATCH):
                    batch = left[begin : begin + BATCH]
                    store.annotations.set_names(_explain_batch(pool, batch, config, method, chat))
                    bar.advance(len(batch))
                    stop.check(hint)
    names = store.annotations.names()
    report = {"run": str(run), "method": method, **summary([names[i] for i in live.tolist() if i in names], len(live))}
    report["seconds"] = round(time.perf_counter() - begun, 1)
    publish_report(folder, REPORT, report)
    return report


def summary(names: Sequence[dict[str, Any]], live: int) -> dict[str, Any]:
    """The report of `explain` on some names, where `live` latents fire."""
    scored = [name for name in names if name["score"] is not None]
    report: dict[str, Any] = {"live": live, "named": len(names), "scored": len(scored)}
    for field in (*SCORES, "fuzzing"):
        values = np.array([name[field] for name in scored if name.get(field) is not None], dtype=np.float64)
        if len(values):
            report[field] = mean_interval(values)
    if scored:
        report["clear"] = sum(name["low"] > 0.5 for name in scored) / len(scored)
    return report


def open_pool(store: FeatureStore, say: Callable[[str], None]) -> Pool:
    """All latents' examples, with groups of similar tokens where the language model has output vectors of tokens."""
    groups: dict[int, str] = {}
    try:
        vectors = store.lens.unembedding()
        ids = np.unique(np.concatenate([store.tokens(d) for (d,) in store.query("SELECT id FROM documents")]))
        groups = token_groups(vectors, ids[ids >= 0].tolist(), store.vocabulary.name)
    except (FeatureError, ModelError) as error:
        say(f"Names are made without groups of similar tokens: {error}")
    return Pool(store, nearest_atoms(store.lens.atoms()), groups)


def nearest_atoms(atoms: torch.Tensor, count: int = 10) -> np.ndarray:
    """The latents whose atoms (unit length, [F, d]) have the largest cosine with each one's, int64 [F, count]."""
    nearest = []
    for rows in torch.arange(len(atoms)).split(2048):
        cosines = atoms[rows] @ atoms.T
        cosines[torch.arange(len(rows)), rows] = -torch.inf
        nearest.append(cosines.topk(min(count, len(atoms) - 1), dim=1).indices)
    return torch.cat(nearest).numpy()


def _explain_batch(
    pool: Pool, latents: Sequence[int], config: ExplainConfig, method: str, chat: Chat | None
) -> dict[int, dict[str, Any]]:
    """Names of some latents, each with the scores of its own rule and of another latent's."""
    rules = []
    for latent in latents:
        examples = pool.examples(latent)
        rules.append(LatentRule(latent, induce(examples.fit, pool.background), examples))
    # the control gives every latent another one's rule: a cyclic shift has no fixed point
    shift = 1 + int(np.random.default_rng(config.seed).integers(max(1, len(rules) - 1)))
    names = {}
    for index, mine in enumerate(rules):
        other = rules[(index + shift) % len(rules)]
        rule = mine.rule.to_json(pool.terms)
        name = {"name": name_of(rule), "method": "rules", "rule": rule, **_score(mine, other, len(pool.terms), config)}
        if chat is not None:
            name |= {"rule_name": name["name"], "rule_score": name["score"], "method": method}
            name |= describe(chat, pool, mine.latent, mine.examples, config)
        names[mine.latent] = name
    return names


def _score(mine: LatentRule, other: LatentRule, size: int, config: ExplainConfig) -> dict[str, Any]:
    """Scores of a latent's rule on its held-out examples; all None where there are too few."""
    test, neighbour = mine.examples.test, mine.examples.neighbour
    counts = {"positives": int(test.positive.sum()), "negatives": int((~test.positive).sum())}
    if not mine.examples.enough:
        return {**dict.fromkeys(("low", "high", *SCORES)), **counts}
    scores = mine.rule.score(test.facts, size)
    verdict = judge(scores, test.positive, test.document, mine.rule.threshold, seed=config.seed)
    parts = {}
    for field, rows in (("score_random", ~neighbour), ("score_neighbours", neighbour | test.positive)):
        silent = rows[~test.positive].any()
        parts[field] = auroc(scores[rows], test.positive[rows]) if silent else None
    control = None
    if other is not mine:
        control = auroc(other.rule.score(test.facts, size), test.positive)
    bounds = {field: getattr(verdict, field) for field in ("low", "high", "precision", "recall")}
    return {"score": verdict.auroc, **bounds, "control": control, **parts, **counts}


def _wanted(config: ExplainConfig, live: np.ndarray, width: int) -> list[int]:
    if not config.latents:
        return live.tolist()
    fires = set(live.tolist())
    for latent in config.latents:
        if not 0 <= latent < width:
            raise ConfigError(f"--latents {latent}: the run has latents 0 to {width - 1}")
        if latent not in fires:
            raise ConfigError(f"--latents {latent}: it never fired in the collected tokens, so it has no examples")
    return list(dict.fromkeys(config.latents))


def _chat(config: ExplainConfig) -> Chat | None:
    """The model that explains; None for rules alone."""
    if config.explainer == "rules":
        return None
    if config.explainer == "local":
        return LocalChat(str(config.explainer_model), pick_device(config.device))
    return EndpointChat(str(config.endpoint), str(config.explainer_model), os.environ.get(config.key_variable))


def describe(chat: Chat, pool: Pool, latent: int, examples: Examples, config: ExplainConfig) -> dict[str, Any]:
    """Name and scores by a language model, as JSON values.

    "score", "low", "high", "precision" and "recall" are of detection (with answers of yes and no the AUROC is the
    balanced accuracy); "fuzzing" is the balanced accuracy of telling right marks from wrong ones.
    """
    fit, test = examples.fit, examples.test
    strongest = np.argsort(-fit.weight * fit.positive, kind="stable")[: min(config.examples, int(fit.positive.sum()))]
    shown = [pool.marked(latent, int(fit.place[row])) for row in strongest]
    name = ask_name(chat, shown, _promoted(pool, latent))
    answer: dict[str, Any] = {"name": name, "control": None, "score_random": None, "score_neighbours": None}
    if not examples.enough:
        return answer
    draw = np.random.default_rng([config.seed, latent])
    rows = np.concatenate([_some(test.positive, config.judged, draw), _some(~test.positive, config.judged, draw)])
    rows = draw.permutation(rows)
    texts = [pool.marked(latent, int(test.place[row])) for row in rows]
    said = np.array(ask_verdicts(chat, name, [text.plain() for text in texts]))
    verdict = judge(said, test.positive[rows], test.document[rows], SURE, seed=config.seed)
    fires = [text for text, row in zip(texts, rows, strict=True) if test.positive[row]]
    return {
        **answer,
        "score": verdict.auroc,
        **{field: getattr(verdict, field) for field in ("low", "high", "precision", "recall")},
        "fuzzing": _fuzzing(chat, name, fires, draw),
    }


def _fuzzing(chat: Chat, name: str, fires: Sequence[Marked], draw: np.random.Generator) -> float | None:
    """Balanced accuracy over texts with the right tokens marked, and the same texts with equally many wrong ones."""
    texts, right = [], []
    for text in fires:
        silent = np.flatnonzero(~np.array(text.marks))
        count = sum(text.marks)
        if len(silent) < count:
            continue
        wrong = np.zeros(len(text.marks), dtype=bool)
        wrong[draw.choice(silent, count, replace=False)] = True
        texts += [text.marked(), Marked(text.tokens, wrong.tolist()).marked()]
        right += [1.0, 0.0]
    if not texts:
        return None
    order = draw.permutation(len(texts))
    said = np.array(ask_verdicts(chat, name, [texts[i] for i in order], fuzzing=True))
    return float(1 - np.abs(said - np.array(right)[order]).mean())


def _some(which: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """At most `count` of the rows where `which` is True, int64."""
    return draw.permutation(np.flatnonzero(which))[:count]


def _promoted(pool: Pool, latent: int) -> list[str]:
    """The tokens that the atom makes most likely; none where logits are undefined."""
    try:
        return [entry["token"] for entry in pool.store.logits(latent)["top"][:PROMOTED]]
    except FeatureError:
        return []
