"""The names of many latents are scored, saved as they come, and summed up.

    ScoringPass(annotations, source, names, scorer, config).work(latents, bar, stop, hint)
    rows, agreements = summary(store.annotations.scores())

Scores are saved every few seconds, when the pass ends and when it is stopped; a pass that was killed goes on with the
latents that are left. What a latent scores does not depend on which others are scored in the same pass.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sae.base.progress import Bar, StopSignal
from sae.config import ExplainConfig
from sae.config.features import MEASURES
from sae.features.explain.measures import agreement
from sae.features.explain.questions import Name, Scorer
from sae.features.explain.score import AGAINST, CHANCE, Asked, Sheet, ask, read
from sae.features.explain.scoring import mean_interval
from sae.features.explain.texts import TextSource
from sae.features.store.annotations import Annotations

SAVE_SECONDS = 10.0


class ScoringPass:
    """One scorer's judgement of many names.

    Args:
        annotations: where scores are saved.
        source: draws each latent's texts.
        names: the names that the scorer can judge, by latent; the controls are among them.
        scorer: who judges.
        config: which measures, and on how many texts.
    """

    def __init__(
        self,
        annotations: Annotations,
        source: TextSource,
        names: Mapping[int, Name],
        scorer: Scorer,
        config: ExplainConfig,
    ) -> None:
        self.annotations, self.source, self.names, self.scorer, self.config = annotations, source, names, scorer, config
        self._latents = list(names)

    def work(self, latents: Sequence[int], bar: Bar, stop: StopSignal, hint: str) -> None:
        """Score the names of some latents.

        Raises:
            Interrupted: SIGINT or SIGTERM; what was scored is saved.
            ExplainerError: the scorer fails; likewise.
        """
        pending: dict[int, dict[str, Any]] = {}
        saved = time.monotonic()
        try:
            for group in self._groups(latents):
                questions = [question for _, asked in group for question in asked.questions]
                answers = self.scorer.answer(questions)
                begin = 0
                for latent, asked in group:
                    mine = answers[begin : begin + len(asked.questions)]
                    begin += len(mine)
                    pending[latent] = read(asked, mine, self.scorer, self.config.seed)
                bar.advance(len(group))
                if time.monotonic() - saved > SAVE_SECONDS:
                    self._save(pending)
                    pending, saved = {}, time.monotonic()
                stop.check(hint)
        finally:
            self._save(pending)

    def _groups(self, latents: Sequence[int]) -> Iterator[list[tuple[int, Asked]]]:
        """Latents with their questions, in groups that the scorer answers together."""
        group: list[tuple[int, Asked]] = []
        for latent in latents:
            group.append((latent, self.asked(latent)))
            if sum(len(asked.items) * len(asked.names) for _, asked in group) >= self.scorer.questions_at_once:
                yield group
                group = []
        if group:
            yield group

    def asked(self, latent: int) -> Asked:
        """The questions about one latent's name."""
        each = self.config.judged or self.scorer.texts_each
        texts = self.source.texts(latent, each, self.config.seed)
        sheet = Sheet(latent, self.names[latent], self._other(latent), texts)
        return ask(sheet, self.scorer, self.config.measures, self.config.seed)

    def _other(self, latent: int) -> Name | None:
        """The name of another latent, which is no neighbour and has other words."""
        near = {latent, *self.source.neighbours(latent)}
        words = self.names[latent].words
        draw = np.random.default_rng([self.config.seed, latent, 2])
        for number in draw.integers(len(self._latents), size=20).tolist():
            other = self.names[self._latents[number]]
            if self._latents[number] not in near and other.words != words:
                return other
        return None

    def _save(self, pending: Mapping[int, dict[str, Any]]) -> None:
        if not pending:
            return
        self.annotations.set_scores(self.scorer.name, pending)
        if self.scorer.reads_words and "detection" in self.config.measures:
            names = self.annotations.names()
            self.annotations.set_names(
                {i: _with_score(names[i], entry) for i, entry in pending.items() if names[i]["method"] != "rules"}
            )


def judgeable(names: Mapping[int, Mapping[str, Any]], *, words: bool) -> dict[int, Name]:
    """The names that a scorer of words, or of rules, can judge."""
    if words:
        return {latent: Name(name["name"]) for latent, name in names.items()}
    return {
        latent: Name(name.get("rule_name") or name["name"], name["rule"])
        for latent, name in names.items()
        if name.get("rule")
    }


def is_scored(scored: Mapping[str, Any], name: Name, scorer: str, config: ExplainConfig) -> bool:
    """Whether a latent's scores have one of this name by this scorer for every measure."""
    entry = scored.get(scorer)
    return entry is not None and entry["words"] == name.words and all(m in entry for m in config.measures)


def _with_score(name: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """A model's name with its detection, against both kinds of texts, as the score that tables sort by."""
    detection = entry["detection"]["both"] or {}
    return {**name, "score": detection.get("value"), "low": detection.get("low"), "high": detection.get("high")}


def summary(
    scores: Mapping[int, Mapping[str, Mapping[str, Any]]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Means over latents, and how far scorers agree, as rows of tables.

    Args:
        scores: latent -> scorer -> its entry, see `score.read`.

    Returns:
        A row for each scorer, measure and kind of negative texts ("score", "other name", "shuffled words": means over
        latents with 95% intervals; "chance"; "latents"), and one for each two scorers, measure and kind ("rank
        correlation" over the latents that both scored by the same words, with its interval, and their number).
    """
    scorers = sorted({scorer for entries in scores.values() for scorer in entries})
    rows = [
        row
        for scorer, measure, against in itertools.product(scorers, MEASURES, AGAINST)
        if (row := _row([e[scorer] for e in scores.values() if scorer in e], scorer, measure, against))
    ]
    agreements = []
    for (first, second), measure, against in itertools.product(itertools.combinations(scorers, 2), MEASURES, AGAINST):
        pairs = [
            pair
            for entries in scores.values()
            if first in entries and second in entries and entries[first]["words"] == entries[second]["words"]
            and None not in (pair := tuple(_value(entries[s], measure, against) for s in (first, second)))
        ]  # fmt: skip
        values = np.array(pairs, np.float64).reshape(-1, 2)
        if (agreed := agreement(values[:, 0], values[:, 1])) is not None:
            latents = agreed.pop("n")
            agreements.append(
                {
                    "scorers": f"{first}, {second}",
                    "measure": measure,
                    "against": against,
                    "rank correlation": agreed,
                    "latents": latents,
                }
            )
    return rows, agreements


def _row(entries: Sequence[Mapping[str, Any]], scorer: str, measure: str, against: str) -> dict[str, Any] | None:
    measured = [e[measure][against] for e in entries if _value(e, measure, against) is not None]
    if not measured:
        return None

    def mean(field: str) -> dict[str, float] | None:
        values = [m[field] for m in measured if m.get(field) is not None]
        return mean_interval(np.array(values)) if values else None

    return {
        "scorer": scorer,
        "measure": measure,
        "against": against,
        "score": mean("value"),
        "accuracy": mean("accuracy"),
        "other name": mean("other"),
        "shuffled words": mean("shuffled"),
        "chance": CHANCE[measure],
        "latents": len(measured),
    }


def _value(entry: Mapping[str, Any], measure: str, against: str) -> float | None:
    compared = (entry.get(measure) or {}).get(against)
    return None if compared is None else compared["value"]
