"""The tokens of documents, each kept once: an example needs only its place in them."""

from __future__ import annotations

from collections.abc import Collection as Many
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae.features.store import keys

UNKNOWN = -1
"""Stands for an unknown token: a store of activations lacks those that were left out of it."""


class Tokens(NamedTuple):
    """Where n tokens stand, which make up whole segments; on the CPU."""

    token: Tensor
    """Token ids, int64 [n]."""
    document: Tensor
    """int64 [n]"""
    position: Tensor
    """Position in the document, int64 [n]; no two tokens share document and position."""
    start: Tensor
    """Position in the document of the first token of the segment, int64 [n]: windows do not reach across it."""

    def select(self, rows: Tensor) -> Tokens:
        """The tokens of these indices, int64 or bool."""
        return Tokens(*(t[rows] for t in self))


class DocumentTokens:
    """Token ids of documents, assembled from segments in any order."""

    def __init__(self) -> None:
        self._segments: dict[int, dict[int, np.ndarray]] = {}

    def add(self, tokens: Tokens) -> None:
        """Keep the tokens of whole segments."""
        if not len(tokens.token):
            return
        place, by = keys.pack(tokens.document, tokens.position).sort()
        segment = keys.pack(tokens.document, tokens.start)[by]
        segments, counts = torch.unique_consecutive(segment, return_counts=True)
        begin = 0
        ids = tokens.token[by].numpy().astype(np.int32)
        position = keys.position_of(place).numpy()
        documents, starts = keys.document_of(segments).tolist(), keys.position_of(segments).tolist()
        for document, start, count in zip(documents, starts, counts.tolist(), strict=True):
            part = slice(begin, begin + count)
            piece = np.full(position[part][-1] - start + 1, UNKNOWN, np.int32)
            piece[position[part] - start] = ids[part]
            self._segments.setdefault(document, {})[start] = piece
            begin += count

    def put(self, document: int, tokens: np.ndarray) -> None:
        """Keep a whole document, or its beginning."""
        self._segments.setdefault(document, {})[0] = tokens.astype(np.int32)

    def merge(self, other: DocumentTokens) -> None:
        """Add another's segments."""
        for document, segments in other._segments.items():
            self._segments.setdefault(document, {}).update(segments)

    def keep(self, documents: Many[int]) -> None:
        wanted = set(documents)
        self._segments = {d: segments for d, segments in self._segments.items() if d in wanted}

    def __len__(self) -> int:
        return len(self._segments)

    def numbers(self) -> list[int]:
        """The documents, ascending."""
        return sorted(self._segments)

    def tokens(self, document: int) -> np.ndarray:
        """Token ids from the document's beginning to the last token seen, int32; UNKNOWN where none was seen."""
        segments = self._segments[document]
        if len(segments) == 1 and 0 in segments:
            return segments[0]
        whole = np.full(max(start + len(piece) for start, piece in segments.items()), UNKNOWN, np.int32)
        for start, piece in sorted(segments.items()):
            whole[start : start + len(piece)] = np.where(piece == UNKNOWN, whole[start : start + len(piece)], piece)
        return whole
