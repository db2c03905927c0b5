"""One latent's record: how it is packed into bytes, and its statistics, examples and bands.

A record is `count`, the digits of the two sums, the histogram's non-zero bins, and the events of the three buffers,
best first; numbers are little-endian.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from sae.features.store import keys, windows
from sae.features.store.buffers import NAMES, Events
from sae.features.store.statistics import BINS, SQUARE_DIGITS, SUM_DIGITS, Statistics, edges, read_sum

_DIGITS = len(SUM_DIGITS) + len(SQUARE_DIGITS)


class Record(NamedTuple):
    """What is kept of one latent."""

    count: int
    sums: np.ndarray
    """int64 [D]"""
    squares: np.ndarray
    """int64 [D]"""
    histogram: np.ndarray
    """int64 [BINS]"""
    events: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    """Buffer -> places int64 [E], values float32 [E], windows uint8 [E, W], best first."""


def pack(statistics: Statistics, events: dict[str, Events], begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The records of the latents begin : end, with the events of their buffers; after `Statistics.carry`."""
    part = slice(begin, end)
    numbers = torch.cat([statistics.count[part, None], statistics.sums[part], statistics.squares[part]], 1)
    numbers = numbers.cpu().numpy().astype("<i8")
    histograms = statistics.histogram[part].cpu().numpy()
    buffers = []
    for name in NAMES:
        kept = events[name]
        bounds = np.searchsorted(kept.latent.cpu().numpy(), np.arange(begin, end + 1)).tolist()
        arrays = (kept.place.cpu().numpy().astype("<i8"), kept.value.cpu().numpy().astype("<f4"))
        buffers.append((bounds, *arrays, kept.window.cpu().numpy()))
    for i in range(end - begin):
        bins = histograms[i].nonzero()[0]
        parts = [numbers[i].tobytes(), bytes([len(bins)]), bins.astype(np.uint8).tobytes()]
        parts.append(histograms[i][bins].astype("<i8").tobytes())
        for bounds, place, value, window in buffers:
            part = slice(bounds[i], bounds[i + 1])
            parts += [bytes([part.stop - part.start]), *(column[part].tobytes() for column in (place, value, window))]
        yield begin + i, b"".join(parts)


def unpack(data: bytes) -> Record:
    """A record as `pack` gave it."""
    at = 0

    def take(dtype: str, count: int) -> np.ndarray:
        nonlocal at
        array = np.frombuffer(data, dtype, count, at)
        at += array.nbytes
        return array

    numbers = take("<i8", 1 + _DIGITS)
    count = int(take("u1", 1)[0])
    bins = take("u1", count)
    histogram = np.zeros(BINS, np.int64)
    histogram[bins] = take("<i8", count)
    events = {}
    for name in NAMES:
        n = int(take("u1", 1)[0])
        events[name] = (take("<i8", n), take("<f4", n), take("u1", n * windows.WIDTH).reshape(n, windows.WIDTH))
    split = 1 + len(SUM_DIGITS)
    return Record(int(numbers[0]), numbers[1:split], numbers[split:], histogram, events)


class Example(NamedTuple):
    """One event of a record."""

    band: str
    """The buffer that kept it."""
    value: float
    key: float
    """The key by which it was kept: the value, u, or value / u."""
    document: int
    position: int
    window: np.ndarray
    """Activations around it, float32 [W]."""


def examples(record: Record, seed: int) -> list[Example]:
    """All events of a record, buffer by buffer, each buffer's best first."""
    events = []
    for name in NAMES:
        place, value, window = (torch.from_numpy(a.copy()) for a in record.events[name])
        u = keys.uniform(keys.order(place, seed))
        key = {"top": value, "uniform": u, "weighted": value.double() / u}[name]
        around = windows.decode(window, value).numpy()
        columns = (value.tolist(), key.tolist(), keys.document_of(place).tolist(), keys.position_of(place).tolist())
        events += [Example(name, v, k, d, p, w) for v, k, d, p, w in zip(*columns, around, strict=True)]
    return events


def statistics_of(record: Record, tokens: int) -> dict[str, Any]:
    """Count, density, mean, sums and histogram of a record, as JSON values."""
    total = float(read_sum(record.sums[None], SUM_DIGITS)[0])
    squares = float(read_sum(record.squares[None], SQUARE_DIGITS)[0])
    top = record.events["top"][1]
    filled = record.histogram.nonzero()[0]
    span = slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0, 0)
    return {
        "count": record.count,
        "density": record.count / tokens if tokens else 0.0,
        "max": float(top[0]) if len(top) else 0.0,
        "mean": total / record.count if record.count else 0.0,
        "sum": total,
        "sum_sq": squares,
        "histogram": {
            "low_exponents": edges()[span].tolist(),
            "counts": record.histogram[span].tolist(),
            "zeros": tokens - record.count,
        },
    }


# shares of the firings, weakest first, at which bands are cut
LEVELS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.98, 1.0)
_TAIL = 0.75  # quantiles above this come from the weighted sample, which holds more strong firings


def bands(record: Record, events: list[Example]) -> list[dict[str, Any]]:
    """Quantile bands of the firings, strongest first, as JSON values; "examples" are indices into `events`.

    Quantiles up to 0.75 are those of the uniform sample. Above, the weighted sample is used, each event standing for
    max(1, t / value) firings, t being the lowest priority kept (Duffield, Lund and Thorup 2007). Both are exact for a
    latent that fired at most as often as the uniform sample has slots. An event in several buffers is listed once.
    """
    if not record.count:
        return []
    values = np.sort(record.events["uniform"][1].astype(np.float64))
    strong, weights = _tail(record, events)
    cuts = [0.0]
    for level in LEVELS[1:-1]:
        cut = _quantile(strong, weights, level) if level > _TAIL else _quantile(values, np.ones(len(values)), level)
        cuts.append(max(cuts[-1], cut))
    cuts.append(max(e.value for e in events))
    seen: dict[tuple[int, int], int] = {}
    for index, example in enumerate(events):
        seen.setdefault((example.document, example.position), index)
    listed = sorted(seen.values(), key=lambda i: (-events[i].value, events[i].document, events[i].position))
    result = []
    for i in range(len(LEVELS) - 2, -1, -1):
        low, high = cuts[i], cuts[i + 1]
        if high > low:
            inside = [j for j in listed if low < events[j].value <= high]
            result.append({"low": low, "high": high, "share": LEVELS[i + 1] - LEVELS[i], "examples": inside})
        elif result:
            result[-1]["share"] += LEVELS[i + 1] - LEVELS[i]
    return result


def _tail(record: Record, events: list[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Values of the weighted sample, ascending, and how many firings each stands for."""
    values = record.events["weighted"][1].astype(np.float64)
    weights = np.ones(len(values))
    if record.count > len(values):
        # the event of the lowest priority sets the bar and stands for nothing itself
        bar = next(e.key for e in reversed(events) if e.band == "weighted")
        values = values[:-1]
        weights = np.maximum(1, bar / values)
    by = values.argsort(kind="stable")
    return values[by], weights[by]


def _quantile(values: np.ndarray, weights: np.ndarray, level: float) -> float:
    """The smallest value at or below which a share of at least `level` of the weight lies; `values` ascend."""
    below = weights.cumsum()
    return float(values[min(int(np.searchsorted(below, level * below[-1] * (1 - 1e-12))), len(values) - 1)])
