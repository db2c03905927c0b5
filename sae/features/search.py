"""Finding latents by words: in names and labels, in the tokens they speak for, in the text of their examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sae.features import windows

if TYPE_CHECKING:
    from sae.features.store import FeatureStore

DOCUMENTS = 200  # documents looked through for one search
MATCHES = 20  # places looked at in one document
_AROUND = 40  # characters of a snippet on either side


class Hit(NamedTuple):
    """A latent that a search found."""

    latent: int
    where: str
    """"name", "label", "logits" or "example"."""
    snippet: str


def search(store: FeatureStore, text: str, limit: int = 50) -> list[Hit]:
    """Latents found by `text` (case does not count), at most `limit`, each once: names, labels, logits, examples.

    Of examples, those come first whose strongest token lies in the text found; then those near it.
    """
    wanted = text.strip().casefold()
    if not wanted or limit < 1:
        return []
    hits: dict[int, Hit] = {}
    for find in (_in_names, _in_labels, _in_logits, _in_examples):
        for hit in find(store, wanted):
            hits.setdefault(hit.latent, hit)
            if len(hits) == limit:
                return list(hits.values())
    return list(hits.values())


def _in_names(store: FeatureStore, wanted: str) -> list[Hit]:
    names = {latent: str(value.get("name", "")) for latent, value in store.annotations.names().items()}
    return [Hit(latent, "name", name) for latent, name in names.items() if wanted in name.casefold()]


def _in_labels(store: FeatureStore, wanted: str) -> list[Hit]:
    found = []
    for latent, value in store.annotations.all().items():
        said = " - ".join(part for part in (value["label"], value["note"]) if part)
        if wanted in said.casefold():
            found.append(Hit(latent, "label", _snippet(said, said.casefold().find(wanted), len(wanted))))
    return found


def _in_logits(store: FeatureStore, wanted: str) -> list[Hit]:
    """Latents that list the token among the most likely ones, of those computed so far; by its rank."""
    listed = store.lens.all_logits()
    if listed is None:
        return []
    names = [store.vocabulary.name(i).strip().casefold() for i in range(len(store.vocabulary.parts))]
    exact = [i for i, name in enumerate(names) if name == wanted]
    tokens = exact or [i for i, name in enumerate(names) if wanted in name]
    top = listed[:, : listed.shape[1] // 2]
    latent, rank = np.isin(top, tokens).nonzero()
    by = np.lexsort((latent, rank))
    return [Hit(i, "logits", store.vocabulary.name(int(top[i, r]))) for i, r in zip(latent[by], rank[by], strict=True)]


def _in_examples(store: FeatureStore, wanted: str) -> list[Hit]:
    inside: list[tuple[int, Hit]] = []
    near: list[tuple[int, Hit]] = []
    for document in _documents(store, wanted):
        strings = store.vocabulary.display(store.tokens(document))
        joined = "".join(strings)
        # casefold may change lengths; lower does so for one letter only, and places must stay what they are
        folded = joined.lower() if len(joined.lower()) == len(joined) else joined
        ends = np.cumsum([len(s) for s in strings])
        events = store.events_in(document)
        at = folded.find(wanted)
        for _ in range(MATCHES):
            if at < 0:
                break
            first, last = np.searchsorted(ends, [at, at + len(wanted) - 1], side="right")
            snippet = _snippet(joined, at, len(wanted))
            begin, end = np.searchsorted(events.position, [first - windows.AHEAD, last + windows.BACK + 1])
            for latent, position in zip(events.latent[begin:end].tolist(), events.position[begin:end], strict=True):
                distance = max(int(first) - int(position), int(position) - int(last), 0)
                (near if distance else inside).append((distance, Hit(latent, "example", snippet)))
            at = folded.find(wanted, at + 1)
    near.sort(key=lambda pair: pair[0])
    return [hit for _, hit in inside + near]


def _documents(store: FeatureStore, wanted: str) -> list[int]:
    """Documents that hold the text: by the index of words, else by looking through them all."""
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
