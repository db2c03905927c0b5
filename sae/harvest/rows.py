"""Rows: what the harvest gives of each token, from the forward pass to the training batch.

rows.activations["resid_post.9"]              # [n, d]
rows.token, rows.document, rows.position      # [n]
Rows.join([rows.between(0, 100), rows.select(keep)]).neighbours()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae.base.finite import all_finite, first_not_finite
from sae.base.transfer import to_host

PLACE_BYTES = 8 + 4 + 4 + 4 + 1
"""Bytes of a row beside its activations: document, token, position, start, kind."""


class ActivationError(ValueError):
    """Activations are not finite, or do not fit the precision they are kept in; names the site and the remedy."""


class Rows(NamedTuple):
    """Activations with what is known of each token; n rows, no padding. All but the activations lie on the CPU."""

    activations: dict[str, Tensor]
    """Site name -> [n, d]."""
    token: Tensor
    """Token ids, int32 [n]."""
    document: Tensor
    """Index of the document in the data set, int64 [n]."""
    position: Tensor
    """Position in the segment, int32 [n]."""
    start: Tensor
    """Tokens of the document before the segment, int32 [n]; -1 in stores of earlier versions, which lack it."""
    kind: Tensor
    """ORDINARY, BOS, SPECIAL, SINK or OTHER_ROLE, int8 [n]; -1 in stores of earlier versions, which lack it."""

    @property
    def size(self) -> int:
        """Number of rows, n."""
        return len(self.token)

    def select(self, keep: Tensor) -> Rows:
        """The rows whose indices are in `keep` (int64, CPU)."""
        return Rows(
            {name: a[keep.to(a.device, non_blocking=True)] for name, a in self.activations.items()},
            *(column[keep] for column in self[1:]),
        )

    def between(self, begin: int, end: int) -> Rows:
        """Rows begin..end - 1, without a copy."""
        return Rows({name: a[begin:end] for name, a in self.activations.items()}, *(c[begin:end] for c in self[1:]))

    def at(self, sites: Iterable[str]) -> Rows:
        """The same rows with the activations of some sites alone."""
        return self._replace(activations={site: self.activations[site] for site in sites})

    def cpu(self) -> Rows:
        """The same rows with their activations on the CPU."""
        return self._replace(activations=to_host(self.activations))

    @staticmethod
    def join(parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, one part after another."""
        activations = {name: torch.cat([part.activations[name] for part in parts]) for name in parts[0].activations}
        return Rows(activations, *(torch.cat(columns) for columns in zip(*(part[1:] for part in parts), strict=True)))

    def empty(self, size: int) -> Rows:
        """`size` uninitialised rows with these rows' sites, dtypes and devices."""
        return Rows(
            {name: a.new_empty(size, a.shape[1]) for name, a in self.activations.items()},
            *(column.new_empty(size) for column in self[1:]),
        )

    def write(self, at: slice | Tensor, rows: Rows, of: slice | Tensor = slice(None)) -> None:
        """Replace the rows at `at` by rows `of` of `rows` (slices, or indices int64 [n] on the CPU), at these sites."""
        for name, a in self.activations.items():
            a[at] = rows.activations[name][of]
        for column, new in zip(self[1:], rows[1:], strict=True):
            column[at] = new[of]

    def stored(self, dtype: torch.dtype, sites: Iterable[str], name_of: Callable[[Tensor, Tensor, int], str]) -> Rows:
        """These rows at some sites, in the precision in which they wait; see `to_stored`.

        Args:
            name_of: gives the name of a row's document from the columns `token` and `document` and the row's number.
        """
        return self._replace(
            activations={
                site: to_stored(
                    self.activations[site], dtype, site, lambda row: name_of(self.token, self.document, row)
                )
                for site in sites
            }
        )

    def neighbours(self) -> Tensor:
        """Whether each row is the token before the next row's in the same segment, bool [n - 1]."""
        return (
            (self.document[1:] == self.document[:-1])
            & (self.start[1:] == self.start[:-1])
            & (self.position[1:] == self.position[:-1] + 1)
        )


def to_stored(
    activations: Tensor, dtype: torch.dtype, site: str, name_of: Callable[[int], str] = lambda row: f"row {row}"
) -> Tensor:
    """Activations [n, d] in the precision in which they wait; `name_of` names a row's document in errors.

    Raises:
        ActivationError: a value is not finite or does not fit the precision; names the site, the document and a remedy.
    """
    stored = activations.to(dtype)
    if not all_finite(stored):
        where = name_of(first_not_finite(stored))
        if not all_finite(activations):
            raise ActivationError(f"site {site}: the model's activations are not finite in {where}")
        largest = activations.abs().max().item()
        raise ActivationError(
            f"site {site}: {largest:.3g} in {where} does not fit {dtype}; choose --store-precision bfloat16"
        )
    return stored
