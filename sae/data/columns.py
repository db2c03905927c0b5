"""Which column of a data set is read, and how: as text, as a conversation, or as token ids.

    columns = columns_of(first_rows)
    choose_column("data.jsonl", columns, asked=None)      # ("messages", "chat")

Only columns of well-known names are taken without being asked for: a set whose one column of strings is `source` or
`id` would otherwise be trained on its own labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

TEXT, CHAT, IDS = "text", "chat", "lists of whole numbers"
OBJECTS = "objects"
KNOWN = {
    TEXT: ("text", "content", "contents", "raw_content", "document", "article", "passage", "story", "code"),
    CHAT: ("messages", "conversations", "conversation", "chat"),
    IDS: ("input_ids", "tokens", "token_ids"),
}
"""Kind -> names of such columns in public data sets, the likeliest first; a kind is preferred to those below it."""
EMPTY = "empty"
SAMPLES, SAMPLE_LENGTH = 2, 40


class DataError(ValueError):
    """A data set that cannot be read as asked; the message names it, the cause and the remedy."""


class TooLong:
    """In place of a value that was not read because it is longer than the limit."""


class Column(NamedTuple):
    """What the first rows show of a column."""

    kind: str
    """TEXT, CHAT or IDS (which can be read); EMPTY (null in all first rows); else a description of the values."""
    samples: tuple[object, ...]
    """The first values that are not null, at most SAMPLES."""

    def describe(self, name: str) -> str:
        """Name, kind and sample values, for people."""
        samples = ", ".join(_cut(repr(value)) for value in self.samples)
        return f"{name} ({self.kind})" + (f" {samples}" if samples else "")


def columns_of(records: Sequence[Mapping[str, Any]], names: Iterable[str] = ()) -> dict[str, Column]:
    """Columns by name, from the first rows; `names` are included even if no row has them."""
    values: dict[str, list[object]] = {name: [] for name in names}
    for record in records:
        for name, value in record.items():
            values.setdefault(name, []).append(value)
    return {name: _column([v for v in column if v is not None]) for name, column in values.items()}


def choose_column(spec: str, columns: Mapping[str, Column], asked: str | None) -> tuple[str, str]:
    """(Name, kind) of the column to read.

    Raises:
        DataError: `asked` is no column or cannot be read, or nothing was asked and no column has a known name; lists
            all columns with their kinds and two values of each.
    """
    if not columns:
        raise DataError(f"{spec}: is empty")
    listing = ";\n  ".join(column.describe(name) for name, column in columns.items())
    if asked is not None:
        if asked not in columns:
            raise DataError(f"text_field: {spec} has no column {asked!r}; it has {listing}")
        kind = columns[asked].kind
        if kind not in (*KNOWN, EMPTY):
            raise DataError(
                f"text_field: column {asked!r} of {spec} holds {kind}; expected text, a conversation or a list of "
                f"token ids; it has {listing}"
            )
        return asked, _kind_by_name(asked) if kind == EMPTY else kind
    for empty in (False, True):  # a column without a value in the first rows only if there is no other
        for kind, names in KNOWN.items():
            for known in names:
                for name, column in columns.items():
                    if name.lower() == known and column.kind == (EMPTY if empty else kind):
                        return name, kind
    known = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in KNOWN.items())
    raise DataError(
        f"text_field: {spec} has no column of a well-known name ({known}); name one with --text-field; it has {listing}"
    )


def passed_over(columns: Mapping[str, Column], name: str) -> list[str]:
    """Other columns of well-known names that could have been read: `input_ids (lists of whole numbers)`."""
    return [
        f"{other!r} ({column.kind})"
        for other, column in columns.items()
        if other != name and other.lower() in KNOWN.get(column.kind, ())
    ]


def is_conversation(value: object) -> bool:
    """Whether a value is a list of messages: objects with a `role` (OpenAI) or `from` (ShareGPT)."""
    if isinstance(value, dict):  # a list of objects, as older releases of `datasets` write it
        return isinstance(value.get("role") or value.get("from"), list)
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(part, dict) and isinstance(part.get("role") or part.get("from"), str) for part in value)
    )


def _column(values: list[object]) -> Column:
    kinds = Counter(_kind_of(value) for value in values)
    kinds.pop("empty lists", None) if len(kinds) > 1 else None
    readable = [kind for kind, _ in kinds.most_common() if kind in KNOWN]
    kind = readable[0] if readable else next(iter(kinds), EMPTY)
    if len(kinds) > 1 and not readable:
        kind = "mixed values"
    return Column(kind, tuple(values[:SAMPLES]))


def _kind_of(value: Any) -> str:
    if hasattr(value, "tolist"):  # arrays and numbers of numpy
        value = value.tolist()
    if isinstance(value, (str, TooLong)):
        return TEXT
    if is_conversation(value):
        return CHAT
    if isinstance(value, (list, tuple)):
        if len(value) == 0:
            return "empty lists"
        kinds = {_kind_of(part) for part in value}
        if kinds == {"whole numbers"}:
            return IDS
        return f"lists of {kinds.pop()}" if len(kinds) == 1 else "lists of mixed values"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "whole numbers"
    if isinstance(value, float):
        return "numbers"
    return OBJECTS if isinstance(value, dict) else type(value).__name__


def _kind_by_name(name: str) -> str:
    return next((kind for kind, names in KNOWN.items() if name.lower() in names), TEXT)


def _cut(text: str) -> str:
    return text if len(text) <= SAMPLE_LENGTH else text[: SAMPLE_LENGTH - 1] + "…"
