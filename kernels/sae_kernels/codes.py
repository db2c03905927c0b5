"""SparseCodes: the latent activations of a batch, without their zeros.

codes = SparseCodes(values, indices, width=4608)     # [N, K] and [N, K]
codes.to_dense()                                     # [N, 4608]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SparseCodes:
    """Codes f [N, F], stored as their entries; whatever is not listed is zero.

    Layouts:

    - rectangular (`offsets is None`): `values` and `indices` are [N, K]; every token lists K latents, some of which
      may have the value zero (a token with fewer than K positive pre-activations).
    - dense (`in_order`): rectangular with K = width, every token listing all latents in order.
    - CSR (`offsets` [N+1]): `values` and `indices` are [nnz]; the entries of token n are offsets[n]:offsets[n+1].

    No latent is listed twice for one token. Only shapes are checked at construction; `validate` checks the rest.

    Example:
        >>> import torch
        >>> codes = SparseCodes(torch.tensor([[2.0, 1.0]]), torch.tensor([[4, 0]]), width=5)
        >>> codes.to_dense()
        tensor([[1., 0., 0., 0., 2.]])
        >>> codes.tokens, codes.l0()
        (1, tensor([2]))
    """

    values: Tensor
    """Activations, floating point; gradients flow through them."""
    indices: Tensor
    """Which latent each value belongs to, int64, in [0, width)."""
    width: int
    """F, the number of latents of the dictionary."""
    offsets: Tensor | None = None
    """CSR row starts, int64 [N+1], or None for the rectangular layout."""
    in_order: bool = False
    """Whether every token lists all latents, 0 to width - 1, in this order."""

    def __post_init__(self) -> None:
        if self.values.shape != self.indices.shape:
            raise ValueError(
                f"values {tuple(self.values.shape)} and indices {tuple(self.indices.shape)} differ in shape"
            )
        if self.values.ndim != (2 if self.offsets is None else 1):
            raise ValueError(
                f"expected values [N, K], or [nnz] with offsets; got values {tuple(self.values.shape)}, "
                f"offsets {None if self.offsets is None else tuple(self.offsets.shape)}"
            )

    @classmethod
    def dense(cls, values: Tensor) -> SparseCodes:
        """Codes that list every latent, from a dense [N, width]."""
        indices = torch.arange(values.shape[1], device=values.device).expand_as(values)
        return cls(values, indices, values.shape[1], in_order=True)

    @classmethod
    def cat(cls, parts: Sequence[SparseCodes]) -> SparseCodes:
        """The tokens of several codes behind each other; differentiable. One part is returned as it is.

        Raises:
            ValueError: no part, or parts of different widths.
        """
        widths = sorted({part.width for part in parts})
        if len(widths) != 1:
            raise ValueError(f"expected parts of one width, got the widths {widths}")
        if len(parts) == 1:
            return parts[0]
        if len({part.offsets is None and part.values.shape[1] for part in parts}) > 1:
            parts = [part.csr() for part in parts]
        values, indices = (torch.cat([getattr(part, name) for part in parts]) for name in ("values", "indices"))
        if parts[0].offsets is None:
            return cls(values, indices, widths[0], in_order=all(part.in_order for part in parts))
        return cls(values, indices, widths[0], _ends(torch.cat([part.counts() for part in parts])))

    @property
    def tokens(self) -> int:
        """N, the number of tokens (rows)."""
        return self.values.shape[0] if self.offsets is None else self.offsets.shape[0] - 1

    def validate(self) -> SparseCodes:
        """These codes, checked in full: for tests and debugging, because the host waits for the device.

        Raises:
            ValueError: names the tensor, and the first token or entry that breaks the layout.
        """
        if not self.values.is_floating_point():
            raise ValueError(f"values: expected a floating-point dtype; got {self.values.dtype}")
        for name, tensor in (("indices", self.indices), ("offsets", self.offsets)):
            if tensor is not None and tensor.dtype != torch.int64:
                raise ValueError(f"{name}: expected int64; got {tensor.dtype}")
            if tensor is not None and tensor.device != self.values.device:
                raise ValueError(f"{name}: expected on {self.values.device} as the values; got {tensor.device}")
        if self.offsets is not None:
            self._validate_offsets(self.offsets)
        outside = (self.indices < 0) | (self.indices >= self.width)
        if outside.any():
            token, index = self.rows()[outside][0].item(), self.indices[outside][0].item()
            raise ValueError(f"indices: expected in [0, {self.width}); token {token} lists latent {index}")
        places = (self.rows() * self.width + self.indices).flatten().sort().values
        repeated = places[1:][places.diff() == 0]
        if repeated.numel():
            token, index = divmod(int(repeated[0]), self.width)
            raise ValueError(f"indices: token {token} lists latent {index} twice")
        latents = torch.arange(self.width, device=self.indices.device)
        if self.in_order and (self.offsets is not None or not self.indices.equal(latents.expand(self.tokens, -1))):
            raise ValueError(f"in_order: expected every token to list latents 0 to {self.width - 1} in order")
        return self

    def _validate_offsets(self, offsets: Tensor) -> None:
        if offsets.ndim != 1 or offsets.numel() == 0:
            raise ValueError(f"offsets: expected [N + 1]; got shape {tuple(offsets.shape)}")
        ends, entries = (int(offsets[0]), int(offsets[-1])), self.values.shape[0]
        if ends != (0, entries):
            raise ValueError(
                f"offsets: expected from 0 to {entries}, the number of entries; got {ends[0]} to {ends[1]}"
            )
        falling = (offsets.diff() < 0).nonzero()
        if falling.numel():
            raise ValueError(
                f"offsets: expected none smaller than the one before; token {int(falling[0])} has fewer than 0"
            )

    def rows(self) -> Tensor:
        """The token of every entry, int64, of the shape of `values`."""
        if self.offsets is None:
            return torch.arange(self.tokens, device=self.values.device).unsqueeze(1).expand_as(self.indices)
        return torch.repeat_interleave(self.offsets.diff(), output_size=self.values.shape[0])

    def counts(self) -> Tensor:
        """Number of entries that every token lists, int64 [N]."""
        if self.offsets is not None:
            return self.offsets.diff()
        return torch.full((self.tokens,), self.values.shape[1], device=self.values.device)

    def csr(self) -> SparseCodes:
        """The same entries in the CSR layout."""
        if self.offsets is not None:
            return self
        return SparseCodes(self.values.flatten(), self.indices.flatten(), self.width, _ends(self.counts()))

    def kept(self, tokens: Tensor) -> SparseCodes:
        """The codes of some tokens, bool [N]; differentiable."""
        if self.offsets is None:
            return SparseCodes(self.values[tokens], self.indices[tokens], self.width, in_order=self.in_order)
        entries = tokens[self.rows()]
        return SparseCodes(self.values[entries], self.indices[entries], self.width, _ends(self.counts()[tokens]))

    def at(self, latents: Tensor) -> Tensor:
        """Activations [N, n] of n latents, int64 [n], each at most once, without the dense codes; differentiable."""
        column = torch.full((self.width,), -1, device=self.indices.device)
        column[latents] = torch.arange(len(latents), device=column.device)
        columns = column[self.indices.flatten()]
        wanted = columns >= 0
        places = (self.rows().flatten()[wanted], columns[wanted])
        return self.values.new_zeros(self.tokens, len(latents)).index_put(places, self.values.flatten()[wanted])

    def to_dense(self) -> Tensor:
        """The same codes as a dense [N, width] tensor of the values' dtype; differentiable."""
        if self.in_order:
            return self.values
        # scatter instead of scatter_add, which is slower: no latent is listed twice
        if self.offsets is None:
            return self.values.new_zeros(self.tokens, self.width).scatter(1, self.indices, self.values)
        places = self.rows() * self.width + self.indices
        return self.values.new_zeros(self.tokens * self.width).scatter(0, places, self.values).view(-1, self.width)

    def l0(self) -> Tensor:
        """Number of non-zero codes of every token, int64 [N]."""
        return self.per_token((self.values != 0).long())

    def per_token(self, values: Tensor) -> Tensor:
        """Sum over every token's entries [N] of numbers in the shape of `values`; differentiable."""
        if self.offsets is None:
            return values.sum(1)
        return values.new_zeros(self.tokens).index_add(0, self.rows(), values)

    def with_values(self, values: Tensor) -> SparseCodes:
        """The same entries with other values."""
        return SparseCodes(values, self.indices, self.width, self.offsets, self.in_order)


def _ends(counts: Tensor) -> Tensor:
    """CSR row starts of tokens with these numbers of entries."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
