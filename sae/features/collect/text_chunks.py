"""Chunks of text to collect from: through the language model, or from activations on the disk.

Both give the same chunks in the same order, each made of whole segments. Positions are those in the document, so a
segment counts what earlier segments of its document contained.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sae.base.files import read_json
from sae.config import ConfigError
from sae.data.packing import Cursor
from sae.features.collect.subject import Chunk, Mark, ReadChunk
from sae.features.store.documents import Tokens
from sae.harvest.store import DiskStore
from sae.harvest.stream import BOS, KINDS, ORDINARY, SINK, SPECIAL, Harvest, Rows
from sae.runs.text import Run

STORED_ROWS = 4096  # about the rows of a chunk that is read from the disk


def live_chunks(harvest: Harvest, mark: Mark) -> Iterator[Chunk]:
    """Text through the language model, one forward pass a chunk; `mark` is a cursor of the packing."""
    here = Cursor(*mark)
    if harvest.norm_limits is None:
        harvest.measure_norms()
    lead = len(harvest.lm.beginning)
    for contexts in harvest.contexts(here):

        def read(contexts: Any = contexts, here: Cursor = here) -> ReadChunk:
            rows = harvest._rows(contexts)
            text = _tokens_of(rows, here, lead)
            ordinary = rows.kind == ORDINARY
            counts = {name: int((rows.kind == k).sum()) for k, name in harvest.kinds.items() if k != ORDINARY}
            shown = rows.position >= lead  # the token put before a segment is no part of its document
            return ReadChunk(
                rows.select(ordinary.nonzero().squeeze(1)), text.select(ordinary), text.select(shown), counts
            )

        open_document = contexts.next.document if contexts.next.token else None
        yield Chunk(int((contexts.document >= 0).sum()), list(contexts.next), open_document, read)
        here = contexts.next


def _tokens_of(rows: Rows, here: Cursor, lead: int) -> Tokens:
    """Where the tokens of a forward pass stand in their documents; those put before a segment at start - 1."""
    position = rows.position.long()
    begins = (position == 0).nonzero().squeeze(1)
    lengths = torch.diff(begins, append=torch.tensor([len(position)]))
    starts = _segment_starts(rows.document[begins], lengths - lead)
    starts += torch.where(rows.document[begins] == here.document, here.token, 0)  # tokens before this pass
    start = starts.repeat_interleave(lengths)
    return Tokens(rows.token.long(), rows.document, start + position - lead, start)


def _segment_starts(documents: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Tokens of the same document in earlier segments; documents and lengths of the segments, in order, int64 [n]."""
    before = lengths.cumsum(0) - lengths
    return before - before[torch.searchsorted(documents, documents)]


def stored_chunks(
    store: DiskStore, sites: list[str], special: frozenset[int], first: tuple[int, ...], mark: Mark
) -> Iterator[Chunk]:
    """Activations on the disk, whole segments of about 4096 tokens a chunk; `mark` is [row, 0].

    Tokens that were left out of the store are missing here, and their positions stay empty. Where a document continues
    in another segment, that segment is taken to begin behind the last stored token of the one before.
    """
    token, document, position = (
        torch.cat([getattr(part, name) for part in store.parts]).long() for name in ("token", "document", "position")
    )
    lead, total = len(first), len(token)
    new = torch.ones(total, dtype=torch.bool)
    new[1:] = (document[1:] != document[:-1]) | (position[1:] <= position[:-1])
    begins = new.nonzero().squeeze(1)
    rows = torch.diff(begins, append=torch.tensor([total]))
    start = _segment_starts(document[begins], position[begins + rows - 1] + 1 - lead).repeat_interleave(rows)
    position = start + position - lead
    first_ids, special_ids = (torch.tensor(sorted(ids), dtype=torch.int64) for ids in (first, special))
    begin = mark[0]
    while begin < total:
        later = int(torch.searchsorted(begins, min(begin + STORED_ROWS, total)))
        end = int(begins[later]) if later < len(begins) else total

        def read(begin: int = begin, end: int = end) -> ReadChunk:
            part = slice(begin, end)
            text = Tokens(token[part], document[part], position[part], start[part])
            kinds = torch.full((end - begin,), ORDINARY, dtype=torch.int8)
            kinds[torch.isin(text.token, special_ids)] = SPECIAL
            kinds[torch.isin(text.token, first_ids)] = BOS
            ordinary = kinds == ORDINARY
            activations = store.read(range(begin, end), sites)
            shown = text.position >= text.start  # not the token put before a segment
            given = Rows(activations, text.token.int(), text.document, text.position.int(), kinds)
            # no store contains sinks
            counts = {"bos": int((kinds == BOS).sum()), "special": int((kinds == SPECIAL).sum()), KINDS[SINK]: 0}
            return ReadChunk(
                given.select(ordinary.nonzero().squeeze(1)), text.select(ordinary), text.select(shown), counts
            )

        last = int(document[end - 1])
        continues = end < total and int(document[end]) == last
        yield Chunk(end - begin, [end, 0], last if continues else None, read)
        begin = end


def open_store(folder: Path, run: Run) -> DiskStore:
    """The store of activations in `folder`, if it contains what the run reads.

    Raises:
        ConfigError: there is none, or it is of other sites or another model.
        CorruptError: it is damaged.
    """
    if not (folder / "identity.json").is_file():
        raise ConfigError(f"--store {folder}: no store of activations there; without --store text is harvested anew")
    identity = read_json(folder / "identity.json")
    stored = identity.get("sites") if isinstance(identity, dict) else None
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
