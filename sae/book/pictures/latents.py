"""Latents as images: paths through the space of codes, decoded, and the contribution of single atoms.

Traversals, the plane of two latents, interpolation and arithmetic start from the means of codes
(`sae.runs.images.dense_codes`), not from draws.

draw_traversals(model, shape, codes[typical(codes)], latents=[3, 0], values=torch.linspace(-3, 3, 9).repeat(2, 1))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure
from scipy.stats import norm
from torch import Tensor

from sae.base.colours import diverging
from sae.book.pictures.grids import draw_rows, draw_tiles
from sae.models.autoencoder import Autoencoder
from sae.runs.images import decode_dense

CHAPTER_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
PARALLEL = 1e-4  # sine of an angle below which the arc is a line

Look = Callable[[Tensor], Tensor]
"""Decoded images [n, C·H·W] as they are shown (see `sae.base.colours.diverging`)."""
CHUNK = 1024  # atoms decoded at a time


def as_they_are(images: Tensor) -> Tensor:
    """Images unchanged, for pixels in [0, 1]."""
    return images


def typical(codes: Tensor) -> int:
    """Index of the code of [n, F] nearest to their mean, with latents in units of their standard deviation."""
    spread = codes.std(0).clamp_min(1e-6)
    return int(((codes - codes.mean(0)) / spread).square().sum(1).argmin())


def traversals(model: Autoencoder, code: Tensor, latents: Sequence[int], values: Tensor) -> Tensor:
    """Decoded codes with one latent at a time set to its values, and all others as in `code`.

    Args:
        model: the decoder.
        code: [F].
        latents: indices [L].
        values: of each latent, [L, S].

    Returns:
        Images [L, S, C·H·W].
    """
    codes = code.repeat(*values.shape, 1)
    for row, latent in enumerate(latents):
        codes[row, :, latent] = values[row]
    return decode_dense(model, codes.flatten(0, 1)).view(*values.shape, -1)


def draw_traversals(
    model: Autoencoder,
    shape: Sequence[int],
    code: Tensor,
    latents: Sequence[int],
    values: Tensor,
    *,
    names: Sequence[str] = (),
    headings: Sequence[str] = (),
    x: str = "",
    look: Look = as_they_are,
) -> Figure:
    """A row of images for every latent; arguments as of `traversals`, and names for rows and columns."""
    images = traversals(model, code, latents, values)
    named = names or [f"z {latent}" for latent in latents]
    return draw_rows({n: look(row) for n, row in zip(named, images, strict=True)}, shape, headings=headings, x=x)


def normal_quantiles(steps: int) -> Tensor:
    """The quantiles (i + 1/2) / steps of the standard normal, float32 [steps]: equal shares of the prior."""
    return torch.from_numpy(norm.ppf((torch.arange(steps).double() + 0.5) / steps)).float()


def sample_quantiles(values: Tensor, steps: int) -> Tensor:
    """The quantiles (i + 1/2) / steps of samples [n], float32 [steps]: equal shares of them."""
    return torch.quantile(values.float(), (torch.arange(steps) + 0.5) / steps)


def plane(model: Autoencoder, across: Tensor, down: Tensor) -> Tensor:
    """Images [D·A, C·H·W] of a two-latent model: latent 0 takes the values `across` [A], latent 1 `down` [D].

    Raises:
        ValueError: a code of another width.
    """
    if model.width * model.positions != 2:
        raise ValueError(f"expected a code of 2 latents, got {model.width * model.positions}")
    second, first = torch.meshgrid(down, across, indexing="ij")
    return decode_dense(model, torch.stack([first.flatten(), second.flatten()], 1))


def draw_plane(
    model: Autoencoder, shape: Sequence[int], across: Tensor, down: Tensor, *, x: str, y: str, look: Look = as_they_are
) -> Figure:
    """`plane` as a picture: latent 0 grows to the right, latent 1 upwards."""
    return draw_tiles(look(plane(model, across, down.flip(0))), shape, len(across), x=x, y=y, gap=0)


def linear(a: Tensor, b: Tensor, alphas: Sequence[float]) -> Tensor:
    """(1 - α) a + α b for every α: [A, d] of a and b [d]."""
    weight = torch.tensor(alphas).unsqueeze(1)
    return (1 - weight) * a + weight * b


def spherical(a: Tensor, b: Tensor, alphas: Sequence[float]) -> Tensor:
    """(sin((1-α)θ) a + sin(αθ) b) / sin θ, θ the angle between a and b (Shoemake 1985; White 2016): [A, d].

    Keeps the length if both have the same; a line if they are parallel or opposite, or one is zero.
    """
    lengths = a.norm() * b.norm()
    if lengths == 0:
        return linear(a, b, alphas)
    angle = torch.acos((a @ b / lengths).clamp(-1, 1))
    if angle.sin() < PARALLEL:
        return linear(a, b, alphas)
    weight = torch.tensor(alphas).unsqueeze(1)
    return (((1 - weight) * angle).sin() * a + (weight * angle).sin() * b) / angle.sin()


def draw_interpolation(
    model: Autoencoder,
    shape: Sequence[int],
    images: Tensor,
    codes: Tensor,
    *,
    alphas: Sequence[float] = CHAPTER_ALPHAS,
    look: Look = as_they_are,
) -> Figure:
    """From one image to another: by a line and by an arc between codes, and, for comparison, by blended pixels.

    Args:
        model: the decoder.
        shape: [C, H, W].
        images: the two, [2, C·H·W].
        codes: theirs, [2, F].
        alphas: shares of the way.
        look: applied to images before they are drawn.
    """
    rows = {
        "Codes, line": look(decode_dense(model, linear(codes[0], codes[1], alphas))),
        "Codes, arc": look(decode_dense(model, spherical(codes[0], codes[1], alphas))),
        "Pixels blended": look(linear(images[0], images[1], alphas)),
    }
    return draw_rows(rows, shape, headings=[f"{alpha:g}" for alpha in alphas], x="α")


def arithmetic(codes: Tensor, kinds: Tensor, code: Tensor, minus: int, plus: int) -> Tensor:
    """z_plus - z_minus + code [F], the first two the mean codes of kinds: codes [n, F] of samples of kinds int64 [n].

    Raises:
        ValueError: no sample of one of the kinds.
    """
    for kind in (minus, plus):
        if not (kinds == kind).any():
            raise ValueError(f"kinds: expected samples of kind {kind}, got none")
    return codes[kinds == plus].mean(0) - codes[kinds == minus].mean(0) + code


@torch.no_grad()
def contributions(model: Autoencoder, strengths: Tensor) -> Tensor:
    """show(b + s_j w_j) - show(b) for every atom: [F, C·H·W], signed; without a head, s_j w_j.

    Args:
        model: with one row a sample (no codebook).
        strengths: s [F], the code's value for each atom.

    Raises:
        ValueError: the model has several rows a sample.
    """
    if model.positions != 1:
        raise ValueError(f"expected one row a sample, got {model.positions}; see `codebook_images`")
    b = model.dictionary.b
    atoms = torch.cat([model.show(b + part) for part in (strengths.unsqueeze(1) * model.dictionary.W).split(CHUNK)])
    return atoms - model.show(b.unsqueeze(0))


@torch.no_grad()
def codebook_images(model: Autoencoder) -> Tensor:
    """Every atom of a codebook, in all places at once, decoded: [F, C·H·W]."""
    rows = model.dictionary.W.repeat_interleave(model.positions, dim=0)
    return torch.cat([model.show(part) for part in rows.split(CHUNK * model.positions)])


def draw_atoms(images: Tensor, shape: Sequence[int], *, columns: int = 16) -> Figure:
    """Signed images [n, C·H·W], purple above zero and orange below, each on its own scale."""
    columns = min(columns, len(images))
    return draw_tiles(
        diverging(images, shape, limit=images.abs().amax(1)), shape, columns, inches=min(7.5, 0.7 * columns)
    )
