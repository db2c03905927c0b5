"""Work of a GPU ahead of its use: in a background thread, and on a stream beside the one that trains.

for block in prefetch_beside(device, blocks, depth=1): ...      # `prefetch`, with both kinds of work on the GPU at once
for batch in onto_device(batches, device): ...                  # on the GPU, the next ones copied meanwhile

A GPU runs the work of one stream in order. Were both on one, a harvest would wait for the training step that was queued
before it, and the step for the harvest. Beside each other, an event behind each item tells the training stream when the
item is whole. What is computed does not depend on it, so bits are the same with and without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from sae.base.transfer import to_device
from sae.data.batching import Batch
from sae.data.prefetch import prefetch

T = TypeVar("T")

BATCHES_AHEAD = 2
"""Batches that are copied to the GPU before they are asked for."""


def prefetch_beside(device: torch.device, items: Iterator[T], depth: int) -> Iterator[T]:
    """`prefetch`; on a GPU the thread computes on a stream of its own, and items are whole for the current stream.

    Args:
        device: where `items` computes and the caller uses them.
        items: their tensors are found in tuples, lists and mappings.
        depth: items ahead.
    """
    if device.type != "cuda":
        yield from prefetch(items, depth)
        return
    training = torch.cuda.current_stream(device)
    beside = torch.cuda.Stream(device)
    computed: Any = prefetch(_computed(items, beside, training), depth)
    with contextlib.closing(computed) as ready:
        for item, whole in ready:
            training.wait_event(whole)
            for tensor in tensors_in(item):
                if tensor.is_cuda:
                    # or its memory could be given to the next item while the training stream still reads it
                    tensor.record_stream(training)
            yield item


def _computed(items: Iterator[T], beside: Any, training: Any) -> Iterator[tuple[T, Any]]:
    """Items computed on the stream `beside`, each with an event that tells when it is whole."""
    beside.wait_stream(training)  # the model's weights were written there
    end = object()
    try:
        while True:
            with torch.cuda.stream(beside):
                item: Any = next(items, end)
                whole = beside.record_event()
            if item is end:
                return
            yield item, whole
            del item
    finally:
        if isinstance(items, Generator):
            items.close()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)


def onto_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches on the device; for a GPU a thread gathers, pins and copies them ahead of their use."""
    if device.type != "cuda":
        return batches
    return prefetch_beside(device, (_moved(batch, device) for batch in batches), BATCHES_AHEAD)


def _moved(batch: Batch, device: torch.device) -> Batch:
    x = to_device(batch.input, device)
    y = x if batch.target is batch.input else to_device(batch.target, device)
    return batch._replace(input=x, target=y)
