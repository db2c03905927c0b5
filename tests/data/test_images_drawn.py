"""The drawn sets: dSprites-like, Shapes3D-like, planted."""

import math

import numpy as np
import pytest
import torch

from sae.config import ConfigError
from sae.data.images import open_images
from sae.data.images.planted import PlantedWorld


def sprite_by_formula(shape: int, scale: int, orientation: int, x: int, y: int) -> np.ndarray:
    """One image, pixel by pixel, as the outlines are defined."""
    s, angle = np.linspace(0.5, 1, 6)[scale], np.linspace(0, 2 * math.pi, 40)[orientation]
    cx, cy = 16 + 32 * np.linspace(0, 1, 32)[[x, y]]
    image = np.zeros((64, 64), dtype=np.float32)
    for row in range(64):
        for column in range(64):
            dx, dy = column + 0.5 - cx, row + 0.5 - cy
            u = (math.cos(angle) * dx - math.sin(angle) * dy) / s
            v = (math.sin(angle) * dx + math.cos(angle) * dy) / s
            if shape == 0:
                inside = abs(u) <= 9.6 and abs(v) <= 9.6
            elif shape == 1:
                inside = (u / 12.8) ** 2 + (v / 7.2) ** 2 <= 1
            else:
                inside = (abs(u) - 4.781) ** 2 + (v + 4.413) ** 2 <= 4.812**2
                if -4.413 <= v <= 8.223:
                    inside |= abs(u) <= 9.593 * (1 - ((v + 4.413) / 12.636) ** 1.709)
            image[row, column] = inside
    return image


