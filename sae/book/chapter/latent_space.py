"""What lies between codes: samples from the prior, the plane of two latents, and paths from one image to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from sae.base import draws
from sae.book.chapter.base import Finding, Picture, Setting, experiment
from sae.book.chapter.latent_space_judge import Judge, judge_of
from sae.book.chapter.measure import Spread, mean_of, over_seeds, reconstructed, side
from sae.book.chapter.variational_models import ae, vae
from sae.book.measures.generation import frechet, manifolds
from sae.book.pictures.grids import draw_rows
from sae.book.pictures.latents import (
    CHAPTER_ALPHAS,
    draw_interpolation,
    draw_plane,
    linear,
    normal_quantiles,
    spherical,
)
from sae.book.pictures.lines import Curve, draw_lines
from sae.runs.images import ImageRun, decode_dense, dense_codes

SHOWN = 12
COMPONENTS = 20  # of the mixture
SIDE = 20  # of the manifold
PRIOR, MIXTURE, PAIRS, FLOOR = range(4)  # what random numbers are drawn for
GAUSSIAN, VAE_PRIOR = "AE, one Gaussian fitted on its codes", "VAE, N(0, 1)"
AE_REBUILT, VAE_REBUILT = "held-out reconstructed by the AE", "held-out reconstructed by the VAE"
REAL = "training images"


def prior_draws(count: int, width: int, seed: int) -> Tensor:
    """Draws from N(0, 1), [count, width]."""
    return torch.randn(count, width, generator=draws.generator(seed, PRIOR))


def mixture_draws(codes: Tensor, count: int, components: int, seed: int) -> Tensor:
    """Draws [count, F] from Gaussians fitted to codes [n, F], so many of them, each with a full covariance."""
    fitted = GaussianMixture(components, reg_covar=1e-4, random_state=seed).fit(codes.double().numpy())
    # they come Gaussian by Gaussian
    order = torch.randperm(count, generator=draws.generator(seed, MIXTURE))
    return torch.from_numpy(fitted.sample(count)[0]).float()[order]


def sampled(plain: ImageRun, variational: ImageRun, train: Tensor, held: Tensor, seed: int) -> dict[str, Tensor]:
    """Images [n, D] by what they are: from codes that no image has, reconstructions of held-out ones [n, D], real."""
    codes, count = dense_codes(plain.model, train), len(held)
    prior = prior_draws(count, plain.model.width, seed)
    # as many as the others: a Fréchet distance falls with their number
    floor = torch.randperm(len(train), generator=draws.generator(seed, FLOOR))[:count]
    return {
        GAUSSIAN: decode_dense(plain.model, mixture_draws(codes, count, 1, seed)),
        VAE_PRIOR: decode_dense(variational.model, prior),
        "AE, mixture": decode_dense(plain.model, mixture_draws(codes, count, COMPONENTS, seed)),
        "AE, N(0, 1)": decode_dense(plain.model, prior),
        AE_REBUILT: reconstructed(plain, held),
        VAE_REBUILT: reconstructed(variational, held),
        REAL: train[floor],
    }


@experiment("gaps", rows=(14,), title="Are there gaps between an autoencoder's codes?")
def gaps(setting: Setting) -> Finding:
    """Samples of a plain and a variational autoencoder, trained alike, beside what their decoders alone cost."""
    judge = judge_of(setting.data)
    seeds = setting.pick(setting.seeds, setting.seeds[:1])
    train, held = judge.train.x, judge.held.x
    found: dict[str, list[dict[str, float]]] = {}
    pictures: dict[str, Tensor] = {}
    scales = []
    for seed in seeds:
        plain = ae(setting, seed)
        images = sampled(plain, vae(setting, seed), train, held, seed)
        scales.append(dense_codes(plain.model, train).std(0).mean().item())
        pictures = pictures or {name: rows[:SHOWN] for name, rows in images.items()}
        for name, rows in images.items():
            found.setdefault(name, []).append(_judged(judge, rows))
    measures = list(found[GAUSSIAN][0])
    table = [
        {"images": name, **{measure: over_seeds([row[measure] for row in rows]) for measure in measures}}
        for name, rows in found.items()
    ]
    by_seed = {name: [row["Fréchet distance"] for row in rows] for name, rows in found.items()}
    distance = {name: over_seeds(values) for name, values in by_seed.items()}
    text = (
        f"{gaps_said(by_seed)} A mixture of {COMPONENTS} Gaussians on the autoencoder's codes, whose standard "
        f"deviation is {mean_of(over_seeds(scales)):.1f}, gives {mean_of(distance['AE, mixture']):.1f}, and N(0, 1), "
        f"to which nothing holds them, {mean_of(distance['AE, N(0, 1)']):.1f}. Features are the hidden layer of a "
        f"classifier that names {judge.accuracy:.1%} of held-out images rightly; all sets have {len(held):,} images."
    )
    numbers = {"frechet": distance, "table": table, "judge_accuracy": judge.accuracy}
    plane = vae(setting, width=2)
    quantiles = normal_quantiles(SIDE)
    shown = [
        Picture(
            draw_rows(pictures, judge.held.shape), "Images from codes that no image has, and from those of images."
        ),
        Picture(
            draw_plane(plane.model, plane.shape, quantiles, quantiles, x="latent 0", y="latent 1"),
            f"The two latents of a VAE at {SIDE} x {SIDE} quantiles of the prior, decoded.",
        ),
    ]
    return Finding(text, numbers, [table], shown)


def gaps_said(frechet: Mapping[str, Sequence[float]]) -> str:
    """What distances from held-out images, a seed each, say of gaps.

    A gap is what drawing a code adds to what the same decoder makes of codes that images have, beyond what any other
    images add: reconstructions are of the very images that they are compared with.
    """
    mean = {name: mean_of(over_seeds(values)) for name, values in frechet.items()}
    added = {
        name: [a - b for a, b in zip(frechet[drawn], frechet[rebuilt], strict=True)]
        for name, drawn, rebuilt in (("AE", GAUSSIAN, AE_REBUILT), ("VAE", VAE_PRIOR, VAE_REBUILT))
    }
    beyond = {name: _difference(values, frechet[REAL]) for name, values in added.items()}
    gap = {1: "has gaps", 0: "has none that the seeds show", -1: "has none"}
    whose = {1: "the autoencoder's is more", 0: "the seeds do not tell whose is more", -1: "the VAE's is more"}
    farther = {1: "farther than", 0: "as far, for all that the seeds tell, as", -1: "nearer than"}
    holds = side(beyond["AE"]) > 0 >= side(beyond["VAE"])
    return (
        f"Codes drawn from one Gaussian fitted to the autoencoder's codes decode to images at a Fréchet distance of "
        f"{mean[GAUSSIAN]:.1f} from held-out ones, {farther[side(_difference(frechet[GAUSSIAN], frechet[VAE_PRIOR]))]} "
        f"those of the VAE's prior ({mean[VAE_PRIOR]:.1f}). Held-out images reconstructed, which is what the decoder "
        f"alone costs, are at {mean[AE_REBUILT]:.1f} and {mean[VAE_REBUILT]:.1f}; training images, which are other "
        f"images, at {mean[REAL]:.1f}. To its reconstructions drawing adds {np.mean(added['AE']):.1f} for the "
        f"autoencoder, which {gap[side(beyond['AE'])]}, and {np.mean(added['VAE']):.1f} for the VAE, which "
        f"{gap[side(beyond['VAE'])]} (a gap: more than other images add); "
        f"{whose[side(_difference(added['AE'], added['VAE']))]}. The claim that an autoencoder's codes leave gaps, and "
        f"a VAE's none, {'holds' if holds else 'does not hold'} here."
    )


def _difference(first: Sequence[float], second: Sequence[float]) -> Spread:
    """Over seeds, pair by pair."""
    return over_seeds([a - b for a, b in zip(first, second, strict=True)])


def _judged(judge: Judge, images: Tensor) -> dict[str, float]:
    real, generated = judge.features(judge.held.x), judge.features(images)
    inside = manifolds(real, generated)
    return {
        "Fréchet distance": frechet(real, generated).distance,
        "precision": inside.precision,
        "recall": inside.recall,
        "classifier's confidence": float(judge.confidence(images).mean()),
    }


@experiment(
    "interpolation", rows=(15,), title="Half-way between two images: their codes' mean, and their pixels'", seeds="0"
)
def interpolation(setting: Setting) -> Finding:
    """Lines and arcs between means of held-out images of different classes, and the blend of their pixels."""
    judge, run = judge_of(setting.data), vae(setting)
    count = setting.pick(300, 60)
    alphas = np.linspace(0, 1, setting.pick(21, 5)).tolist()
    first, second = different_pairs(judge.held.labels, count)
    x = judge.held.x
    codes = dense_codes(run.model, x)
    a, b = [codes[i] for i in first], [codes[i] for i in second]
    paths = {
        "codes, line": torch.stack([linear(p, q, alphas) for p, q in zip(a, b, strict=True)]),
        "codes, arc": torch.stack([spherical(p, q, alphas) for p, q in zip(a, b, strict=True)]),
    }
    images = {name: decode_dense(run.model, path.flatten(0, 1)) for name, path in paths.items()}
    blends = [linear(x[i], x[j], alphas) for i, j in zip(first, second, strict=True)]
    images["pixels blended"] = torch.cat(blends)
    confidence = {name: judge.confidence(rows).reshape(count, -1) for name, rows in images.items()}
    nearest = {name: judge.nearest(rows).reshape(count, -1) for name, rows in images.items()}
    middle = len(alphas) // 2
    table = [
        {
            "path": name,
            "confidence, ends": float(confidence[name][:, [0, -1]].mean()),
            "confidence, middle": float(confidence[name][:, middle].mean()),
            "nearest image, ends": float(nearest[name][:, [0, -1]].mean()),
            "nearest image, middle": float(nearest[name][:, middle].mean()),
            "middle sure of some class": float((confidence[name][:, middle] > 0.9).float().mean()),
        }
        for name in images
    ]
    text = interpolation_said(*table)
    shown = [
        Picture(
            draw_interpolation(run.model, run.shape, x[[i, j]], codes[[i, j]], alphas=CHAPTER_ALPHAS),
            "The chapter's five steps between the codes of two held-out images, and between their pixels.",
        )
        for i, j in zip(first[:3], second[:3], strict=True)
    ]
    for name, values, what in (
        ("distance", nearest, "RMS a pixel to the nearest training image"),
        ("confidence", confidence, "probability of the likeliest class"),
    ):
        curves = {path: Curve(alphas, rows.mean(0).tolist()) for path, rows in values.items()}
        shown.append(Picture(draw_lines(curves, "α", what), f"Along the path: {name}, mean of {count} pairs.", True))
    return Finding(text, {"paths": table, "pairs": count}, [table], shown)


def interpolation_said(line: Mapping[str, Any], arc: Mapping[str, Any], blend: Mapping[str, Any]) -> str:
    """The middle of the paths beside their ends, at which nothing is mixed."""
    way = {row["path"]: row["nearest image, middle"] - row["nearest image, ends"] for row in (line, blend)}
    lost = {row["path"]: row["confidence, ends"] - row["confidence, middle"] for row in (line, blend)}
    codes, pixels = way.values()
    nearer = "nearer" if line["nearest image, middle"] < blend["nearest image, middle"] else "no nearer"
    leads = "less far from" if codes < pixels else "no less far from"
    surer = "loses less of it" if lost[line["path"]] < lost[blend["path"]] else "loses no less of it"
    return (
        f"Half-way between two held-out images of different classes, the decoded mean of their codes is "
        f"{line['nearest image, middle']:.3f} from the nearest training image (root mean squared, a pixel), {nearer} "
        f"than the blend of their pixels ({blend['nearest image, middle']:.3f}). At the ends, where nothing is mixed, "
        f"it is {line['nearest image, ends']:.3f} and {blend['nearest image, ends']:.3f}: the way to the middle "
        f"({codes:+.3f} and {pixels:+.3f}) leads the codes {leads} the training images than the pixels. A classifier "
        f"of the real images gives its likeliest class {line['confidence, middle']:.2f} on the line's middle, "
        f"{arc['confidence, middle']:.2f} on the arc's and {blend['confidence, middle']:.2f} on the blend; of the "
        f"{line['confidence, ends']:.2f} and {blend['confidence, ends']:.2f} at the ends, the line {surer} than the "
        "blend."
    )


def different_pairs(labels: Tensor, count: int) -> tuple[list[int], list[int]]:
    """So many pairs of positions with different labels int64 [n], drawn at random.

    Raises:
        ValueError: all labels are one.
    """
    if len(labels.unique()) < 2:
        raise ValueError("labels: expected two classes or more")
    generator = draws.generator(0, PAIRS)
    first: list[int] = []
    second: list[int] = []
    while len(first) < count:
        i, j = torch.randint(len(labels), (2,), generator=generator).tolist()
        if labels[i] != labels[j]:
            first.append(i)
            second.append(j)
    return first, second
