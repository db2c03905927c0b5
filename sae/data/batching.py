"""The trainer's view of its data: batches that carry the state with which to resume after them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sae.base.draws import generator


class Batch(NamedTuple):
    """One training batch."""

    input: Tensor
    """[N, d]"""
    target: Tensor
    """[N, d_out]; the same tensor as `input` for an autoencoder."""
    state: dict[str, Any]
    """JSON values; `iterate(state)` continues with the batch after this one."""
    adjacent: Tensor | None = None
    """With pairs: whether rows 2i and 2i + 1 are neighbouring tokens of one document, bool [N / 2]."""


class Batches(Protocol):
    """A stream of batches, whatever their source."""

    steps: int
    """How many batches there are in all."""

    def iterate(self, state: dict[str, Any] | None) -> Iterator[Batch]:
        """Batches from the beginning, or from after the batch that carried `state`."""
        ...


def permutation(n: int, *key: int) -> Tensor:
    """A permutation of 0..n-1, int64, that depends on the integers of `key` alone."""
    return torch.randperm(n, generator=generator(*key))
