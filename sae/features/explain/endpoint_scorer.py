"""Names judged by a model at an endpoint, which sees the name and five texts at once, as in delphi.

    scorer = EndpointScorer(EndpointChat("http://127.0.0.1:8000/v1", "qwen", None))
    scorer.answer(questions)

An answer is the chance of 1 against 0 where the endpoint tells chances, else 1 or 0. For simulation the model writes a
number from 0 to 9 for every token of one text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np

from sae.features.explain.chats import Prompt
from sae.features.explain.endpoint import EndpointChat, Reply
from sae.features.explain.explainers import Marked
from sae.features.explain.questions import Answer, Name, Question

TEXTS_AT_ONCE = 5
DETECT = (
    "You are given a description of what a unit of a neural network reacts to, and numbered texts. For each text say 1 "
    "if the unit reacts to something in it, 0 if not. Answer with a JSON list of numbers alone, one a text, such as "
    "[1, 0, 0]."
)
FUZZ = (
    "You are given a description of what a unit of a neural network reacts to, and numbered texts with tokens between "
    "<< and >>. For each text say 1 if those tokens fit the description, 0 if not. Answer with a JSON list of numbers "
    "alone, one a text, such as [1, 0, 0]."
)
SIMULATE = (
    "You are given a description of what a unit of a neural network reacts to, and the tokens of a text. Say for each "
    "token how strongly the unit reacts to it, from 0 (not at all; most tokens) to 9. Answer with a JSON list of "
    "numbers alone, as many as there are tokens."
)


class EndpointScorer:
    """Judges the words of names."""

    reads_words = True
    texts_each = 10

    def __init__(self, chat: EndpointChat) -> None:
        self.chat, self.name = chat, f"endpoint:{chat.name}"
        # every thread gets a few of them
        self.questions_at_once = 4 * TEXTS_AT_ONCE * chat.at_once

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """As `Scorer.answer`; ExplainerError where the endpoint fails."""
        answers: list[Answer] = [None] * len(questions)
        groups = grouped(questions)
        replies = self.chat.replies([prompt_of([questions[n] for n in group]) for group in groups], chances=True)
        for group, reply in zip(groups, replies, strict=True):
            if questions[group[0]].measure == "simulation":
                answers[group[0]] = read_strengths(reply.text, len(questions[group[0]].text.tokens))
            else:
                for n, verdict in zip(group, read_verdicts(reply, len(group)), strict=True):
                    answers[n] = verdict
        return answers

    def threshold(self, name: Name) -> float:
        return 0.5


def grouped(questions: Sequence[Question]) -> list[list[int]]:
    """Numbers of the questions that are asked together: up to five successive texts of one name and measure."""
    groups: list[list[int]] = []
    for number, question in enumerate(questions):
        before = questions[number - 1] if number else None
        together = before is not None and question.measure == before.measure != "simulation"
        if together and question.name == before.name and len(groups[-1]) < TEXTS_AT_ONCE:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def prompt_of(questions: Sequence[Question]) -> Prompt:
    """The prompt for questions of one name and measure."""
    measure, name = questions[0].measure, questions[0].name.words
    if measure == "simulation":
        tokens = "\n".join(
            f"{i}. {json.dumps(t, ensure_ascii=False)}" for i, t in enumerate(questions[0].text.tokens, 1)
        )
        count = len(questions[0].text.tokens)
        return Prompt(SIMULATE, f"Description: {name}\n\n{tokens}\n\n{count} numbers:", 3 * count + 10)
    shown = []
    for question in questions:
        marks = [] if question.marks is None else question.marks.tolist()
        text = Marked(question.text.tokens, marks or [False] * len(question.text.tokens))
        shown.append(text.marked() if measure == "fuzzing" else text.plain())
    listed = "\n".join(f"{i}. {text}" for i, text in enumerate(shown, 1))
    return Prompt(FUZZ if measure == "fuzzing" else DETECT, f"Description: {name}\n\n{listed}\n\nAnswer:", 40)


def read_verdicts(reply: Reply, count: int) -> list[float | None]:
    """The answers to `count` texts: chances where there are as many, else the digits of the first list, else None."""
    if reply.chances is not None and len(reply.chances) == count:
        return list(reply.chances)
    bracketed = re.search(r"\[(.*?)\]", reply.text, flags=re.DOTALL)
    digits = re.findall(r"(?<![\d.])[01](?![\d.])", bracketed[1] if bracketed else reply.text)
    return [float(digit) for digit in digits] if len(digits) == count else [None] * count


def read_strengths(text: str, count: int) -> np.ndarray | None:
    """The numbers of the first list, float64 [count]; None where they are not `count` numbers from 0 to 9."""
    bracketed = re.search(r"\[([\d\s,.]*)\]", text)
    numbers = re.findall(r"\d+(?:\.\d+)?", bracketed[1]) if bracketed else []
    strengths = np.array([float(number) for number in numbers])
    return strengths if len(strengths) == count and (strengths <= 9).all() else None
