"""Images that are sums of few known atoms, for asking whether a dictionary finds them again.

    x = Σ_g c_g a_g + noise · ε        c_g = 0, or with probability l0 / G uniform in [0.5, 1.5];  ε standard normal

The atoms a_g are Gabor patches (a wave under a Gaussian, as simple cells and sparse codes of photographs have them:
Olshausen and Field 1996), of length 1, small against the image, and no two with a |cosine| of 0.5 or more. Pixels are
real numbers of either sign. Image i depends on the seed and on i alone, not on what else is rendered.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sae.config import ConfigError, check
from sae.data.images.base import ImageSet, check_option, checked

COHERENCE = 0.5  # no two atoms have a |cosine| as large
PATIENCE = 200  # candidates for an atom before it is given up


class PlantedWorld:
    """The atoms, and the coefficients of every image.

    Args:
        seed: of everything.
        size: rows and columns of an image.
        atoms: their number G.
        l0: mean number of atoms in an image.
        noise: standard deviation of the noise of a pixel.

    Raises:
        ConfigError: an argument out of range, or more atoms than fit.
    """

    atoms: Tensor
    """Unit directions, float32 [G, size·size]."""

    def __init__(self, seed: int = 0, *, size: int = 16, atoms: int = 128, l0: float = 5.0, noise: float = 0.02):
        check(seed >= 0, "seed", seed, "0 or more")
        check_option(size >= 4, "size", size, "4 or more pixels")
        check_option(atoms >= 1, "atoms", atoms, "1 or more")
        check_option(0 < l0 <= atoms, "l0", l0, f"over 0 and at most the number of atoms, {atoms}")
        check_option(noise >= 0, "noise", noise, "0 or more")
        self.seed, self.size, self.rate, self.noise = seed, size, l0 / atoms, noise
        self._atoms = draw_atoms(self._generator(0), size, atoms)
        self.atoms = torch.from_numpy(self._atoms).float()

    def coefficients(self, positions: Tensor) -> Tensor:
        """c of the images at positions int64 [n]: float32 [n, G]."""
        drawn = [self._coefficients(self._generator(1 + int(i))) for i in positions]
        return torch.from_numpy(np.stack(drawn)).float() if drawn else torch.empty(0, len(self.atoms))

    def render(self, positions: Tensor) -> Tensor:
        """Images float32 [n, size·size]."""
        images = np.empty((len(positions), self.size**2))
        for row, position in enumerate(positions.tolist()):
            generator = self._generator(1 + position)
            c = self._coefficients(generator)
            fired = c.nonzero()[0]
            images[row] = c[fired] @ self._atoms[fired]
            images[row] += self.noise * generator.standard_normal(self.size**2)
        return torch.from_numpy(images).float()

    def _coefficients(self, generator: np.random.Generator) -> np.ndarray:
        fires = generator.random(len(self._atoms)) < self.rate
        return fires * generator.uniform(0.5, 1.5, len(self._atoms))

    def _generator(self, stream: int) -> np.random.Generator:
        # the counter's last word numbers the stream, so that no two overlap within 2^192 draws
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, stream]))


def planted(
    seed: int, *, size: int = 16, atoms: int = 128, l0: float = 5.0, noise: float = 0.02, count: int = 100_000
) -> ImageSet:
    """`count` images of 1 x size x size of the world that `seed` and the other arguments give; `atoms` are known."""
    check_option(count >= 1, "count", count, "1 or more")
    world = PlantedWorld(seed, size=size, atoms=atoms, l0=l0, noise=noise)
    settings = {"world_seed": seed, "size": size, "atoms": atoms, "l0": l0, "noise": noise}
    return ImageSet(
        name="planted",
        shape=(1, size, size),
        count=count,
        render=lambda positions: world.render(checked(positions, count)),
        provenance={"name": "planted", "source": "drawn by sparsight", **settings},
        atoms=world.atoms,
    )


def draw_atoms(generator: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Gabor patches of length 1, float64 [count, size²]; a candidate too near to an earlier atom is drawn again."""
    atoms = np.empty((count, size * size))
    for place in range(count):
        for _ in range(PATIENCE):
            atoms[place] = _gabor(generator, size)
            if np.abs(atoms[:place] @ atoms[place]).max(initial=0) < COHERENCE:
                break
        else:
            raise ConfigError(
                f"atoms {count}: after {place} of them no further fits {size}x{size} pixels with all cosines under "
                f"{COHERENCE}; ask for fewer or a larger size"
            )
    return atoms


def _gabor(generator: np.random.Generator, size: int) -> np.ndarray:
    centre = generator.uniform(1, size - 1, 2)
    angle, phase = generator.uniform(0, 2 * math.pi, 2)
    width, wavelength = generator.uniform(1.0, 1.8), generator.uniform(3.0, 6.0)
    y, x = np.meshgrid(*(np.arange(size) + 0.5 - c for c in centre), indexing="ij")
    wave = np.cos(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / wavelength + phase)
    patch = (wave * np.exp(-(x**2 + y**2) / (2 * width**2))).ravel()
    return patch / np.linalg.norm(patch)
