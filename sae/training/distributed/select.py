"""The largest entries of a batch whose rows and latents lie on many ranks, by counting.

Positive floats are ordered as the integers with the same bits. So four rounds, each of which counts the entries by the
next eight bits in every rank and adds the counts, give the exact smallest value that is kept; the entries themselves
never travel, but for those equal to that value where not all of them fit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae.training.distributed.mesh import Mesh
from sae_kernels import SparseCodes

BITS = 8  # of every round


def largest_of_batch(listed: SparseCodes, count: int, mesh: Mesh) -> SparseCodes:
    """The entries among the `count` largest of all ranks, without those that are zero; differentiable.

    Args:
        listed: CSR codes of this rank's rows over its latents, values of at least 0, every one of the `count` largest
            among them. Of equal values the lowest token's stay, then the lowest latent's.
    """
    # without the sign of -0 or NaN; NaN is above infinity, as in a sort
    keys = listed.values.detach().float().abs().view(torch.int32).long()
    threshold, above = _threshold(keys, count, mesh)
    kept = keys > threshold if threshold > 0 else keys > 0
    if threshold > 0:
        equal = (keys == threshold).nonzero().squeeze(1)
        kept[equal] = _first(_places(listed, equal, mesh), count - above, mesh)
    tokens = listed.rows()[kept]
    counts = torch.bincount(tokens, minlength=listed.tokens)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return SparseCodes(listed.values[kept], listed.indices[kept], listed.width, offsets)


def _threshold(keys: Tensor, count: int, mesh: Mesh) -> tuple[int, int]:
    """The `count`-th largest key of all ranks, 0 where there are fewer, and how many are larger."""
    prefix, above = 0, 0
    for shift in range(32 - BITS, -1, -BITS):
        alike = keys[(keys >> (shift + BITS)) == prefix]
        histogram = torch.bincount((alike >> shift) & ((1 << BITS) - 1), minlength=1 << BITS)
        larger = mesh.total(histogram, "all").flip(0).cumsum(0)
        # the highest digit at which there are enough
        step = int(torch.searchsorted(larger, count - above))
        if step == 1 << BITS:
            return 0, above + int(larger[-1])
        above += int(larger[step - 1]) if step else 0
        prefix = (prefix << BITS) | ((1 << BITS) - 1 - step)
    return prefix, above


def _places(listed: SparseCodes, entries: Tensor, mesh: Mesh) -> Tensor:
    """Token and latent of some entries as one number that orders them as in a single process."""
    token = mesh.i_data * listed.tokens + listed.rows()[entries]
    latent = mesh.i_latent * listed.width + listed.indices[entries]
    return token * (mesh.shape.latent * listed.width) + latent


def _first(places: Tensor, count: int, mesh: Mesh) -> Tensor:
    """Which of these places, unlike in all ranks, are among the `count` lowest of all."""
    sizes = mesh.gather(torch.tensor([len(places)], device=places.device), "all")
    if int(sizes.sum()) <= count:
        return torch.ones_like(places, dtype=torch.bool)
    padded = torch.full((int(sizes.max()),), torch.iinfo(torch.int64).max, device=places.device)
    padded[: len(places)] = places
    return places <= mesh.gather(padded, "all").flatten().sort().values[count - 1]
