"""Worlds: settings of how synthetic activations are made of known features. `sampling` draws from them.

    world = WORLDS["hierarchical"]
    world.l0                # mean features active a token: what to set an autoencoder's k to
    data = SyntheticData(world, seed=0)

Sources: Elhage et al. 2022, "Toy models of superposition" (sparse features as directions, more features than
dimensions); Chanin and Garriga-Alonso 2026, "SynthSAEBench" (Zipf firing rates, a Gaussian copula of low rank, trees of
features whose children exclude each other). This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sae.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class World:
    """x = Σ_i a_i d_i + b + noise: which features d_i there are, how often, with which, and how strongly a_i they fire.

    Features form `roots` trees, each root with `branching` children a node down to `depth` levels; without branching
    every feature is a root. Features are numbered level by level: the roots first, then all their children.
    """

    features: int
    """Number of features G, those of all trees together."""
    dim: int
    """Width of the activations d; more features than dimensions means superposition."""
    l0: float
    """Mean number of features active a token, exactly: the sum of all firing rates."""
    exact: bool = False
    """Exactly `l0` features fire in every token, any set of that many as likely as any other; else each on its own."""
    zipf: float = 0.0
    """Exponent a of the roots' firing rates, proportional to (i+1)^-a, and of the split of a node's firings over its
    children; 0 makes all equal."""
    max_rate: float = 0.5
    """No root fires in more than this share of the tokens."""
    mean: float = 1.0
    """Mean of the normal distribution whose absolute value is a firing feature's magnitude."""
    std: float = 0.25
    """Standard deviation of that distribution."""
    branching: int = 0
    """Children of every node of a tree; 0 means that no feature has a parent."""
    depth: int = 0
    """Levels of children under a root."""
    child_rate: float = 0.0
    """Chance that one of its children fires when a node fires; siblings exclude each other."""
    correlation: float = 0.0
    """Share c of a root's latent normal variable that shared factors make, 0 to below 1: two roots' variables correlate
    by c u_i·u_j, with u_i random unit vectors in `rank` dimensions."""
    rank: int = 0
    """Number of shared factors."""
    noise: float = 0.0
    """Standard deviation of the normal noise added to every coordinate."""
    bias: float = 0.0
    """Length of the constant vector b added to every token."""
    directions: Literal["random", "spread"] = "random"
    """random: independent uniform directions. spread: orthonormal where features <= dim, else pushed apart."""

    def __post_init__(self) -> None:
        _check(self.features >= 1, "features", self.features, "at least 1")
        _check(self.dim >= 1, "dim", self.dim, "at least 1")
        _check(self.zipf >= 0, "zipf", self.zipf, "0 or more")
        _check(0 < self.max_rate < 1, "max_rate", self.max_rate, "a share between 0 and 1, both excluded")
        _check(self.mean >= 0, "mean", self.mean, "0 or more")
        _check(self.std >= 0, "std", self.std, "0 or more")
        _check(self.mean + self.std > 0, "std", self.std, "more than 0 where mean is 0: magnitudes are positive")
        _check(self.branching >= 0, "branching", self.branching, "0 or more")
        _check(self.depth >= 0, "depth", self.depth, "0 or more")
        deep = self.depth > 0
        _check((self.branching > 0) == deep, "depth", self.depth, f"levels and branching ({self.branching}) together")
        _check(0 <= self.child_rate <= 1, "child_rate", self.child_rate, "a chance from 0 to 1")
        _check((self.child_rate > 0) == deep, "child_rate", self.child_rate, "more than 0 with children, else 0")
        _check(
            self.features % self.tree_size == 0, "features", self.features, f"a multiple of {self.tree_size}, a tree"
        )
        _check(0 <= self.correlation < 1, "correlation", self.correlation, "0 to below 1")
        _check((self.correlation > 0) == (self.rank > 0), "rank", self.rank, "at least 1 with a correlation, else 0")
        _check(self.noise >= 0, "noise", self.noise, "0 or more")
        _check(self.bias >= 0, "bias", self.bias, "0 or more")
        _check(self.directions in ("random", "spread"), "directions", self.directions, "random or spread")
        alike = self.zipf == self.correlation == 0 and not deep and self.l0 == int(self.l0)
        _check(not self.exact or alike, "exact", self.exact, "a whole l0, without zipf, correlation or children")
        most = self.roots * self.max_rate * self._nodes_a_firing
        _check(0 < self.l0 < most, "l0", self.l0, f"more than 0 and less than {most:g}, with every root at max_rate")

    @property
    def tree_size(self) -> int:
        """Features of one tree."""
        return sum(self.branching**level for level in range(self.depth + 1))

    @property
    def roots(self) -> int:
        """Number of trees."""
        return self.features // self.tree_size

    @property
    def _nodes_a_firing(self) -> float:
        """Expected features of a tree that fire when its root does."""
        return sum(self.child_rate**level for level in range(self.depth + 1))

    def level(self, level: int) -> range:
        """Numbers of the features at a level of the trees, 0 the roots."""
        start = sum(self.roots * self.branching**above for above in range(level))
        return range(start, start + self.roots * self.branching**level)

    def parents(self) -> list[int]:
        """Parent of every feature, -1 for roots."""
        parents = [-1] * self.roots
        for level in range(self.depth):
            parents += [node for node in self.level(level) for _ in range(self.branching)]
        return parents

    def split(self) -> list[float]:
        """Chance of every child of a node that fires, in order; the sum is `child_rate`."""
        weights = [(child + 1) ** -self.zipf for child in range(self.branching)]
        return [self.child_rate * weight / sum(weights) for weight in weights]

    def rates(self) -> list[float]:
        """Firing rate of every feature: a root's, or its parent's times its part of the split.

        Roots have min(max_rate, c (i+1)^-zipf), with c such that all rates add up to `l0`.
        """
        rates = self._root_rates()
        split = self.split()
        for level in range(self.depth):
            rates += [rates[node] * share for node in self.level(level) for share in split]
        return rates

    def l0_within(self, width: int) -> float:
        """Mean number of features a token among the `width` most frequent: the L0 of a narrower dictionary of them."""
        return sum(sorted(self.rates(), reverse=True)[:width])

    def _root_rates(self) -> list[float]:
        shape = [(root + 1) ** -self.zipf for root in range(self.roots)]
        wanted = self.l0 / self._nodes_a_firing
        # rates at the cap are the first ones; the rest share what these leave
        for capped in range(self.roots):
            scale = (wanted - capped * self.max_rate) / sum(shape[capped:])
            if scale * shape[capped] <= self.max_rate:
                return [self.max_rate] * capped + [scale * value for value in shape[capped:]]
        raise AssertionError("l0 was checked to be less than every root at max_rate makes")


