"""What scorers are asked: whether a name fits a text (detection) or marked tokens (fuzzing), or how strongly each token
(simulation).

class Always:                                  # a scorer
    name, threshold = "always", 0.5
    def answer(self, questions): return [np.float64(1)] * len(questions)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from sae.features.explain.texts import Text

Measure = Literal["detection", "fuzzing", "simulation"]


class Name(NamedTuple):
    """A name as scorers read it."""

    words: str
    rule: dict[str, Any] | None = None
    """The rule that the words are made from, as `Rule.to_json` writes it; a name by a model has none of its own."""


class Question(NamedTuple):
    """One text to be judged by one name."""

    measure: Measure
    name: Name
    text: Text
    marks: np.ndarray | None = None
    """For fuzzing, bool [tokens]."""


Answer = float | np.ndarray | None
"""For detection and fuzzing a number, the larger the surer; for simulation a number for each token, float [tokens].
None where the scorer gave no answer that can be read."""


class Scorer(Protocol):
    """Judges names by texts."""

    name: str
    """`rules`, `local:MODEL` or `endpoint:MODEL`."""
    reads_words: bool
    """Whether it judges the words of a name, whose order can be shuffled as a control."""
    questions_at_once: int
    """Questions to be gathered for one `answer`; as few as it can use, since answers are saved after it."""
    texts_each: int
    """Usual number of texts of each kind."""

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer for each question, in their order."""
        ...

    def threshold(self, name: Name) -> float:
        """The answer above which it says yes."""
        ...


def shuffled(name: Name, draw: np.random.Generator) -> Name:
    """The same words in another order, as a control: what is left of the score is owed to the words alone."""
    words = name.words.split()
    return Name(" ".join(words[i] for i in draw.permutation(len(words))))
