"""Filter and sort of the table against the plainest Python, and the files of the page."""

from __future__ import annotations

import hashlib
import math
import re

import numpy as np
import pytest

from sae.browser.app import STATIC
from sae.browser.listing import FIELDS, NUMBERS, Listing, Marks, Query, QueryError
from sae.browser.opened import curves
from sae.features.store import writer

WIDTH = 500
NAMES = {3: {"name": "Zebra", "score": 0.9}, 7: {"name": "apple", "score": None}, 400: {"name": "Mango"}}
NOTES = {7: {"label": "Ärger", "bookmark": True, "note": None}, 9: {"label": None, "bookmark": True, "note": "apples"}}
MARKS = Marks(NAMES, NOTES, revision=1)


@pytest.fixture(scope="module")
def listing() -> Listing:
    draw = np.random.default_rng(0)
    scalars = np.zeros(WIDTH, writer.FIELDS)
    for field in set(FIELDS.values()) - {"count"}:
        # few distinct values, so that ties are tried; some unknown
        scalars[field] = draw.integers(0, 20, WIDTH) / 4
        if field in ("score", "nearest_cos", "entropy"):
            scalars[field][draw.random(WIDTH) < 0.3] = np.nan
    scalars["count"] = draw.integers(0, 5, WIDTH)
    scalars["top_token"] = draw.choice([" Apple", "zèbre", "", "<b>"], WIDTH)
    stability = draw.random(WIDTH).round(1).astype(np.float32)
    stability[draw.random(WIDTH) < 0.3] = np.nan
    return Listing(scalars, {3: 0.9}, stability)


def values(listing: Listing, name: str) -> list[float | None]:
    return [listing.row(i, MARKS)[name] for i in range(WIDTH)]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("sign", ["", "-"])
def test_sorting_keeps_ties_in_order_and_the_unknown_last(listing: Listing, name: str, sign: str) -> None:
    column = values(listing, name)
    turn = -1 if sign else 1
    expected = sorted(range(WIDTH), key=lambda i: (column[i] is None, turn * (column[i] or 0)))
    assert listing.select(Query.parse(sort=sign + name), MARKS).tolist() == expected


def test_filters_narrow_each_other(listing: Listing) -> None:
    query = Query.parse(filter="max:1..3,entropy:..2.5,count:1..", sort="-max")
    rows = [listing.row(i, MARKS) for i in range(WIDTH)]
    kept = [
        r["latent"]
        for r in rows
        if 1 <= r["max"] <= 3 and r["entropy"] is not None and r["entropy"] <= 2.5 and r["count"] >= 1
    ]
    expected = sorted(kept, key=lambda i: -rows[i]["max"])
    assert expected
    assert listing.select(query, MARKS).tolist() == expected
    assert listing.place_of(expected[5], query, MARKS) == 5
    assert listing.place_of(next(i for i in range(WIDTH) if i not in kept), query, MARKS) is None


def test_words_marks_and_names(listing: Listing) -> None:
    tokens = [listing.row(i, MARKS)["token"] for i in range(WIDTH)]
    apples = {i for i, token in enumerate(tokens) if "apple" in token.lower()} | {7, 9}
    assert set(listing.select(Query.parse(text=" APPLE "), MARKS).tolist()) == apples
    assert listing.select(Query.parse(mark="bookmarked"), MARKS).tolist() == [7, 9]
    assert listing.select(Query.parse(mark="labelled"), MARKS).tolist() == [7]
    assert listing.select(Query.parse(mark="named"), MARKS).tolist() == [3, 7, 400]
    # a label stands before a name; what has neither follows in order
    assert listing.select(Query.parse(sort="name"), MARKS).tolist()[:4] == [400, 3, 7, 0]
    assert listing.select(Query.parse(sort="-name"), MARKS).tolist()[:4] == [7, 3, 400, 0]


def test_a_changed_mark_is_seen_at_once(listing: Listing) -> None:
    query = Query.parse(mark="bookmarked")
    listing.select(query, MARKS)
    assert listing.select(query, Marks({}, {1: {"bookmark": True}}, revision=2)).tolist() == [1]


@pytest.mark.parametrize("wrong", [{"filter": "max"}, {"filter": "size:1.."}, {"filter": "max:a..b"}, {"sort": "size"}])
def test_a_query_that_cannot_be_read_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(QueryError, match=re.escape(next(iter(wrong.values())).split(",")[0])):
        Query.parse(**wrong)


def test_an_explanation_newer_than_the_store_gives_the_score(listing: Listing) -> None:
    assert listing.row(3, MARKS)["score"] == 0.9
    assert listing.select(Query.parse(filter="score:0.9..0.9"), MARKS).tolist().count(3) == 1


def test_curves_are_thinned_keep_the_last_step_and_skip_a_half_line(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {i}, "loss": {i / 2}, "note": "x"}}\n' for i in range(5001)]
    path.write_text("".join(lines) + '{"step": 50')
    found = curves(tmp_path)
    assert found is not None
    assert set(found) == {"step", "loss"}
    assert len(found["step"]) <= 2002
    assert found["step"][-1] == 5000
    assert all(math.isclose(s / 2, v) for s, v in zip(found["step"], found["loss"], strict=True))
    assert curves(tmp_path / "none") is None


def test_the_whole_page_is_small() -> None:
    files = [p for p in STATIC.rglob("*") if p.suffix in (".html", ".js", ".css")]
    assert sum(p.stat().st_size for p in files) < 300_000


def test_every_module_is_fetched_at_once() -> None:
    named = set(
        re.findall(r'(?:modulepreload" href|module" src)="static/([^"]+)"', (STATIC / "index.html").read_text())
    )
    modules = {p.relative_to(STATIC).as_posix() for p in STATIC.rglob("*.js")} - {"vendor/uPlot.js"}
    assert named == modules


def test_the_page_asks_nothing_of_other_machines_and_sets_no_markup() -> None:
    for path in STATIC.glob("*.*"):
        text = path.read_text()
        addresses = set(re.findall(r"https?://[\w.-]+", text)) - {"http://www.w3.org"}
        assert not addresses, path
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|dangerouslySet|\beval\(|new Function", text)


def test_libraries_are_as_npm_delivered_them() -> None:
    """Their hashes; the README beside them says which versions they are and what was changed."""
    known = {
        "preact.js": "225d7a773766e6fb",
        "hooks.js": "5c65ab263688d080",
        "htm.js": "ab33dd3f38059b9b",
        "uPlot.js": "19c8d4c6ad88929a",
        "uPlot.css": "df630c6a8d6f8eea",
    }
    for name, digest in known.items():
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest()[:16] == digest, name
