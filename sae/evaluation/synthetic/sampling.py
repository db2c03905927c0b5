"""Draws from a world: activations with the features that made them, a pure function of (world, seed, batch).

data = SyntheticData(WORLDS["superposed"], seed=0)
x, codes, _ = data.sample(1024, batch=17)       # [1024, d], SparseCodes over the G features
for x, codes, _ in data.heldout(50_000): ...       # shares no draw with any `sample`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sae.config import ConfigError
from sae.evaluation.synthetic.worlds import World
from sae_kernels import SparseCodes, sparse_decode

CHUNK = 8192  # tokens drawn at a time: bounds the memory of the roots' dense draws to CHUNK x roots
SPREAD_STEPS = 100


class Sample(NamedTuple):
    """Synthetic activations and the features that made them."""

    x: Tensor
    """Activations, float32 [n, d]."""
    codes: SparseCodes
    """True magnitudes of the features that fire, CSR over the G features, all of them positive."""
    target: Tensor | None = None
    """The target [n, d_out], where it is not x."""


class SyntheticData:
    """A world's features, and samples drawn from them."""

    world: World
    features: Tensor
    """Unit directions d_i, float32 [G, d]."""
    bias: Tensor
    """Constant added to every token, float32 [d]."""
    rates: Tensor
    """Firing rate of every feature, float64 [G]; their sum is the world's L0."""
    parents: Tensor
    """Parent of every feature, -1 for roots, int64 [G]."""

    def __init__(self, world: World, *, seed: int) -> None:
        if seed < 0:
            raise ConfigError(f"seed {seed}: expected 0 or more")
        self.world, self.seed = world, seed
        generator = self._generator("features")
        self.features = make_directions(world, generator)
        self.bias = world.bias * unit(torch.randn(world.dim, generator=generator))
        self.rates = torch.tensor(world.rates(), dtype=torch.float64)
        self.parents = torch.tensor(world.parents())
        roots = self.rates[: world.roots]
        # P(z > t) = p for a standard normal z
        self._thresholds = -torch.special.ndtri(roots).float()
        self._factors = unit(torch.randn(world.roots, world.rank, generator=generator)) * world.correlation**0.5
        self._split = torch.tensor(world.split()).cumsum(0)

    def sample(self, n: int, batch: int, *, heldout: bool = False) -> Sample:
        """Draw `n` tokens; the same (n, batch, heldout) gives the same tokens.

        Raises:
            ConfigError: n is not positive, or the batch's number is negative.
        """
        if n < 1 or batch < 0:
            raise ConfigError(f"sample of n {n}, batch {batch}: expected n of 1 or more and batch of 0 or more")
        generator = self._generator("heldout" if heldout else "training", batch)
        parts = [self._draw(min(CHUNK, n - start), generator) for start in range(0, n, CHUNK)]
        if len(parts) == 1:
            return parts[0]
        counts = torch.cat([part.codes.l0() for part in parts])
        codes = SparseCodes(
            torch.cat([part.codes.values for part in parts]),
            torch.cat([part.codes.indices for part in parts]),
            self.world.features,
            row_starts(counts),
        )
        return Sample(torch.cat([part.x for part in parts]), codes)

    def heldout(self, tokens: int) -> Iterator[Sample]:
        """Samples of at most 8192 tokens each, `tokens` altogether, that no training batch shares."""
        for batch, start in enumerate(range(0, tokens, CHUNK)):
            yield self.sample(min(CHUNK, tokens - start), batch, heldout=True)

    def _generator(self, *use: str | int) -> torch.Generator:
        """A separate generator for every use and batch, unrelated to those of neighbouring seeds."""
        digest = hashlib.sha256(json.dumps([self.seed, *use]).encode()).digest()[:8]
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

    def _draw(self, n: int, generator: torch.Generator) -> Sample:
        world = self.world
        rows, features = self._fire(n, generator)
        order = torch.argsort(rows, stable=True)
        normal = torch.randn(len(rows), generator=generator)
        # a magnitude of exactly zero would be a firing that cannot be seen
        values = (world.mean + world.std * normal).abs().clamp_min(torch.finfo(torch.float32).tiny)
        starts = row_starts(torch.bincount(rows, minlength=n))
        codes = SparseCodes(values, features[order], world.features, starts)
        x = sparse_decode(codes, self.features, self.bias)
        if world.noise:
            x += world.noise * torch.randn(x.shape, generator=generator)
        return Sample(x, codes)

    def _fire(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Which features fire in which of n tokens: rows int64 [nnz], features int64 [nnz], level after level.

        Roots by a Gaussian copula: z = e √(1-c) + factors · shared is standard normal for every root, so that each
        keeps its rate whatever the correlation. Every node that fires then draws one child, or none.
        """
        world = self.world
        z = torch.randn(n, world.roots, generator=generator)
        if world.rank:
            shared = torch.randn(n, world.rank, generator=generator)
            z = z.mul_((1 - world.correlation) ** 0.5).addmm_(shared, self._factors.T)
        if world.exact:
            fires = torch.zeros_like(z, dtype=torch.bool).scatter(1, z.topk(int(world.l0)).indices, True)
        else:
            fires = z > self._thresholds
        rows, nodes = fires.nonzero(as_tuple=True)
        fired = [(rows, nodes)]
        for level in range(world.depth):
            child = torch.bucketize(torch.rand(len(rows), generator=generator), self._split, right=True)
            some = child < world.branching
            first, below = world.level(level).start, world.level(level + 1).start
            nodes = below + (nodes[some] - first) * world.branching + child[some]
            rows = rows[some]
            fired.append((rows, nodes))
        return torch.cat([rows for rows, _ in fired]), torch.cat([nodes for _, nodes in fired])


def row_starts(counts: Tensor) -> Tensor:
    """CSR row starts int64 [n+1] from the number of entries of every row [n]."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def unit(vectors: Tensor) -> Tensor:
    """Vectors [..., d] at length 1."""
    return torch.nn.functional.normalize(vectors, dim=-1)


def make_directions(world: World, generator: torch.Generator) -> Tensor:
    """Unit directions of the world's features, float32 [G, d]."""
    directions = unit(torch.randn(world.features, world.dim, generator=generator, dtype=torch.float64))
    if world.directions == "random":
        return directions.float()
    apart = torch.linalg.qr(directions.T).Q.T if world.features <= world.dim else push_apart(directions)
    return apart.float().contiguous()


def push_apart(directions: Tensor) -> Tensor:
    """Unit directions [G, d] moved down the gradient of Σ_{i≠j} cos⁴, whose large terms are the closest pairs.

    (Benedetto & Fickus 2003 study the square; a higher power weighs the closest pairs more, towards the largest one.)
    """
    length = 0.1
    for step in range(SPREAD_STEPS):
        cosine = (directions @ directions.T).fill_diagonal_(0)
        push = cosine.pow(3) @ directions
        push -= (push * directions).sum(1, keepdim=True) * directions  # along the sphere
        largest = push.norm(dim=1).max().clamp_min(1e-12)
        directions = unit(directions - length * (1 - step / SPREAD_STEPS) * push / largest)
    return directions
