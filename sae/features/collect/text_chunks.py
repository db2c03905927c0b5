"""Chunks of text to collect from: through the language model, or from activations on the disk.

Both give the same chunks in the same order, each made of whole segments. Positions are those in the document, so a
segment counts what earlier segments of its document contained.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.config import ConfigError
from sae.data.packing import Cursor
from sae.features.collect.subject import Chunk, Mark, ReadChunk
from sae.features.store.documents import Tokens
from sae.harvest.rows import Rows
from sae.harvest.store_disk import DiskStore, read_store
from sae.harvest.stream import BOS, KINDS, ORDINARY, SINK, SPECIAL, Harvest
from sae.runs.text import Run

STORED_ROWS = 4096  # about the rows of a chunk that is read from the disk


def live_chunks(harvest: Harvest, mark: Mark) -> Iterator[Chunk]:
    """Text through the language model, one forward pass a chunk; `mark` is a cursor of the packing."""
    lead = len(harvest.lm.beginning)
    for contexts in harvest.contexts(Cursor(*mark)):

        def read(contexts: Any = contexts) -> ReadChunk:
            rows = harvest.rows(contexts)
            text = _tokens_of(rows, lead)
            ordinary = rows.kind == ORDINARY
            counts = {name: int((rows.kind == k).sum()) for k, name in harvest.kinds.items() if k != ORDINARY}
            shown = rows.position >= lead  # the token put before a segment is no part of its document
            return ReadChunk(
                rows.select(ordinary.nonzero().squeeze(1)), text.select(ordinary), text.select(shown), counts
            )

        open_document = contexts.next.document if contexts.next.token else None
        yield Chunk(int((contexts.document >= 0).sum()), list(contexts.next), open_document, read)


def _tokens_of(rows: Rows, lead: int) -> Tokens:
    """Where tokens stand in their documents; the `lead` tokens put before a segment come before its start."""
    start = rows.start.long()
    return Tokens(rows.token.long(), rows.document, start + rows.position.long() - lead, start)


def stored_chunks(
    store: DiskStore, sites: list[str], special: frozenset[int], first: tuple[int, ...], mark: Mark
) -> Iterator[Chunk]:
    """Activations on the disk, whole segments of about 4096 tokens a chunk; `mark` is [row, 0].

    A store lacks the tokens that were left out of it, so positions have gaps. Stores of earlier versions do not record
    where segments begin: there a segment begins where positions fall, right after the last stored token before it.
    """
    places = store.places()
    lead, total = len(first), places.size
    if (places.start < 0).any():
        places = places._replace(start=_segment_starts(places, lead))
    tokens = _tokens_of(places, lead)
    new = torch.ones(total, dtype=torch.bool)
    new[1:] = (places.document[1:] != places.document[:-1]) | (places.start[1:] != places.start[:-1])
    begins = new.nonzero().squeeze(1)
    first_ids, special_ids = (torch.tensor(sorted(ids), dtype=torch.int64) for ids in (first, special))
    begin = mark[0]
    while begin < total:
        later = int(torch.searchsorted(begins, min(begin + STORED_ROWS, total)))
        end = int(begins[later]) if later < len(begins) else total

        def read(begin: int = begin, end: int = end) -> ReadChunk:
            text = Tokens(*(column[begin:end] for column in tokens))
            kinds = torch.full((end - begin,), ORDINARY, dtype=torch.int8)
            kinds[torch.isin(text.token, special_ids)] = SPECIAL
            kinds[torch.isin(text.token, first_ids)] = BOS
            ordinary = kinds == ORDINARY
            rows = store.read(range(begin, end), sites)
            shown = text.position >= text.start  # not the token put before a segment
            # no store contains sinks
            counts = {"bos": int((kinds == BOS).sum()), "special": int((kinds == SPECIAL).sum()), KINDS[SINK]: 0}
            return ReadChunk(
                rows.select(ordinary.nonzero().squeeze(1)), text.select(ordinary), text.select(shown), counts
            )

        last = int(tokens.document[end - 1])
        continues = end < total and int(tokens.document[end]) == last
        yield Chunk(end - begin, [end, 0], last if continues else None, read)
        begin = end


def _segment_starts(rows: Rows, lead: int) -> Tensor:
    """`Rows.start` of a store that does not record it: a segment begins where a document does or positions fall."""
    new = torch.ones(rows.size, dtype=torch.bool)
    new[1:] = (rows.document[1:] != rows.document[:-1]) | (rows.position[1:] <= rows.position[:-1])
    begins = new.nonzero().squeeze(1)
    lengths = torch.diff(begins, append=torch.tensor([rows.size]))
    stored = rows.position[begins + lengths - 1].long() + 1 - lead
    before = stored.cumsum(0) - stored
    documents = rows.document[begins]
    return (before - before[torch.searchsorted(documents, documents)]).repeat_interleave(lengths)


def open_store(folder: str | Path, run: Run) -> DiskStore:
    """The store of activations in `folder`, if it contains what the run reads.

    Raises:
        ConfigError: there is none, or it is of other sites or another model.
        CorruptError: it is damaged.
    """
    identity = read_store(folder, {})
    if identity is None:
        raise ConfigError(f"--store {folder}: no store of activations there; without --store text is harvested anew")
    stored = identity.get("sites")
    wanted = {site.name: site.width for site in run.inputs}
    if not isinstance(stored, dict) or any(stored.get(name) != width for name, width in wanted.items()):
        raise ConfigError(f"--store {folder}: it holds {stored}, this run reads {wanted}")
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
