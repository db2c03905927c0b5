"""Shapes3D-like images: one object on the floor of a room, of every combination of six factors, drawn when asked for.

The factors are those of 3D Shapes (Burgess and Kim 2018): the hues of floor, wall and object, the object's scale and
shape, and the direction that the camera looks from. The scene is our own and simpler: flat colours, one light far away,
no shadows. Its geometry depends on scale, shape and orientation alone (480 views), so every view is cast once into the
light that each of the three surfaces sends to every pixel, W [view, surface, pixel], and an image is

    image[channel, pixel] = Σ_surface colour[surface, channel] · W[view, surface, pixel]
"""

from __future__ import annotations

import colorsys
import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from sae.data.images.base import Factors, ImageSet, check_option, every_combination

FACTORS = Factors(("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation"), (10, 10, 10, 8, 4, 15))
VIEWS = Factors(FACTORS.names[3:], FACTORS.sizes[3:])
SHAPES = ("cube", "cylinder", "sphere", "capsule")
HUES = torch.tensor([colorsys.hsv_to_rgb(k / 10, 1, 1) for k in range(10)])
SCALES = torch.linspace(0.75, 1.25, 8)
ORIENTATIONS = torch.linspace(-math.pi / 6, math.pi / 6, 15)
# lengths are in units of the object's; the floor is y = 0, the object stands at the origin
ROOM = 4.0  # half the room's width
CAMERA = (4.2, 2.6)  # distance from the object along the floor, height
TARGET = 0.7  # height of the point that the camera looks at
FIELD = math.tan(math.radians(26))  # half the picture's width at distance 1
LIGHT = (0.45, 0.75, 0.48)
AMBIENT = 0.5  # share of light that comes from everywhere
SUBPIXELS = 2  # rays a pixel, along each side
CHUNK = 64  # images drawn at a time


class Span(NamedTuple):
    """Where rays [R] run inside a convex body: from distance `near` to `far`; nowhere where near >= far."""

    near: Tensor
    far: Tensor
    normal: Tensor
    """Outward unit normal where the ray enters, [R, 3]."""


def shapes3d(size: int = 64) -> ImageSet:
    """All 480,000 images of 3 x size x size; labels are the shapes."""
    check_option(8 <= size <= 128, "size", size, "8 to 128 pixels")
    return every_combination("shapes3d", "3D-Shapes", (3, size, size), FACTORS, SHAPES, lambda v: draw(v, size))


def draw(values: Tensor, size: int = 64) -> Tensor:
    """Factor values int64 [n, 6] -> images float32 [n, 3·size·size], pixels in [0, 1]."""
    images = torch.empty(len(values), 3, size * size)
    # the light of a chunk's views is copied together; larger copies take longer a byte
    for part, out in zip(values.split(CHUNK), images.split(CHUNK), strict=True):
        colours, light = HUES[part[:, :3]], all_views(size)[VIEWS.index_of(part[:, 3:])]
        torch.bmm(colours.transpose(1, 2), light, out=out)
    return images.flatten(1)


@functools.lru_cache(maxsize=2)
def all_views(size: int) -> Tensor:
    """W: the light that floor, wall and object send to every pixel, in every view: [480, 3, size·size] in [0, 1]."""
    views = torch.empty(*VIEWS.sizes, 3, size * size)
    for place, angle in enumerate(ORIENTATIONS):
        origin, rays = camera(float(angle), size * SUBPIXELS)
        distance, *room = _room(origin, rays)
        for i, scale in enumerate(SCALES):
            for j, shape in enumerate(BODIES):
                span = shape(origin, rays, float(scale))
                seen = (span.near < span.far) & (span.near > 0) & (span.near < distance)
                surfaces = torch.stack([torch.where(seen, 0, part) for part in room] + [_lit(span.normal) * seen])
                views[i, j, place] = _shrink(surfaces, size)
    return views.flatten(0, 2)


def camera(angle: float, side: int) -> tuple[Tensor, Tensor]:
    """The camera's place [3] and the directions of side x side rays [side², 3], the picture's top line first."""
    distance, height = CAMERA
    origin = torch.tensor([distance * math.sin(angle), height, distance * math.cos(angle)])
    forward = _unit(torch.tensor([0.0, TARGET, 0.0]) - origin)
    right = _unit(torch.linalg.cross(forward, torch.tensor([0.0, 1.0, 0.0])))
    up = torch.linalg.cross(right, forward)
    steps = ((torch.arange(side) + 0.5) / side * 2 - 1) * FIELD
    return origin, (forward - steps[:, None, None] * up + steps[:, None] * right).flatten(0, 1)


