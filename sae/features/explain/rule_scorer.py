"""Names judged by their rules, without a model: a token's prediction is the score of the rule there.

    scorer = RuleScorer(pool, scan)
    scorer.answer(questions)

Detection takes a text's largest prediction, fuzzing the mean over the marked tokens, simulation all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae.features.explain.examples import Pool
from sae.features.explain.induction import Rule
from sae.features.explain.predicates import gather
from sae.features.explain.questions import Answer, Name, Question
from sae.features.explain.scan import Scan


class RuleScorer:
    """Judges names that have a rule.

    Args:
        pool: describes tokens.
        scan: the tokens that questions are about.
    """

    name, reads_words = "rules", False
    questions_at_once, texts_each = 1024, 40

    def __init__(self, pool: Pool, scan: Scan) -> None:
        self.terms = pool.terms
        self.facts = gather([pool.facts(int(place)) for place in scan.place], pool.terms)

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """As `Scorer.answer`; no question stays without one."""
        answers: list[Answer] = [None] * len(questions)
        by_rule: dict[int, list[int]] = {}
        for number, question in enumerate(questions):
            by_rule.setdefault(id(question.name.rule), []).append(number)
        for numbers in by_rule.values():
            rows, inverse = np.unique(np.concatenate([questions[n].text.rows for n in numbers]), return_inverse=True)
            predicted = self._predict(questions[numbers[0]].name, rows)[inverse]
            begin = 0
            for n in numbers:
                here = predicted[begin : begin + len(questions[n].text.rows)]
                answers[n] = _answer(questions[n], here)
                begin += len(here)
        return answers

    def threshold(self, name: Name) -> float:
        return self._rule(name).threshold

    def _predict(self, name: Name, rows: np.ndarray) -> np.ndarray:
        """The rule's scores of some tokens, float64 [rows]."""
        rule = self._rule(name)
        facts = {clause.family: self.facts[clause.family].take(rows) for clause in rule.clauses}
        return rule.score(facts, len(self.terms)) if facts else np.zeros(len(rows))

    def _rule(self, name: Name) -> Rule:
        assert name.rule is not None, "names without a rule are left out before"
        return Rule.from_json(name.rule, self.terms)


def _answer(question: Question, predicted: np.ndarray) -> Answer:
    if question.measure == "simulation":
        return predicted
    if question.measure == "fuzzing":
        return float(predicted[question.marks].mean())
    return float(predicted.max())