def grid_values(sizes: tuple[int, ...], count: int) -> torch.Tensor:
    """Random values, and the first and last of every factor."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([torch.randint(0, size, (count,), generator=generator) for size in sizes], 1)
    return torch.cat([torch.zeros(1, len(sizes), dtype=torch.int64), torch.tensor([sizes]) - 1, drawn])


def test_dsprites_follow_the_outlines_to_the_pixel():
    images = open_images("dsprites", split="all")
    values = grid_values((3, 6, 40, 32, 32), 40)
    drawn = images.render(images.factors.index_of(values)).view(-1, 64, 64).numpy()
    for image, row in zip(drawn, values.tolist(), strict=True):
        assert np.array_equal(image, sprite_by_formula(*row)), row


def test_dsprites_have_the_mean_pixel_of_the_whole_grid():
    # over all 737,280 images it is 0.04256; here every outline at five random places
    images = open_images("dsprites", split="all")
    values = torch.cartesian_prod(torch.arange(3), torch.arange(6), torch.arange(40)).repeat(5, 1)
    places = torch.randint(0, 32, (len(values), 2), generator=torch.Generator().manual_seed(0))
    drawn = images.render(images.factors.index_of(torch.cat([values, places], 1)))
    assert drawn.mean().item() == pytest.approx(0.04256, abs=0.0001)
    assert ((drawn == 0) | (drawn == 1)).all()


def test_smaller_dsprites_show_the_same_scene():
    large, small = (open_images(name, split="all") for name in ("dsprites", "dsprites?size=32"))
    positions = torch.arange(0, large.count, 5003)
    halved = torch.nn.functional.avg_pool2d(large.render(positions).view(-1, 1, 64, 64), 2).flatten(1)
    assert (small.render(positions) - halved).abs().mean() < 0.01


@pytest.mark.parametrize(
    ("name", "count", "sizes"),
    [("dsprites", 737_280, (3, 6, 40, 32, 32)), ("shapes3d", 480_000, (10, 10, 10, 8, 4, 15))],
)
def test_grid_numbers_every_combination_once(name, count, sizes):
    images = open_images(name, split="all")
    assert images.factors is not None
    assert images.factor_values is not None
    assert images.labels is not None
    assert (images.count, images.factors.sizes) == (count, sizes)
    positions = torch.arange(count)
    values = images.factor_values(positions)
    assert torch.equal(images.factors.index_of(values), positions)
    assert torch.equal(values.amax(0) + 1, torch.tensor(sizes))
    assert torch.equal(images.labels, values[:, images.factors.names.index("shape")])
    assert len(images.label_names) == images.labels.max() + 1


@pytest.mark.parametrize("name", ["dsprites", "dsprites?size=8", "shapes3d?size=16", "planted"])
def test_image_depends_on_its_position_alone(name):
    images = open_images(name, split="all")
    positions = torch.randperm(images.count, generator=torch.Generator().manual_seed(1))[:150]
    together = images.render(positions)
    assert together.shape == (150, images.dim)
    for start in (0, 77, 149):
        assert torch.equal(images.render(positions[start : start + 1])[0], together[start])
    assert images.render(positions[:0]).shape == (0, images.dim)


@pytest.mark.parametrize("name", ["dsprites?size=16", "shapes3d?size=16"])
def test_factor_values_follow_a_view(name):
    whole, part = open_images(name, split="all"), open_images(name, split="heldout", limit=50)
    assert part.factor_values is not None
    assert part.labels is not None
    positions = whole.factors.index_of(part.factor_values(torch.arange(50)))
    assert torch.equal(whole.render(positions), part.render(torch.arange(50)))
    assert torch.equal(whole.labels[positions], part.labels)


@pytest.mark.parametrize("factor", range(6))
def test_every_factor_of_shapes3d_shows(factor):
    images = open_images("shapes3d?size=32", split="all")
    values = torch.tensor([[1, 4, 7, 3, 0, 6]]).repeat(images.factors.sizes[factor], 1)
    values[:, factor] = torch.arange(len(values))
    drawn = images.render(images.factors.index_of(values))
    differences = (drawn[:, None] - drawn).abs().mean(-1) + torch.eye(len(values))
    assert differences.min() > 0.002


def test_shapes3d_hues_colour_their_surface_and_no_other():
    images = open_images("shapes3d?size=32", split="all")
    # floor red, wall blue-green, object violet; cube in the middle
    drawn = images.render(images.factors.index_of(torch.tensor([[0, 5, 8, 7, 0, 7]]))).view(3, 32, 32)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    bottom, top, middle = drawn[:, -1, 16], drawn[:, 0, 16], drawn[:, 18, 16]
    assert bottom[0] > 0.5
    assert bottom[1:].max() == 0  # red
    assert top[0] == 0
    assert top[1:].min() > 0.5  # blue-green
    assert middle[2] > middle[0] > middle[1]  # violet


def test_shapes3d_objects_grow_with_scale():
    images = open_images("shapes3d?size=32", split="all")
    values = torch.tensor([[0, 0, 5, scale, shape, 7] for shape in range(4) for scale in range(8)])
    object_pixels = (images.render(images.factors.index_of(values)).view(-1, 3, 1024)[:, 2] > 0.3).sum(1).view(4, 8)
    assert (object_pixels.diff(dim=1) > 0).all()


def test_planted_images_are_the_sums_they_claim():
    images, world = open_images("planted", split="all"), PlantedWorld(seed=0)
    positions = torch.arange(4000)
    x, c = images.render(positions), world.coefficients(positions)
    assert images.atoms is not None
    assert (x - c @ images.atoms).std().item() == pytest.approx(0.02, rel=0.02)
    assert (c > 0).sum(1).float().mean().item() == pytest.approx(5, abs=0.15)
    assert c.min() == 0
    assert c[c > 0].min() >= 0.5
    assert c.max() <= 1.5


def test_planted_atoms_are_unit_local_and_apart():
    atoms = open_images("planted").atoms
    assert atoms is not None
    assert atoms.shape == (128, 256)
    assert torch.allclose(atoms.norm(dim=1), torch.ones(128))
    assert ((atoms @ atoms.T).abs() - torch.eye(128)).max() < 0.5
    # 95% of an atom's energy lies in a window of 8 by 8 somewhere
    energy = torch.nn.functional.avg_pool2d(atoms.square().view(-1, 1, 16, 16), 8, 1) * 64
    assert energy.flatten(1).amax(1).min() > 0.95


def test_planted_worlds_differ_by_seed_and_repeat():
    first, again, other = (open_images("planted", seed=seed).render(torch.arange(8)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).all(1).any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("planted?atoms=512", "no further fits 16x16"),
        ("planted?atoms=0", "option atoms=0: expected 1 or more"),
        ("planted?l0=200", "option l0=200.0: .* at most the number of atoms, 128"),
        ("planted?noise=-1", "option noise=-1.0"),
        ("planted?size=2", "option size=2: expected 4 or more"),
        ("planted?count=0", "option count=0"),
        ("dsprites?size=4", "option size=4: expected 8 to 256"),
        ("shapes3d?size=1000", "option size=1000: expected 8 to 128"),
    ],
)
def test_options_out_of_range_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        open_images(name)
