"""Latents are named, a batch at a time: by rules, and by a model that is shown examples.

store.annotations.set_names(name_batch(pool, latents, config, models))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sae.config import ExplainConfig
from sae.features.explain.chats import Chat, Prompt
from sae.features.explain.endpoint import EndpointChat
from sae.features.explain.examples import Examples, Pool
from sae.features.explain.explainers import name_prompt, read_name
from sae.features.explain.induction import Rule, induce
from sae.features.explain.models import Models
from sae.features.explain.naming import name_of
from sae.features.explain.scoring import auroc, judge
from sae.features.store.keys import FeatureError

SCORES = ("score", "control", "score_random", "score_neighbours", "precision", "recall")
PROMOTED = 8  # tokens that the latent makes likely, shown to the explainer


class LatentRule(NamedTuple):
    """A latent with its rule and examples."""

    latent: int
    rule: Rule
    examples: Examples


def name_batch(pool: Pool, latents: Sequence[int], config: ExplainConfig, models: Models) -> dict[int, dict[str, Any]]:
    """Names of some latents, each with the scores of its own rule and of another latent's.

    A model's name has no score yet, and its rule's name and score beside it.
    """
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
        score = _score(mine, other, len(pool.terms), config)
        names[mine.latent] = {"name": name_of(rule), "method": "rules", "rule": rule, **score}
    if models.explainer is not None:
        prompts = [prompt_for(pool, mine.latent, mine.examples, config) for mine in rules]
        for mine, answer in zip(rules, _replies(models.explainer, prompts), strict=True):
            by_rule = names[mine.latent]
            names[mine.latent] = {
                **by_rule,
                **dict.fromkeys(("low", "high", *SCORES)),
                "rule_name": by_rule["name"],
                "rule_score": by_rule["score"],
                "method": models.method,
                "name": read_name(answer),
            }
    return names


def prompt_for(pool: Pool, latent: int, examples: Examples, config: ExplainConfig) -> Prompt:
    """What the model is shown of a latent: its strongest examples and the tokens that it makes likely."""
    fit = examples.fit
    strongest = np.argsort(-fit.weight * fit.positive, kind="stable")[: min(config.examples, int(fit.positive.sum()))]
    shown = [pool.marked(latent, int(fit.place[row])) for row in strongest]
    return name_prompt(shown, _promoted(pool, latent))


def _replies(chat: Chat, prompts: Sequence[Prompt]) -> list[str]:
    if isinstance(chat, EndpointChat):
        return [reply.text for reply in chat.replies(prompts)]
    return [chat.reply(prompt) for prompt in prompts]


def _promoted(pool: Pool, latent: int) -> list[str]:
    """The tokens that the atom makes most likely; none where logits are undefined."""
    try:
        return [entry["token"] for entry in pool.store.logits(latent)["top"][:PROMOTED]]
    except FeatureError:
        return []


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
