"""Arithmetic with codes: what one class has and another has not, added to an image."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sae.base import draws
from sae.book.chapter.base import Finding, Picture, Setting, experiment
from sae.book.chapter.latent_space_judge import Judge, judge_of
from sae.book.chapter.variational_models import ae, vae
from sae.book.pictures.charts import draw_heatmap
from sae.book.pictures.grids import draw_rows
from sae.book.pictures.latents import arithmetic
from sae.runs.images import ImageRun, decode_dense, dense_codes

SHOWN = 8
OWN, RANDOM = "VAE's codes", "VAE's codes, random direction"
NEAREST = 10  # images a pair of classes whose distance to the nearest one is taken
CONTROL = 0  # what random numbers are drawn for
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
        OWN: in_codes(run, judge),
        "autoencoder's codes": in_codes(ae(setting), judge),
        "pixels": in_pixels(judge),
        RANDOM: in_codes(run, judge, control=True),
    }
    flips = {name: flip_rates(judge, move) for name, move in moves.items()}
    table = [
        {
            "arithmetic in": name,
            "became the class aimed at": flipped.rate,
            "RMS a pixel to the nearest image": flipped.nearest,
        }
        for name, flipped in flips.items()
    ]
    rates = {row["arithmetic in"]: row["became the class aimed at"] for row in table}
    names = list(judge.held.names)
    text = arithmetic_said(flips)
    shown = [
        Picture(_panels(run, judge), "z_a and z_b decoded, images c of class a, and z_b - z_a + z_c decoded."),
        Picture(
            draw_heatmap(flips[OWN].rates.numpy(), rows=names, columns=names, label="share", x="to b", y="from a"),
            "Share of held-out images of a class that a classifier calls the other one after the arithmetic; on the "
            "diagonal what is still called a where nothing is added.",
        ),
    ]
    return Finding(text, {"flip_rates": rates, "judge_accuracy": judge.accuracy}, [table], shown)


class Flips(NamedTuple):
    """What arithmetic made of held-out images."""

    rates: Tensor
    """Share of the images of class a that became b, [a, b]; what stayed a on the diagonal."""
    nearest: float
    """Mean RMS difference a pixel to the nearest training image, of images moved to another class."""

    @property
    def rate(self) -> float:
        """Mean over pairs of different classes; classes without images do not count."""
        return self.rates[~torch.eye(len(self.rates), dtype=torch.bool)].nanmean().item()


def arithmetic_said(flips: Mapping[str, Flips]) -> str:
    """How often the arithmetic arrives, beside a random direction, which does without it, and the sum of pixels."""
    own, plain, pixels, random = (flips[name] for name in (OWN, "autoencoder's codes", "pixels", RANDOM))
    turns = "more often than" if own.rate > random.rate else "no more often than"
    better = "more often than" if own.rate > pixels.rate else "no more often than"
    apart = "farther from" if pixels.nearest > own.nearest else "no farther from"
    # a decoder that keeps near to images wherever it is asked has the random step as near as the sum
    control = (
        "farther than the arithmetic's, so the direction counts for it"
        if random.nearest > own.nearest
        else "no farther than the arithmetic's, so the distance is the decoder's and not the direction's"
    )
    return (
        f"z_b - z_a + z_c, with two classes' mean codes and the code of a held-out image of class a, becomes what a "
        f"classifier calls b in {own.rate:.1%} of all cases by the VAE's codes and in {plain.rate:.1%} by the "
        f"autoencoder's, {turns} by the control, a step of the same length in a random direction of the VAE's codes "
        f"({random.rate:.1%}). The VAE's arrive {better} the same sum of pixels ({pixels.rate:.1%}), which ends "
        f"{pixels.nearest:.3f} from the nearest training image, {apart} it than theirs ({own.nearest:.3f}; the "
        f"autoencoder's {plain.nearest:.3f}). The control ends at {random.nearest:.3f}, {control}."
    )


def flip_rates(judge: Judge, move: Move) -> Flips:
    """Every held-out image that the judge names rightly, moved to every class, its own included."""
    labels = judge.held.labels
    known = judge.classes(judge.held.x) == labels
    classes = len(judge.held.names)
    rates = torch.full((classes, classes), torch.nan)
    distances = []
    for a, b in itertools.product(range(classes), repeat=2):
        rows = ((labels == a) & known).nonzero().squeeze(1)
        if len(rows) == 0:
            continue
        images = move(rows, a, b)
        rates[a, b] = (judge.classes(images) == b).float().mean()
        if a != b:
            distances.append(judge.nearest(images[:NEAREST]).mean().item())
    return Flips(rates, sum(distances) / len(distances))


def in_codes(run: ImageRun, judge: Judge, *, control: bool = False) -> Move:
    """z_b - z_a + z_c, decoded; `control` puts a random direction of the same length in place of z_b - z_a."""
    means, codes = dense_codes(run.model, judge.train.x), dense_codes(run.model, judge.held.x)
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
    """The same sum of the images themselves, kept between 0 and 1."""

    def move(rows: Tensor, a: int, b: int) -> Tensor:
        return arithmetic(judge.train.x, judge.train.labels, judge.held.x[rows], a, b).clamp(0, 1)

    return move


def _panels(run: ImageRun, judge: Judge) -> Figure:
    """Four rows: the two mean codes, images of the first class, the results; a column for every class and the next."""
    train, held = judge.train, judge.held
    codes, means = dense_codes(run.model, held.x), dense_codes(run.model, train.x)
    columns: dict[str, list[Tensor]] = {"- a": [], "+ b": [], "c": [], "= c as b": []}
    for a in held.labels.unique().tolist()[:SHOWN]:
        b = (a + 1) % len(held.names)
        c = int((held.labels == a).nonzero()[0])
        moved = arithmetic(means, train.labels, codes[c], a, b)
        ends = [means[train.labels == kind].mean(0) for kind in (a, b)]
        pictures = [*decode_dense(run.model, torch.stack(ends)), held.x[c], decode_dense(run.model, moved[None])[0]]
        for column, picture in zip(columns.values(), pictures, strict=True):
            column.append(picture)
    return draw_rows({name: torch.stack(images) for name, images in columns.items()}, held.shape)