def _room(origin: Tensor, rays: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distance to what lies behind the object [R], and the light of the floor and of the wall there [R]."""
    to_floor = torch.where(rays[:, 1] < 0, -origin[1] / rays[:, 1], torch.inf)
    walls = (torch.sign(rays) * ROOM - origin) / rays
    to_wall, axis = walls[:, [0, 2]].min(1)
    floor = to_floor < to_wall
    inward = -torch.sign(rays[:, [0, 2]]) * torch.nn.functional.one_hot(axis, 2)
    normal = torch.stack([inward[:, 0], torch.zeros(len(rays)), inward[:, 1]], 1)
    upward = torch.tensor([[0.0, 1.0, 0.0]])
    return torch.minimum(to_floor, to_wall), _lit(upward) * floor, _lit(normal) * ~floor


def _cube(origin: Tensor, rays: Tensor, scale: float) -> Span:
    a = 0.62 * scale
    return _meet(_slab(origin, rays, 0, -a, a), _slab(origin, rays, 1, 0, 2 * a), _slab(origin, rays, 2, -a, a))


def _cylinder(origin: Tensor, rays: Tensor, scale: float) -> Span:
    return _meet(_tube(origin, rays, 0.62 * scale), _slab(origin, rays, 1, 0, 1.5 * scale))


def _sphere(origin: Tensor, rays: Tensor, scale: float) -> Span:
    return _ball(origin, rays, 0.8 * scale, 0.8 * scale)


def _capsule(origin: Tensor, rays: Tensor, scale: float) -> Span:
    radius, height = 0.5 * scale, 1.9 * scale
    middle = _meet(_tube(origin, rays, radius), _slab(origin, rays, 1, radius, height - radius))
    ends = [_ball(origin, rays, y, radius) for y in (radius, height - radius)]
    return _first(middle, *ends)


BODIES = (_cube, _cylinder, _sphere, _capsule)


def _slab(origin: Tensor, rays: Tensor, axis: int, low: float, high: float) -> Span:
    """low <= coordinate <= high."""
    a, b = (low - origin[axis]) / rays[:, axis], (high - origin[axis]) / rays[:, axis]
    normal = torch.zeros_like(rays)
    normal[:, axis] = -torch.sign(rays[:, axis])
    return Span(torch.minimum(a, b), torch.maximum(a, b), normal)


def _ball(origin: Tensor, rays: Tensor, y: float, radius: float) -> Span:
    """Distance to (0, y, 0) <= radius."""
    offset = origin - torch.tensor([0.0, y, 0.0])
    near, far = _roots(rays.square().sum(1), rays @ offset, offset.square().sum() - radius**2)
    return Span(near, far, (offset + near[:, None] * rays) / radius)


def _tube(origin: Tensor, rays: Tensor, radius: float) -> Span:
    """x² + z² <= radius², at any height."""
    flat = torch.tensor([1.0, 0.0, 1.0])
    offset, across = origin * flat, rays * flat
    near, far = _roots(across.square().sum(1), across @ offset, offset.square().sum() - radius**2)
    return Span(near, far, (offset + near[:, None] * across) / radius)


def _roots(a: Tensor, half_b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Roots of a t² + 2 half_b t + c in ascending order; both -half_b / a where there are none."""
    root = (half_b.square() - a * c).clamp_min(0).sqrt()
    return (-half_b - root) / a, (-half_b + root) / a


def _meet(*spans: Span) -> Span:
    """Inside all of them."""
    near, which = torch.stack([span.near for span in spans]).max(0)
    return Span(near, torch.stack([span.far for span in spans]).amin(0), _pick(spans, which))


def _first(*spans: Span) -> Span:
    """The one that the ray enters first."""
    entries = torch.stack([torch.where(span.near < span.far, span.near, torch.inf) for span in spans])
    near, which = entries.min(0)
    return Span(near, torch.where(near.isinf(), near, torch.inf), _pick(spans, which))


def _pick(spans: tuple[Span, ...], which: Tensor) -> Tensor:
    return torch.stack([span.normal for span in spans])[which, torch.arange(len(which))]


def _lit(normal: Tensor) -> Tensor:
    """Lambert's law: light sent back by a white surface with this unit normal [R, 3], in [0, 1]."""
    return AMBIENT + (1 - AMBIENT) * (normal @ _unit(torch.tensor(LIGHT))).clamp_min(0)


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def _shrink(surfaces: Tensor, size: int) -> Tensor:
    """Mean over the rays of every pixel: [3, (size·SUBPIXELS)²] -> [3, size²]."""
    return surfaces.view(3, size, SUBPIXELS, size, SUBPIXELS).mean((2, 4)).flatten(1)
