"""A language model names a latent from the examples to learn from, and judges the name on the held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sae.config import ExplainConfig
from sae.features.explain.examples import Examples, Pool
from sae.features.explain.explainers import Chat, Marked, ask_name, ask_verdicts
from sae.features.explain.scoring import judge
from sae.features.store.keys import FeatureError

SURE = 0.75  # a verdict is 0, 0.5 (no clear answer) or 1
PROMOTED = 8  # tokens that the latent makes likely, shown to the explainer


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
