"""What a collection must hold, computed the plainest way: all events at once, Python's exact integers and sorting."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch

from sae.features.store import keys
from sae.features.store.buffers import SLOTS
from sae.features.store.collection import Collection
from sae.features.store.documents import Tokens
from sae_kernels import SparseCodes


class Corpus(NamedTuple):
    """Segments of documents with dense codes, in the order of the data."""

    token: np.ndarray
    document: np.ndarray
    position: np.ndarray
    start: np.ndarray
    codes: np.ndarray
    """float32 [n, F]"""

    def segments(self) -> list[np.ndarray]:
        """Rows of each segment."""
        marks = self.document * 10**6 + self.start
        return [np.flatnonzero(marks == mark) for mark in np.unique(marks)]

    def tokens(self, rows: np.ndarray) -> Tokens:
        return Tokens(
            *(
                torch.from_numpy(a[rows].astype(np.int64))
                for a in (self.token, self.document, self.position, self.start)
            )
        )


def make_corpus(seed: int, *, documents: int = 40, width: int = 7, levels: int = 6) -> Corpus:
    """Documents of one to three segments; few different values, so that keys are often equal."""
    draw = np.random.default_rng(seed)
    rows = []
    for document in draw.permutation(3 * documents)[:documents].tolist():
        position = 0
        for _ in range(draw.integers(1, 4)):
            length = int(draw.integers(1, 40))
            rows += [(document, position + i, position) for i in range(length)]
            position += length
    document, position, start = np.array(rows).T
    n = len(rows)
    fires = draw.random((n, width)) < np.linspace(0.02, 0.9, width)
    values = (
        draw.integers(1, levels, (n, width)).astype(np.float32)
        * np.float32(0.1)
        * 2.0 ** draw.integers(-3, 4, n)[:, None]
    )
    return Corpus(draw.integers(0, 50, n), document, position, start, (fires * values).astype(np.float32))


def rectangular(codes: np.ndarray) -> SparseCodes:
    """All latents listed for every token, zeros included, in an order that differs from token to token."""
    values = torch.from_numpy(codes)
    order = torch.rand(values.shape, generator=torch.Generator().manual_seed(len(codes))).argsort(1)
    return SparseCodes(values.gather(1, order), order, codes.shape[1])


def csr(codes: np.ndarray) -> SparseCodes:
    """Only what is positive."""
    row, latent = codes.nonzero()
    offsets = np.concatenate([[0], np.bincount(row, minlength=len(codes)).cumsum()])
    return SparseCodes(
        torch.from_numpy(codes[row, latent]), torch.from_numpy(latent), codes.shape[1], torch.from_numpy(offsets)
    )


class Latent(NamedTuple):
    """What is expected of one latent."""

    count: int
    sum: float
    squares: float
    histogram: dict[int, int]
    events: dict[str, list[tuple[float, int, int]]]
    """Buffer -> (value, document, position), best first."""


def expected(corpus: Corpus, latent: int, seed: int) -> Latent:
    """Every statistic and buffer of a latent by its definition."""
    rows = np.flatnonzero(corpus.codes[:, latent] > 0)
    values = corpus.codes[rows, latent]
    places = keys.pack(torch.from_numpy(corpus.document[rows]), torch.from_numpy(corpus.position[rows]))
    u = keys.uniform(keys.order(places, seed)).numpy()
    found = {
        "top": sorted(zip(-values.astype(float), corpus.document[rows], corpus.position[rows], strict=True)),
        "uniform": sorted(zip(u, corpus.document[rows], corpus.position[rows], strict=True)),
        "weighted": sorted(zip(-(values.astype(float) / u), corpus.document[rows], corpus.position[rows], strict=True)),
    }
    best_of_document: dict[int, tuple[float, int, int]] = {}
    for event in found["top"]:
        best_of_document.setdefault(int(event[1]), event)
    found["top"] = sorted(best_of_document.values())
    value_at = {
        (int(d), int(p)): float(v) for d, p, v in zip(corpus.document[rows], corpus.position[rows], values, strict=True)
    }
    events = {
        name: [(value_at[int(d), int(p)], int(d), int(p)) for _, d, p in listed[: SLOTS[name]]]
        for name, listed in found.items()
    }
    exact = [Fraction(float(v)) for v in values]
    histogram: dict[int, int] = {}
    for value in values:
        mantissa, exponent = np.frexp(value)  # value = mantissa 2^exponent, mantissa in [0.5, 1)
        bin = 2 * (int(exponent) - 1 + 20) + int(mantissa >= 0.75)
        histogram[bin] = histogram.get(bin, 0) + 1
    return Latent(len(rows), float(sum(exact)), float(sum(v * v for v in exact)), histogram, events)


def window_of(corpus: Corpus, latent: int, document: int, position: int) -> np.ndarray:
    """The latent's activations 24 before to 8 after, 0 outside the segment, float32 [33]."""
    place = {(int(d), int(p)): i for i, (d, p) in enumerate(zip(corpus.document, corpus.position, strict=True))}
    start = corpus.start[place[document, position]]
    window = np.zeros(33, np.float32)
    for offset in range(-24, 9):
        row = place.get((document, position + offset))
        if row is not None and corpus.start[row] == start:
            window[offset + 24] = corpus.codes[row, latent]
    return window


def held(collection: Collection) -> dict[str, np.ndarray]:
    """Everything a finished collection holds, in one canonical form."""
    arrays = {name: getattr(collection.statistics, name).numpy() for name in ("count", "sums", "squares", "histogram")}
    for name, buffer in collection.buffers.items():
        for field, values in buffer.events()._asdict().items():
            arrays[f"{name}.{field}"] = values.numpy()
    for document in collection.documents.numbers():
        arrays[f"document {document}"] = collection.documents.tokens(document)
    arrays["tokens"] = np.array([collection.tokens, *collection.left_out.values()])
    return arrays


def assert_same(a: Collection, b: Collection) -> None:
    """Both hold exactly the same."""
    left, right = held(a), held(b)
    assert left.keys() == right.keys()
    for name, values in left.items():
        np.testing.assert_array_equal(values, right[name], err_msg=name)
