"""Where codes of text come from: live text through the language model, or activations that were stored.

Both give the same steps in the same order, each made of whole segments, with a mark from which to go on. Places are
positions in the document: what an earlier segment of the same document held counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base.files import read_json
from sae.config import ConfigError
from sae.data.packing import Cursor
from sae.features.collect.subject import Mark, Read, Step
from sae.features.store.documents import Tokens
from sae.harvest.rows import Rows
from sae.harvest.store import DiskStore
from sae.harvest.stream import BOS, KINDS, ORDINARY, SINK, SPECIAL, Harvest
from sae.runs.text import Run


class LiveSource:
    """Text through the language model; a step is a forward pass."""

    def __init__(self, harvest: Harvest) -> None:
        self.harvest = harvest
        self._lead = len(harvest.lm.beginning)

    def steps(self, mark: Mark) -> Iterator[Step]:
        """See `Source`; a mark is a cursor of the packing."""
        for contexts in self.harvest.contexts(Cursor(*mark)):

            def read(contexts: Any = contexts) -> Read:
                rows = self.harvest.rows(contexts)
                text = _text(rows, self._lead)
                inside = rows.kind == ORDINARY
                kinds = self.harvest.kinds
                counts = {name: int((rows.kind == kind).sum()) for kind, name in kinds.items() if kind != ORDINARY}
                shown = rows.position >= self._lead  # the token put before a segment is no part of its document
                kept = inside.nonzero().squeeze(1)
                return Read(rows.select(kept), text.select(inside), text.select(shown), counts)

            open_document = contexts.next.document if contexts.next.token else None
            yield Step(int((contexts.document >= 0).sum()), list(contexts.next), open_document, read)


def _text(rows: Rows, lead: int) -> Tokens:
    """Where tokens stand in their documents; the `lead` tokens put before a segment come before its start."""
    start = rows.start.long()
    return Tokens(rows.token.long(), rows.document, start + rows.position.long() - lead, start)


class StoredSource:
    """Activations on the disk; a step is whole segments of about 4096 tokens.

    A store lacks the tokens that were left out of it, so positions have gaps. Stores of earlier versions do not record
    where segments begin: there a segment begins where positions fall, right after the last stored token before it.
    """

    def __init__(self, store: DiskStore, sites: list[str], special: frozenset[int], first: tuple[int, ...]) -> None:
        self.store, self.sites = store, sites
        self._lead = len(first)
        self._first, self._special = (torch.tensor(sorted(ids), dtype=torch.int64) for ids in (first, special))
        rows = Rows.join([part.at(()) for part in store.parts])
        if (rows.start < 0).any():
            rows = rows._replace(start=_starts(rows, self._lead))
        self.text = _text(rows, self._lead)
        new = torch.ones(rows.size, dtype=torch.bool)
        new[1:] = (rows.document[1:] != rows.document[:-1]) | (rows.start[1:] != rows.start[:-1])
        self._begins = new.nonzero().squeeze(1)

    def steps(self, mark: Mark) -> Iterator[Step]:
        """See `Source`; a mark is [row, 0]."""
        rows, total = 4096, len(self.text.token)
        begin = mark[0]
        while begin < total:
            later = int(torch.searchsorted(self._begins, min(begin + rows, total)))
            end = int(self._begins[later]) if later < len(self._begins) else total

            def read(begin: int = begin, end: int = end) -> Read:
                text = Tokens(*(column[begin:end] for column in self.text))
                kinds = torch.full((end - begin,), ORDINARY, dtype=torch.int8)
                kinds[torch.isin(text.token, self._special)] = SPECIAL
                kinds[torch.isin(text.token, self._first)] = BOS
                kept = kinds == ORDINARY
                rows = self.store.read(range(begin, end), self.sites)
                known = text.position >= text.start  # not the token put before a segment
                counts = {"bos": int((kinds == BOS).sum()), "special": int((kinds == SPECIAL).sum())}
                counts |= {KINDS[SINK]: 0}  # no store has them
                return Read(rows.select(kept.nonzero().squeeze(1)), text.select(kept), text.select(known), counts)

            last = int(self.text.document[end - 1])
            goes_on = end < total and int(self.text.document[end]) == last
            yield Step(end - begin, [end, 0], last if goes_on else None, read)
            begin = end


def _starts(rows: Rows, lead: int) -> Tensor:
    """`Rows.start` of a store that does not record it: a segment begins where a document does or positions fall."""
    new = torch.ones(rows.size, dtype=torch.bool)
    new[1:] = (rows.document[1:] != rows.document[:-1]) | (rows.position[1:] <= rows.position[:-1])
    begins = new.nonzero().squeeze(1)
    lengths = torch.diff(begins, append=torch.tensor([rows.size]))
    stored = rows.position[begins + lengths - 1].long() + 1 - lead
    before = stored.cumsum(0) - stored
    documents = rows.document[begins]
    return (before - before[torch.searchsorted(documents, documents)]).repeat_interleave(lengths)


def open_store(folder: Path, run: Run) -> DiskStore:
    """The store of activations in `folder`, if it holds what the run reads.

    Raises:
        ConfigError: there is none, or it is of other sites or another model.
        CorruptError: it is damaged.
    """
    if not (folder / "identity.json").is_file():
        raise ConfigError(f"--store {folder}: no store of activations there; without --store text is harvested anew")
    identity = read_json(folder / "identity.json")
    held = identity.get("sites") if isinstance(identity, dict) else None
    wanted = {site.name: site.width for site in run.inputs}
    if not isinstance(held, dict) or any(held.get(name) != width for name, width in wanted.items()):
        raise ConfigError(f"--store {folder}: it holds {held}, this run reads {wanted}")
    if identity["model"] != run.config.harvest.model:
        raise ConfigError(
            f"--store {folder}: it is of the model {identity['model']}, this run of {run.config.harvest.model}"
        )
    roles = list(run.config.harvest.roles or ()) or None
    if identity.get("roles") != roles:
        raise ConfigError(
            f"--store {folder}: it holds tokens of the roles {identity.get('roles') or 'all'}, this run is trained on "
            f"{roles or 'all'}"
        )
    store = DiskStore(folder, identity)
    if not store.rows:
        raise ConfigError(f"--store {folder}: it holds no tokens")
    return store
