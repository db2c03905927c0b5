"""Names are scored: questions about a latent's texts go to a scorer, and its answers become scores with controls.

    sheet = Sheet(latent=17, name=name, other=other, texts=texts)
    entry = score(sheet, RuleScorer(pool, scan), MEASURES, seed=0)
    entry["detection"]["near"]["value"]

Each measure is taken against random texts, against those of near latents, and against both:

- **detection**: texts in which the latent fires, against silent ones;
- **fuzzing**: the activating tokens marked, against as many others of the same text (random), or against the tokens at
  which a near latent fires, in a text where this one is silent (near);
- **simulation**: correlation of predicted with true activations over all tokens of firing and silent texts.

The same questions are asked of two controls: the name of another latent, and the words of the name in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from sae.features.explain.measures import Correlation, Separation, correlation, separation
from sae.features.explain.questions import Answer, Measure, Name, Question, Scorer, shuffled
from sae.features.explain.texts import LatentTexts, Text, right_marks, wrong_marks

Kind = Literal["fires", "random", "near"]
AGAINST: dict[str, tuple[Kind, ...]] = {"random": ("random",), "near": ("near",), "both": ("random", "near")}
"""Name of a comparison -> the kinds of texts that are negative in it."""
CHANCE = {"detection": 0.5, "fuzzing": 0.5, "simulation": 0.0}
DIGITS = 4


class Sheet(NamedTuple):
    """What is needed to score a latent's name."""

    latent: int
    name: Name
    other: Name | None
    """Another latent's name, as a control; None where there is no other."""
    texts: LatentTexts


class Item(NamedTuple):
    """A text as it is shown."""

    measure: Measure
    kind: Kind
    """fires: yes is right; random and near: no is."""
    text: Text
    marks: np.ndarray | None = None


class Asked(NamedTuple):
    """A sheet's questions: every item for every name."""

    items: list[Item]
    names: dict[str, Name]
    """`own`, `other`, `shuffled`."""

    @property
    def questions(self) -> list[Question]:
        return [Question(i.measure, name, i.text, i.marks) for name in self.names.values() for i in self.items]


def ask(sheet: Sheet, scorer: Scorer, measures: Sequence[Measure], seed: int) -> Asked:
    """The questions about a latent's name; marks, order and shuffled words depend on the seed and the latent alone."""
    draw = np.random.default_rng([seed, sheet.latent, 1])
    names = {"own": sheet.name} | ({} if sheet.other is None else {"other": sheet.other})
    if scorer.reads_words:
        names["shuffled"] = shuffled(sheet.name, draw)
    items = []
    for measure in measures:
        shown = _items(measure, sheet.texts, draw)
        # a scorer that sees several texts at once must not see those of one kind together
        items += [shown[n] for n in draw.permutation(len(shown))]
    return Asked(items, names)


def read(asked: Asked, answers: Sequence[Answer], scorer: Scorer, seed: int) -> dict[str, Any]:
    """The scores that the answers amount to, as JSON values.

    Args:
        asked: the questions.
        answers: one a question, in the order of `asked.questions`.
        scorer: who answered.
        seed: of the bootstrap.

    Returns:
        "words" judged, "texts" (how many of each kind), "near" (latents of the hard negatives), "unanswered" (share),
        and for each measure {"random" | "near" | "both": {"value", "low", "high", "other", "shuffled"}}, with
        "accuracy" (balanced) for detection and fuzzing. None stands for what could not be measured.
    """
    size = len(asked.items)
    by_name = {who: answers[n * size : (n + 1) * size] for n, who in enumerate(asked.names)}
    entry: dict[str, Any] = {"words": asked.names["own"].words, "texts": {}, "near": []}
    entry["unanswered"] = round(sum(answer is None for answer in answers) / max(1, len(answers)), DIGITS)
    for measure in dict.fromkeys(item.measure for item in asked.items):
        rows = [n for n, item in enumerate(asked.items) if item.measure == measure]
        items = [asked.items[n] for n in rows]
        entry["texts"][measure] = {kind: sum(i.kind == kind for i in items) for kind in ("fires", "random", "near")}
        entry["near"] = sorted({i.text.near for i in items if i.text.near is not None} | set(entry["near"]))
        scores = {}
        for against, kinds in AGAINST.items():
            values: dict[str, Any] = {}
            for who, name in asked.names.items():
                said = [by_name[who][n] for n in rows]
                threshold = scorer.threshold(name)
                measured = _measured(measure, items, said, kinds, threshold, seed)
                if who == "own":
                    values = {} if measured is None else measured.to_json()
                else:
                    values[who] = None if measured is None else measured.value
            scores[against] = {name: None if v is None else round(v, DIGITS) for name, v in values.items()}
            if "value" not in values:
                scores[against] = None
        entry[measure] = scores
    return entry


def score(sheet: Sheet, scorer: Scorer, measures: Sequence[Measure], seed: int) -> dict[str, Any]:
    """The scores of one name; see `read`."""
    asked = ask(sheet, scorer, measures, seed)
    return read(asked, scorer.answer(asked.questions), scorer, seed)


def _items(measure: Measure, texts: LatentTexts, draw: np.random.Generator) -> list[Item]:
    if measure != "fuzzing":
        return [Item(measure, kind, text) for kind, group in texts._asdict().items() for text in group]
    items = []
    for text in texts.fires:
        if (wrong := wrong_marks(text.activation, draw)) is not None:
            items += [
                Item(measure, "fires", text, right_marks(text.activation)),
                Item(measure, "random", text, wrong),
            ]
    for text in texts.near:
        assert text.near_activation is not None, "a text of a near latent has its activations"
        items.append(Item(measure, "near", text, right_marks(text.near_activation)))
    return items


def _measured(
    measure: Measure, items: Sequence[Item], said: Sequence[Answer], kinds: Sequence[Kind], threshold: float, seed: int
) -> Separation | Correlation | None:
    """One measure against some kinds of texts; a missing answer is undecided, or predicts no activation."""
    rows = [n for n, item in enumerate(items) if item.kind == "fires" or item.kind in kinds]
    if not any(items[n].kind in kinds for n in rows):
        return None
    documents = np.array([items[n].text.document for n in rows], np.int64)
    if measure == "simulation":
        true = [items[n].text.activation for n in rows]
        predicted = [np.zeros(len(items[n].text.tokens)) if said[n] is None else np.asarray(said[n]) for n in rows]
        return correlation(true, predicted, documents, seed=seed)
    positive = np.array([items[n].kind == "fires" for n in rows])
    values = np.array([threshold if said[n] is None else said[n] for n in rows], np.float64)
    return separation(values, positive, documents, threshold=threshold, seed=seed)
