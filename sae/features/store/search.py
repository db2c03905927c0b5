"""Finding latents by words: in names and labels, in the tokens they make likely, in the text of their examples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sae.features.store import windows
from sae.features.store.store import FeatureStore

DOCUMENTS = 200  # documents read for one search
MATCHES = 20  # matches read in one document
_AROUND = 40  # characters of a snippet on either side


class Hit(NamedTuple):
    """A latent that matches."""

    latent: int
    where: str
    """"name", "label", "logits" or "example"."""
    snippet: str


def search(store: FeatureStore, text: str, limit: int = 50) -> list[Hit]:
    """At most `limit` latents that match `text` (case does not count), each once: names, labels, logits, examples.

    Among examples, those whose strongest token lies in the matching text come first, then those near it.
    """
    wanted = text.strip().casefold()
    if not wanted or limit < 1:
        return []
    hits: dict[int, Hit] = {}
    for find in (_in_names, _in_labels, _in_logits, _in_examples):
        for hit in find(store, wanted, limit):
            hits.setdefault(hit.latent, hit)
        if len(hits) >= limit:
            break
    return list(hits.values())[:limit]


def _in_names(store: FeatureStore, wanted: str, _: int) -> list[Hit]:
    names = {latent: str(value.get("name", "")) for latent, value in store.annotations.names().items()}
    return [Hit(latent, "name", name) for latent, name in names.items() if wanted in name.casefold()]


def _in_labels(store: FeatureStore, wanted: str, _: int) -> list[Hit]:
    hits = []
    for latent, value in store.annotations.all().items():
        said = " - ".join(part for part in (value["label"], value["note"]) if part)
        if wanted in said.casefold():
            hits.append(Hit(latent, "label", _snippet(said, said.casefold().find(wanted), len(wanted))))
    return hits


def _in_logits(store: FeatureStore, wanted: str, limit: int) -> list[Hit]:
    """Latents with the token among their most likely ones, as far as logits are computed; by its rank."""
    ids = store.lens.all_logits()
    if ids is None:
        return []
    names = [store.vocabulary.name(i).strip().casefold() for i in range(len(store.vocabulary))]
    exact = [i for i, name in enumerate(names) if name == wanted]
    tokens = exact or [i for i, name in enumerate(names) if wanted in name]
    top = ids[:, : ids.shape[1] // 2]
    latent, rank = np.isin(top, tokens).nonzero()
    by = np.lexsort((latent, rank))[: limit * top.shape[1]]
    listed = zip(latent[by].tolist(), rank[by].tolist(), strict=True)
    return [Hit(i, "logits", store.vocabulary.name(int(top[i, r]))) for i, r in listed]


def _in_examples(store: FeatureStore, wanted: str, limit: int) -> list[Hit]:
    matches: list[tuple[np.ndarray, np.ndarray, int]] = []
    snippets: list[str] = []
    central: set[int] = set()  # latents with an event in the matching text
    for document in _documents(store, wanted):
        strings = store.vocabulary.display(store.tokens(document))
        joined = "".join(strings)
        # positions must agree with the text: in rare cases its lower case has another length
        folded = joined.lower() if len(joined.lower()) == len(joined) else joined
        ends = np.cumsum([len(s) for s in strings])
        events = store.events_in(document)
        at = folded.find(wanted)
        for _ in range(MATCHES):
            if at < 0:
                break
            first, last = np.searchsorted(ends, [at, at + len(wanted) - 1], side="right")
            begin, end = np.searchsorted(events.position, [first - windows.AHEAD, last + windows.BACK + 1])
            position, latent = events.position[begin:end], events.latent[begin:end]
            distance = np.maximum(np.maximum(first - position, position - last), 0)
            matches.append((latent, distance, len(snippets)))
            snippets.append(_snippet(joined, at, len(wanted)))
            central.update(latent[distance == 0].tolist())
            at = folded.find(wanted, at + 1)
        if len(central) >= limit:
            break
    if not matches:
        return []
    latent, distance = (np.concatenate([part[i] for part in matches]) for i in (0, 1))
    number = np.repeat([number for _, _, number in matches], [len(part[0]) for part in matches])
    by = distance.argsort(kind="stable")
    by = by[np.sort(np.unique(latent[by], return_index=True)[1])][:limit]
    return [Hit(i, "example", snippets[n]) for i, n in zip(latent[by].tolist(), number[by].tolist(), strict=True)]


def _documents(store: FeatureStore, wanted: str) -> list[int]:
    """Documents that contain the text: from the index of words, else by a search through all of them."""
    store.check_search()
    if store.query("SELECT 1 FROM sqlite_schema WHERE name = 'words'") and store.has_fts5:
        phrase = '"' + wanted.replace('"', '""') + '"*'
        rows = store.query("SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?", (phrase, DOCUMENTS))
        if rows:
            return [row[0] for row in rows]
    escaped = wanted.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    statement = "SELECT id FROM texts WHERE text LIKE ? ESCAPE '\\' ORDER BY id LIMIT ?"
    return [row[0] for row in store.query(statement, (f"%{escaped}%", DOCUMENTS))]


def _snippet(text: str, at: int, length: int) -> str:
    begin, end = max(0, at - _AROUND), at + length + _AROUND
    return ("…" if begin else "") + text[begin:end] + ("…" if end < len(text) else "")
