"""Where codes of text come from: live text through the language model, or activations that were stored.

Both give the same steps in the same order, each made of whole segments, with a mark from which to go on. Places are
positions in the document: what an earlier segment of the same document held counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sae.base.files import read_json
from sae.config import ConfigError
from sae.data.packing import Cursor
from sae.features.collect.subject import Mark, Read, Step
from sae.features.store.documents import Tokens
from sae.harvest.store import DiskStore
from sae.harvest.stream import BOS, KINDS, ORDINARY, SINK, SPECIAL, Harvest, Rows
from sae.runs.text import Run


class LiveSource:
    """Text through the language model; a step is a forward pass."""

    def __init__(self, harvest: Harvest) -> None:
        self.harvest = harvest
        self._lead = len(harvest.lm.beginning)

    def steps(self, mark: Mark) -> Iterator[Step]:
        """See `Source`; a mark is a cursor of the packing."""
        here = Cursor(*mark)
        if self.harvest.norm_limits is None:
            self.harvest.measure_norms()
        for contexts in self.harvest.contexts(here):

            def read(contexts: Any = contexts, here: Cursor = here) -> Read:
                rows = self.harvest._rows(contexts)
                text = self._text(rows, here)
                inside = rows.kind == ORDINARY
                kinds = self.harvest.kinds
                counts = {name: int((rows.kind == kind).sum()) for kind, name in kinds.items() if kind != ORDINARY}
                shown = rows.position >= self._lead  # the token put before a segment is no part of its document
                kept = inside.nonzero().squeeze(1)
                return Read(rows.select(kept), text.select(inside), text.select(shown), counts)

            open_document = contexts.next.document if contexts.next.token else None
            yield Step(int((contexts.document >= 0).sum()), list(contexts.next), open_document, read)
            here = contexts.next

    def _text(self, rows: Rows, here: Cursor) -> Tokens:
        """Where the tokens of a forward pass stand in their documents; those put before a segment at start - 1."""
        position = rows.position.long()
        begins = (position == 0).nonzero().squeeze(1)
        lengths = torch.diff(begins, append=torch.tensor([len(position)]))
        documents = rows.document[begins]
        held = lengths - self._lead
        before = held.cumsum(0) - held
        # tokens of the same document in earlier segments of this pass, and before it
        first = torch.searchsorted(documents, documents)
        starts = before - before[first]
        starts += torch.where(documents == here.document, here.token, 0)
        start = starts.repeat_interleave(lengths)
        return Tokens(rows.token.long(), rows.document, start + position - self._lead, start)


class StoredSource:
    """Activations on the disk; a step is whole segments of about `rows` tokens.

    A store lacks the tokens that were left out of it. Positions are those in the segment, so gaps stay; where a
    document goes on in another segment, it is taken to begin behind the last token stored of the one before.
    """

    def __init__(self, store: DiskStore, sites: list[str], special: frozenset[int], first: tuple[int, ...]) -> None:
        self.store, self.sites = store, sites
        self._lead = len(first)
        self._first, self._special = (torch.tensor(sorted(ids), dtype=torch.int64) for ids in (first, special))
        parts = store.parts
        self.token, self.document, position = (
            torch.cat([getattr(part, name) for part in parts]).long() for name in ("token", "document", "position")
        )
        new = torch.ones(len(position), dtype=torch.bool)
        new[1:] = (self.document[1:] != self.document[:-1]) | (position[1:] <= position[:-1])
        self._begins = new.nonzero().squeeze(1)
        lengths = torch.diff(self._begins, append=torch.tensor([len(position)]))
        held = position[self._begins + lengths - 1] + 1 - self._lead
        documents = self.document[self._begins]
        before = held.cumsum(0) - held
        self.start = (before - before[torch.searchsorted(documents, documents)]).repeat_interleave(lengths)
        self.position = self.start + position - self._lead

    def steps(self, mark: Mark) -> Iterator[Step]:
        """See `Source`; a mark is [row, 0]."""
        rows, total = 4096, len(self.token)
        begin = mark[0]
        while begin < total:
            later = int(torch.searchsorted(self._begins, min(begin + rows, total)))
            end = int(self._begins[later]) if later < len(self._begins) else total

            def read(begin: int = begin, end: int = end) -> Read:
                part = slice(begin, end)
                text = Tokens(self.token[part], self.document[part], self.position[part], self.start[part])
                kinds = torch.full((end - begin,), ORDINARY, dtype=torch.int8)
                kinds[torch.isin(text.token, self._special)] = SPECIAL
                kinds[torch.isin(text.token, self._first)] = BOS
                kept = kinds == ORDINARY
                activations = self.store.read(range(begin, end), self.sites)
                known = text.position >= text.start  # not the token put before a segment
                given = Rows(activations, text.token.int(), text.document, text.position.int(), kinds)
                counts = {"bos": int((kinds == BOS).sum()), "special": int((kinds == SPECIAL).sum())}
                counts |= {KINDS[SINK]: 0}  # no store has them
                return Read(given.select(kept.nonzero().squeeze(1)), text.select(kept), text.select(known), counts)

            last = int(self.document[end - 1])
            goes_on = end < total and int(self.document[end]) == last
            yield Step(end - begin, [end, 0], last if goes_on else None, read)
            begin = end


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
