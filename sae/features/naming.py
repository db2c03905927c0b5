"""A rule in words: what a latent is called, and the whole of what was found out about it.

name_of(rule.to_json(terms))         # "“in”, “at” before “1”, “2”"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

UNCLEAR = "no clear pattern"
SHOWN = 4  # values of a clause that stand in a name
ALONE = 0.7  # share of the examples from which on one value stands for its clause
LEAST = 0.12  # of the strongest value's share, below which a value is left out of the name
LONGEST = 120  # characters of a name


def name_of(rule: dict[str, Any]) -> str:
    """A name of at most 120 characters for a rule as it is saved, or UNCLEAR for one without clauses."""
    parts = {clause["family"]: _values(clause["values"]) for clause in rule["clauses"]}
    if not parts:
        return UNCLEAR
    heads = [HEADS[family](parts[family]) for family in HEADS if family in parts]
    tails = [TAILS[family](parts[family]) for family in TAILS if family in parts]
    # several statements about the token itself: the first found says what it is, the others go into brackets
    found = heads[0] + "".join(f" ({more})" for more in heads[1:]) if heads else ""
    name = " ".join([found, *tails]).strip() if heads else " ".join(_headless(parts, tails))
    return name if len(name) <= LONGEST else name[: LONGEST - 1].rstrip() + "…"


def _values(values: list[dict[str, Any]]) -> list[str]:
    """The values to be shown, without those that differ in case or space alone."""
    shares: dict[str, float] = {}
    for entry in values:
        text = entry["value"] if not entry["value"].strip() else entry["value"].strip()
        same = next((known for known in shares if known.lower() == text.lower()), text)
        shares[same] = shares.get(same, 0.0) + entry["share"]
    best = max(shares.values(), default=0.0)
    order = sorted(shares, key=lambda text: -shares[text])
    if order and best >= ALONE:
        return order[:1]
    return [text for text in order if shares[text] >= LEAST * best] or order[:1]


def _headless(parts: dict[str, list[str]], tails: Sequence[str]) -> list[str]:
    """A name of a rule that says where, and not what."""
    if set(parts) <= {"near", "topic"}:
        return ["in texts", *[t.removeprefix("in texts ") for t in tails]]
    return ["any word", *tails]


def _quoted(values: Sequence[str], most: int = SHOWN) -> str:
    visible = {"\n": "line break", "\t": "tab", " ": "space", "": "nothing"}
    shown = [visible.get(v, f"“{v}”") for v in values[:most]]
    return ", ".join(shown) + (", …" if len(values) > most else "")


def _plain(values: Sequence[str]) -> str:
    return " or ".join(values[:3])


PLURALS = {
    "year": "years",
    "number": "numbers",
    "opening bracket": "opening brackets",
    "closing bracket": "closing brackets",
    "quotation mark": "quotation marks",
    "dash": "dashes",
    "full stop": "full stops",
    "comma": "commas",
    "colon or semicolon": "colons and semicolons",
    "line break": "line breaks",
    "symbol": "symbols",
    "word": "words",
    "accented word": "words with accents",
}

HEADS: dict[str, Callable[[list[str]], str]] = {
    "token": _quoted,
    "word": lambda values: f"in the word {_quoted(values)}" if len(values) == 1 else f"in the words {_quoted(values)}",
    "kind": lambda values: _plain([PLURALS.get(v, v) for v in values]),
    "ending": lambda values: "words ending in " + ", ".join(f"-{v}" for v in values[:SHOWN]),
    "beginning": lambda values: "tokens beginning with " + ", ".join(f"{v}-" for v in values[:SHOWN]),
    "case": lambda values: f"{_plain(values)} words",
    "piece": lambda values: _plain(values),
}
"""Families that say what the token is, the most telling first."""

TAILS: dict[str, Callable[[list[str]], str]] = {
    "before": lambda values: f"after {_quoted(values)}",
    "previous": lambda values: f"after {_quoted(values)}",
    "next": lambda values: f"before {_quoted(values)}",
    "place": lambda values: f"at {_plain(values)}" if values[0].startswith(("start", "first")) else _plain(values),
    "near": lambda values: f"near {_quoted(values)}",
    "topic": lambda values: f"in texts with {_quoted(values, 5)}",
}
"""Families that say what is around it."""