def _check(good: bool, name: str, value: Any, expected: str) -> None:
    if not good:
        raise ConfigError(f"world: {name} {value}: expected {expected}")


WORLDS: Mapping[str, World] = {
    # orthogonal features, always as many at once: every method should find all
    "easy16": World(features=16, dim=32, l0=2, exact=True, directions="spread", bias=1.0),
    # twice as many features as dimensions, close to the best that packing allows
    "superposed": World(features=128, dim=64, l0=4, exact=True, directions="spread"),
    # from here on the number of features varies from token to token
    # many at once that favour or avoid each other's company, and a dictionary (sae/cli/recovery.py) without a latent to
    # spare: with fewer or more active latents than features the least error lies in mixtures of them (Chanin and
    # Garriga-Alonso 2025, "Sparse but wrong", from whose toy model the sizes are)
    "correlated": World(features=50, dim=100, l0=12.0, correlation=0.6, rank=10, std=0.15, directions="spread"),
    "zipf": World(features=128, dim=64, l0=4.0, zipf=1.0, directions="spread"),
    "noisy": World(features=128, dim=64, l0=4.0, noise=0.1, bias=2.0, directions="spread"),
    # a parent seldom fires without a child, so its direction is easily merged into theirs: BatchTopK loses parents that
    # Matryoshka's first prefix, as wide as there are roots, keeps
    "hierarchical": World(
        features=512, dim=128, l0=4.0, zipf=0.5, branching=3, depth=1, child_rate=0.8, std=0.15, directions="spread"
    ),
    # for a dictionary a quarter as wide, which must give up some features; FVU does not tell which
    "deep": World(
        features=680, dim=96, l0=5.0, zipf=0.5, branching=3, depth=3, child_rate=0.7, std=0.15, directions="spread"
    ),
}
