"""A rule in words: the name of a latent; and groups of tokens that the language model treats alike, for such names.

name_of(rule.to_json(terms))                      # "“in”, “at” before “1”, “2”"
groups = token_groups(vectors, ids, strings)      # {token id: "Paris, London, Rome"}: "tokens like Paris, London, Rome"

Groups come from k-means on the directions of the tokens' output vectors (spherical k-means, Dhillon and Modha 2001).
A group is named after the three tokens nearest to its centre.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MEMBERS = 16  # tokens in a group, on average
MOST = 1024  # groups
ROUNDS = 8
NAMED = 3  # tokens that a group is named after


def token_groups(vectors: Tensor, ids: Sequence[int], string: Callable[[int], str], seed: int = 0) -> dict[int, str]:
    """The group of each token, by name.

    Args:
        vectors: [V, d], a row a token id.
        ids: the tokens to be grouped.
        string: a token's text by its id.
        seed: of the first centres.
    """
    tokens = torch.tensor(sorted(set(ids)), dtype=torch.int64)
    if not len(tokens):
        return {}
    # what all tokens share tells none apart
    rows = vectors[tokens].float()
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    count = max(1, min(MOST, len(rows) // MEMBERS))
    draw = torch.Generator().manual_seed(seed)
    centres = rows[torch.randperm(len(rows), generator=draw)[:count]]
    nearest = torch.zeros(len(rows), dtype=torch.int64)
    for _ in range(ROUNDS):
        nearest = torch.cat([(part @ centres.T).argmax(1) for part in rows.split(4096)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        # an empty group keeps its centre
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, sums, centres)
        centres = torch.nn.functional.normalize(centres, dim=1)
    closeness = (rows * centres[nearest]).sum(1)
    members: dict[int, list[int]] = {}
    for index in closeness.argsort(descending=True, stable=True).tolist():
        members.setdefault(int(nearest[index]), []).append(index)
    names = {}
    for group in members.values():
        shown = dict.fromkeys(string(int(tokens[i])).strip().lower() for i in group)
        name = ", ".join([text for text in shown if text][:NAMED])
        names |= {int(tokens[i]): name for i in group if name}
    return names


UNCLEAR = "no clear pattern"
CLAUSES = 3  # of a rule in its name
SHOWN = 4  # values of a clause in a name
ALONE = 0.75  # share of the firing examples' weight from which one value stands for its clause
LEAST = 0.15  # of the strongest value's share, below which a value is left out of the name
LONGEST = 140  # characters of a name


def name_of(rule: dict[str, Any]) -> str:
    """A name of at most 140 characters for a rule from `Rule.to_json`, or UNCLEAR for one without clauses.

    Statements about the token itself come first, the most specific before the others; then those about its context.
    """
    parts = _without_repeats({clause["family"]: _values(clause["values"]) for clause in rule["clauses"]})
    heads = [say(parts[family]) for family, say in HEADS.items() if family in parts]
    tails = [TAILS[family](values) for family, values in parts.items() if family in TAILS]
    if not parts:
        return UNCLEAR
    if heads:
        name = " ".join([heads[0], *(f"({more})" for more in heads[1:]), *tails])
    elif set(parts) <= {"near", "topic"}:
        name = " and ".join(tails)
    else:
        name = " ".join(["tokens", *tails])
    return name if len(name) <= LONGEST else name[: LONGEST - 1].rstrip() + "…"


def _without_repeats(parts: dict[str, list[str]]) -> dict[str, list[str]]:
    """The first clauses, without those that only repeat another or say little beside it."""
    kept: dict[str, list[str]] = {}
    said: set[str] = set()
    for family, values in parts.items():
        lower = {value.lower() for value in values}
        again = family in ("token", "word") and lower <= said
        weak = bool(kept) and family in WEAK and not LEXICAL.isdisjoint(parts)
        if not again and not weak and len(kept) < CLAUSES:
            kept[family] = values
            said |= lower
    return kept


def _values(values: list[dict[str, Any]]) -> list[str]:
    """The values to be shown, each once but for case and spaces."""
    shares: dict[str, float] = {}
    for entry in values:
        text = entry["value"].strip() or entry["value"]
        same = next((known for known in shares if known.lower() == text.lower()), text)
        shares[same] = shares.get(same, 0.0) + entry["share"]
    order = sorted(shares, key=lambda text: -shares[text])
    best = shares[order[0]] if order else 0.0
    if best >= ALONE:
        return order[:1]
    return [text for text in order if shares[text] >= LEAST * best]


LEXICAL, WEAK = {"token", "word"}, {"ending", "beginning", "case", "piece"}
INVISIBLE = {"\n": "line breaks", "\t": "tabs", " ": "spaces", "": "parts of characters"}


def _quoted(values: Sequence[str], most: int = SHOWN) -> str:
    shown = [INVISIBLE.get(v, f"“{v}”") for v in values[:most]]
    return ", ".join(shown) + (", …" if len(values) > most else "")


def _alike(values: Sequence[str]) -> str:
    """The first members of the first groups."""
    groups = [
        ", ".join(f"“{member}”" for member in group.split(", ")[: 3 if len(values) == 1 else 2]) for group in values
    ]
    return "tokens like " + "; ".join(groups[:3])


def _plain(values: Sequence[str]) -> str:
    return " or ".join(values[:3])


def _dashed(before: str, after: str, values: Sequence[str]) -> str:
    return ", ".join(f"{before}{value}{after}" for value in values[:SHOWN])


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
    "whole word": "whole words",
    "start of a word": "beginnings of words",
    "middle of a word": "middles of words",
    "end of a word": "ends of words",
    "capitalised": "capitalised words",
    "lower case": "lower-case words",
    "all capitals": "words in capitals",
}


def _plural(values: Sequence[str]) -> str:
    return _plain([PLURALS.get(value, value) for value in values])


HEADS: dict[str, Callable[[list[str]], str]] = {
    "token": _quoted,
    "word": lambda values: ("in the word " if len(values) == 1 else "in the words ") + _quoted(values),
    "like": _alike,
    "kind": _plural,
    "ending": lambda values: "words ending in " + _dashed("-", "", values),
    "beginning": lambda values: "tokens beginning with " + _dashed("", "-", values),
    "case": _plural,
    "piece": _plural,
}
"""Families about the token itself, the most specific first."""

TAILS: dict[str, Callable[[list[str]], str]] = {
    "before": lambda values: f"after {_quoted(values)}",
    "previous": lambda values: f"after {_quoted(values)}",
    "next": lambda values: f"before {_quoted(values)}",
    "place": lambda values: f"at the {_plain(values)}" if values[0].startswith(("start", "first")) else _plain(values),
    "near": lambda values: f"near {_quoted(values)}",
    "topic": lambda values: f"in texts with {_quoted(values, 5)}",
}
"""Families about its context."""
