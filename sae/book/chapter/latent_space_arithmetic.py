"""Arithmetic with codes: the difference of two classes, added to an image."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sae.base import draws
from sae.book.chapter.base import Finding, Picture, Setting, experiment
from sae.book.chapter.measure import Judge, ae, judge_of, vae
from sae.book.pictures.grids import draw_rows
from sae.book.pictures.latents import arithmetic
from sae.pictures.charts import draw_heatmap
from sae.runs.images import ImageRun, decode_dense, dense_codes

SHOWN = 8
BY_VAE, BY_AE, BY_PIXELS, RANDOM = "VAE's codes", "autoencoder's codes", "pixels", "VAE's codes, random direction"
NEAREST = 10  # images a pair of classes whose distance to the nearest training image is measured
CONTROL = 0  # key of the random stream
Move = Callable[[Tensor, int, int], Tensor]
"""Positions of held-out images of a class [m], that class, another one -> images [m, D] that should be of the other."""


@experiment(
    "latent_arithmetic",
    rows=(16,),
    title="Does an image of one class become another by arithmetic with codes?",
    seeds="0",
)
def latent_arithmetic(setting: Setting) -> Finding:
    """z_b - z_a + z_c with the classes' mean codes, for every pair of classes and every held-out image of the first."""
    judge, run = judge_of(setting.data), vae(setting)
    moves: dict[str, Move] = {
        BY_VAE: in_codes(run, judge),
        BY_AE: in_codes(ae(setting), judge),
        BY_PIXELS: in_pixels(judge),
        RANDOM: in_codes(run, judge, control=True),
    }
    flips = {name: flip_rates(judge, move) for name, move in moves.items()}
    rates = {name: flipped.rate for name, flipped in flips.items()}
    aim, distance = "became the class aimed at", "RMS a pixel to the nearest image"
    table = [{"arithmetic in": name, aim: rates[name], distance: flips[name].nearest} for name in flips]
    names = list(judge.heldout.names)
    pictures = [
        Picture(_panels(run, judge), "z_a and z_b decoded, images c of class a, and z_b - z_a + z_c decoded."),
        Picture(
            draw_heatmap(flips[BY_VAE].rates.numpy(), rows=names, columns=names, label="share", x="to b", y="from a"),
            "Share of held-out images of a class that a classifier calls the other one after the arithmetic; on the "
            "diagonal the share still called a with nothing added.",
        ),
    ]
    numbers = {"flip_rates": rates, "judge_accuracy": judge.accuracy}
    return Finding(arithmetic_said(flips), numbers, [table], pictures)


class Flips(NamedTuple):
    """The effect of arithmetic on held-out images."""

    rates: Tensor
    """Share of the images of class a that became b, [a, b]; the share that stayed a on the diagonal."""
    nearest: float
    """Mean RMS difference a pixel to the nearest training image, of images moved to another class."""

    @property
    def rate(self) -> float:
        """Mean over pairs of different classes; classes without images do not count."""
        return self.rates[~torch.eye(len(self.rates), dtype=torch.bool)].nanmean().item()


def arithmetic_said(flips: Mapping[str, Flips]) -> str:
    """How often the arithmetic succeeds, compared with a random direction and with the sum of pixels."""
    vae, plain, pixels, random = (flips[name] for name in (BY_VAE, BY_AE, BY_PIXELS, RANDOM))
    turns = "more often than" if vae.rate > random.rate else "no more often than"
    better = "more often than" if vae.rate > pixels.rate else "no more often than"
    apart = "farther from" if pixels.nearest > vae.nearest else "no farther from"
    # if a decoder gives near-images for all codes, the random step ends as near as the sum
    control = (
        "farther than the arithmetic's, so the direction matters for it"
        if random.nearest > vae.nearest
        else "no farther than the arithmetic's, so the distance is due to the decoder and not to the direction"
    )
    return (
        f"z_b - z_a + z_c, with two classes' mean codes and the code of a held-out image of class a, becomes what a "
        f"classifier calls b in {vae.rate:.1%} of all cases by the VAE's codes and in {plain.rate:.1%} by the "
        f"autoencoder's, {turns} by the control, a step of the same length in a random direction of the VAE's codes "
        f"({random.rate:.1%}). The VAE's succeed {better} the same sum of pixels ({pixels.rate:.1%}), which ends "
        f"{pixels.nearest:.3f} from the nearest training image, {apart} it than theirs ({vae.nearest:.3f}; the "
        f"autoencoder's {plain.nearest:.3f}). The control ends at {random.nearest:.3f}, {control}."
    )


def flip_rates(judge: Judge, move: Move) -> Flips:
    """Move every held-out image that the judge classifies rightly to every class, its own included."""
    labels = judge.heldout.labels
    known = judge.classifier.classes(judge.heldout.x) == labels
    classes = len(judge.heldout.names)
    rates = torch.full((classes, classes), torch.nan)
    distances = []
    for a, b in itertools.product(range(classes), repeat=2):
        rows = ((labels == a) & known).nonzero().squeeze(1)
        if len(rows) == 0:
            continue
        images = move(rows, a, b)
        rates[a, b] = (judge.classifier.classes(images) == b).float().mean()
        if a != b:
            distances.append(judge.nearest(images[:NEAREST]).mean().item())
    return Flips(rates, sum(distances) / len(distances))


def in_codes(run: ImageRun, judge: Judge, *, control: bool = False) -> Move:
    """z_b - z_a + z_c, decoded; `control` puts a random direction of the same length in place of z_b - z_a."""
    means, codes = dense_codes(run.model, judge.train.x), dense_codes(run.model, judge.heldout.x)
    generator = draws.generator(0, CONTROL)

    def move(rows: Tensor, a: int, b: int) -> Tensor:
        moved = arithmetic(means, judge.train.labels, codes[rows], a, b)
        if control:
            random = torch.randn(codes[rows].shape, generator=generator)
            length = (moved - codes[rows]).norm(dim=1, keepdim=True)
            moved = codes[rows] + random / random.norm(dim=1, keepdim=True) * length
        return decode_dense(run.model, moved)

    return move


def in_pixels(judge: Judge) -> Move:
    """The same sum of the images' pixels, clamped to [0, 1]."""

    def move(rows: Tensor, a: int, b: int) -> Tensor:
        return arithmetic(judge.train.x, judge.train.labels, judge.heldout.x[rows], a, b).clamp(0, 1)

    return move


def _panels(run: ImageRun, judge: Judge) -> Figure:
    """Four rows: the two mean codes, images of the first class, the results; a column for every class and the next."""
    train, heldout = judge.train, judge.heldout
    codes, means = dense_codes(run.model, heldout.x), dense_codes(run.model, train.x)
    columns: dict[str, list[Tensor]] = {"- a": [], "+ b": [], "c": [], "= c as b": []}
    for a in heldout.labels.unique().tolist()[:SHOWN]:
        b = (a + 1) % len(heldout.names)
        c = int((heldout.labels == a).nonzero()[0])
        moved = arithmetic(means, train.labels, codes[c], a, b)
        ends = [means[train.labels == kind].mean(0) for kind in (a, b)]
        pictures = [*decode_dense(run.model, torch.stack(ends)), heldout.x[c], decode_dense(run.model, moved[None])[0]]
        for column, picture in zip(columns.values(), pictures, strict=True):
            column.append(picture)
    return draw_rows({name: torch.stack(images) for name, images in columns.items()}, heldout.shape)
