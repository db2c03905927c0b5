"""Labelled texts: Wikipedia summaries by topic and language, and the user's own.

    tasks = built_in(documents=80)
    tasks["language"].texts, tasks["language"].labels

The built-in ones are the held-out documents of the demo text, on which the demo's autoencoders were not trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from sae.base.files import parse_json
from sae.config import ConfigError, MeasureConfig
from sae.config.measuring import ON_TEXTS
from sae.data.documents import open_documents

Row = TypeVar("Row", bound=tuple[str, ...])
"""A text and what it is labelled with."""

TOPICS = ("People", "Biology and health sciences", "Geography", "Physical sciences", "Society and social sciences")
LANGUAGES = {"en": "demo", "fr": "demo:fr", "es": "demo:es"}
SAME_TOPICS = {"Personnalités": "People", "Géographie": "Geography"}
"""A topic's name in French -> in English, of the topics that `topic and language` has in both."""
PAIRED = "topic and language"
LEAST = 10
"""Texts that a class needs."""
TRAINING_SHARE = 0.6
"""Of texts and words, for probes and choices of latents."""


class Task(NamedTuple):
    """Texts of some classes."""

    name: str
    texts: list[str]
    labels: np.ndarray
    """The class of every text, str [n]."""
    other: np.ndarray | None = None
    """A second attribute of every text, where the task has one: two classes of each, all four cells alike in size."""

    @property
    def classes(self) -> list[str]:
        """In alphabetical order."""
        return sorted(set(self.labels.tolist()))


def built_in(documents: int) -> dict[str, Task]:
    """`topic` (5 classes), `language` (3), and `topic and language` (two of each, crossed), by name.

    Args:
        documents: of each class, or of each of the four cells, at most.

    Raises:
        FetchError: the demo text is not in the cache and cannot be fetched.
    """
    by_language = {language: _summaries(spec) for language, spec in LANGUAGES.items()}
    topic = [(text, label) for name in TOPICS for text, label in by_language["en"] if label == name]
    language = [(text, name) for name, texts in by_language.items() for text, _ in texts[:documents]]
    cells = [
        (text, SAME_TOPICS.get(label, label), name)
        for name in ("en", "fr")
        for text, label in by_language[name]
        if SAME_TOPICS.get(label, label) in SAME_TOPICS.values()
    ]
    return {
        "topic": _task("topic", _first(topic, documents)),
        "language": _task("language", language),
        PAIRED: _task(PAIRED, _even(cells, documents)),
    }


def read_labels(path: Path, documents: int) -> Task:
    """The user's labelled texts: a .jsonl file of {"text", "label"} and, for SCR, "other", a second attribute.

    Raises:
        ConfigError: no such file, or a row that is not like this, one class alone, or too few texts of a class.
    """
    if not path.is_file():
        raise ConfigError(f"--labels {path}: no such file")
    rows: list[tuple[str, ...]] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
            row = (record["text"], str(record["label"]), *([str(record["other"])] if "other" in record else []))
            if not isinstance(row[0], str) or not row[0].strip():
                raise TypeError("text is empty or no string")
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f'--labels {path}: line {number}: expected {{"text": ..., "label": ...}} ({error!r})'
            ) from error
        rows.append(row)
    if len({len(row) for row in rows}) > 1:
        raise ConfigError(f'--labels {path}: expected "other" in all rows or in none')
    if rows and len(rows[0]) == 3:
        cells = Counter(row[1:] for row in rows)
        if len({label for label, _ in cells}) != 2 or len({other for _, other in cells}) != 2 or len(cells) != 4:
            raise ConfigError(f'--labels {path}: with "other", expected two classes of each and texts of all four')
        rows = _even(rows, documents)
    else:
        rows = _first(rows, documents)
    sizes = Counter(row[1] for row in rows)
    few = [f"{label} has {count}" for label, count in sizes.items() if count < LEAST]
    if len(sizes) < 2 or few:
        raise ConfigError(
            f"--labels {path}: expected two classes or more with {LEAST} texts each, got {len(sizes)} classes"
            + (f" ({', '.join(few)})" if few else "")
        )
    return _task(path.stem, rows)


def tasks_of(config: MeasureConfig) -> list[Task]:
    """The tasks that the measures asked for have a use for; all of the user's own, so that reasons can be told.

    Raises:
        ConfigError, FetchError: as `read_labels` and `built_in`.
    """
    if not set(ON_TEXTS) & set(config.measures):
        return []
    if config.labels is not None:
        return [read_labels(config.labels, config.documents)]
    tasks = built_in(config.documents).values()
    return [task for task in tasks if any(unusable(name, task) is None for name in config.measures if name in ON_TEXTS)]


def unusable(name: str, task: Task) -> str | None:
    """Why a measure has no use for a task's texts; None where it has."""
    if name == "scr":
        return None if task.other is not None else "it has no second attribute"
    if task.other is not None:
        return "its texts have a second attribute, which goes to scr"
    if name == "tpp" and len(task.classes) < 3:
        return "of two classes each is the other's complement; expected three or more"
    return None


def split(cells: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Which units are for training, bool [n]: the same share of every cell, at least one and not all of it.

    Args:
        cells: the class of every unit [n].
        draw: of the split.
    """
    training = np.zeros(len(cells), dtype=bool)
    for cell in sorted(set(cells.tolist())):
        units = draw.permutation(np.flatnonzero(cells == cell))
        count = min(max(1, round(TRAINING_SHARE * len(units))), len(units) - 1)
        training[units[:count]] = True
    return training


def _summaries(spec: str) -> list[tuple[str, str]]:
    """Text and topic of the held-out documents, duplicates once."""
    documents = open_documents(spec, split="heldout")
    return list({document.text: (document.text, document.label or "") for document in documents}.values())


def _first(rows: Sequence[Row], count: int) -> list[Row]:
    """At most so many of each class, the first ones."""
    seen: Counter[tuple[str, ...]] = Counter()
    kept = []
    for row in rows:
        seen[row[1:]] += 1
        if seen[row[1:]] <= count:
            kept.append(row)
    return kept


def _even(rows: Sequence[Row], count: int) -> list[Row]:
    """As many of every cell."""
    smallest = min(Counter(row[1:] for row in rows).values())
    return _first(rows, min(count, smallest))


def _task(name: str, rows: list) -> Task:
    texts, labels, *other = (list(column) for column in zip(*rows, strict=True))
    return Task(name, texts, np.array(labels), np.array(other[0]) if other else None)
