"""Held-out documents with the exact codes of all their tokens, from which the texts are drawn that names are scored on.

    scan = read_scan(store, held_out, tokens=131_072, device="auto", advance=bar.advance)
    scan.activations(17)                 # float32 [n], of every token

A store keeps a sample of each latent's firings, and so knows of few whole texts that a latent is silent in all of them.
The corpus is read once more for that, up to a limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from sae.config import CollectConfig, ConfigError
from sae.config.run import Device
from sae.features.collect.collect import open_subject
from sae.features.collect.subject import Subject
from sae.features.store import keys, windows
from sae.features.store.documents import Tokens
from sae.features.store.store import FeatureStore

COMPARED = 16  # documents whose tokens are compared with those of the store


class Scan(NamedTuple):
    """n tokens in the order of their places, and F latents."""

    place: np.ndarray
    """Where they stand, int64 [n], see `keys.pack`."""
    begin: np.ndarray
    """First token of the window around each, int64 [n]; windows do not reach across a segment or a token left out."""
    end: np.ndarray
    """One behind its last token, int64 [n]."""
    first: np.ndarray
    """Where each latent's firings begin in the next two, int64 [F + 1]."""
    token: np.ndarray
    """int32 [firings], ascending for each latent."""
    value: np.ndarray
    """float32 [firings]"""

    @property
    def document(self) -> np.ndarray:
        """int64 [n]"""
        return self.place >> keys.POSITION_BITS

    def firings(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens at which a latent fires, ascending, and its activations there."""
        part = slice(self.first[latent], self.first[latent + 1])
        return self.token[part], self.value[part]

    def activations(self, latent: int) -> np.ndarray:
        """A latent's activations at all tokens, float32 [n]."""
        dense = np.zeros(len(self.place), np.float32)
        tokens, values = self.firings(latent)
        dense[tokens] = values
        return dense


def read_scan(
    store: FeatureStore,
    held_out: Callable[[np.ndarray], np.ndarray],
    *,
    tokens: int,
    device: Device,
    advance: Callable[[int], None] = lambda _: None,
) -> Scan:
    """Encode the first `tokens` tokens that the store was collected on, and keep those of held-out documents.

    Args:
        store: collected features.
        held_out: places, int64 [n] -> whether the document of each is one that names are scored on, bool [n].
        tokens: limit, in whole forward passes; no more than were collected.
        device: where to compute.
        advance: gets the number of tokens that were read.

    Raises:
        ConfigError, CorruptError, ModelError, DataError: the run, its model or the text cannot be read, or the text is
            another one than the features were collected on.
    """
    # what lies behind was not collected
    tokens = min(tokens, store.info["seen"])
    subject = _subject(store, tokens, device)
    known = {int(document) for (document,) in store.query("SELECT id FROM documents")}
    in_store = np.array(sorted(known), np.int64)
    places, starts, rows, latents, values = [], [], [], [], []
    read_so_far = size = 0
    for chunk in subject.chunks([0, 0]):
        if read_so_far >= tokens:
            break
        read = chunk.read()
        place = keys.pack(read.tokens.document, read.tokens.position).cpu()
        inside = np.isin(read.tokens.document.cpu().numpy(), in_store)
        kept = torch.from_numpy(held_out(place.numpy()) & inside).nonzero().squeeze(1)
        if len(kept):
            _compare(store, read.text, known)
            with torch.no_grad():
                inputs = subject.inputs_of(read.rows.select(kept)).to(next(subject.model.parameters()).device)
                codes = subject.model.encode(inputs)
            active = codes.values.flatten() > 0
            rows.append((codes.rows().flatten()[active] + size).cpu().numpy())
            latents.append(codes.indices.flatten()[active].cpu().numpy())
            values.append(codes.values.flatten()[active].float().cpu().numpy())
            places.append(place[kept].numpy())
            starts.append(read.tokens.start.cpu()[kept].numpy())
            size += len(kept)
        read_so_far += chunk.tokens
        advance(chunk.tokens)
    if not size:
        raise ConfigError(f"--score-tokens {tokens}: no held-out document is among them; read more")
    return assemble(*(np.concatenate(part) for part in (places, starts, rows, latents, values)), width=store.width)


def assemble(
    place: np.ndarray, start: np.ndarray, row: np.ndarray, latent: np.ndarray, value: np.ndarray, *, width: int
) -> Scan:
    """A scan of n tokens with their codes.

    Args:
        place: int64 [n], each once.
        start: position in the document of the first token of each one's segment, int64 [n].
        row: the token of each firing, int64 [firings].
        latent: its latent.
        value: its activation, more than 0.
        width: number of latents.
    """
    by = np.argsort(place, kind="stable")
    rank = np.empty(len(by), np.int64)
    rank[by] = np.arange(len(by))
    place, start, row = place[by], start[by], rank[row]
    breaks = np.ones(len(place), dtype=bool)
    # neighbours in one segment have successive places
    breaks[1:] = (np.diff(place) != 1) | (np.diff(start) != 0)
    first = np.flatnonzero(breaks)
    lengths = np.diff(np.append(first, len(place)))
    index = np.arange(len(place))
    begin = np.maximum(index - windows.BACK, np.repeat(first, lengths))
    end = np.minimum(index + windows.AHEAD + 1, np.repeat(first + lengths, lengths))
    order = np.lexsort((row, latent))
    counts = np.bincount(latent, minlength=width)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Scan(place, begin, end, offsets, row[order].astype(np.int32), value[order].astype(np.float32))


def _subject(store: FeatureStore, tokens: int, device: Device) -> Subject:
    """The run with the data that its features were collected on."""
    info = store.info
    source = {"store": info["store"]} if info.get("store") else {"split": info["split"]}
    settings = {**source, "tokens": tokens, "seed": info["seed"], "device": device}
    subject = open_subject(store.folder, CollectConfig(**settings))
    if subject.identity()["dataset"] == info["dataset"]:
        return subject
    return open_subject(store.folder, CollectConfig(**settings, dataset=info["dataset"]))


def _compare(store: FeatureStore, text: Tokens, known: set[int]) -> None:
    """ConfigError where the tokens of some documents are not those in the store."""
    documents = [d for d in torch.unique(text.document).tolist() if d in known]
    for document in documents[:COMPARED]:
        here = text.select(text.document == document)
        if not np.array_equal(store.tokens(document)[here.position.numpy()], here.token.numpy()):
            raise ConfigError(
                f"{store.folder}: document {document} of {store.info['dataset']} has other tokens than when features "
                f"were collected; collect them again: sae features {store.folder}"
            )
