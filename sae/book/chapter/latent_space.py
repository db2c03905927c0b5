"""What lies between codes: samples of the prior, the plane of two latents, and paths from one image to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from sae.base import draws
from sae.book.chapter.base import Finding, Picture, Setting, experiment
from sae.book.chapter.measure import Judge, ae, difference, judge_of, mean_of, over_seeds, reconstructed, side, vae
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
from sae.pictures.lines import Curve, draw_lines
from sae.runs.images import ImageRun, decode_dense, dense_codes

SHOWN = 12
COMPONENTS = 20  # of the mixture
SIDE = 20  # of the manifold
PRIOR, MIXTURE, PAIRS, FLOOR = range(4)  # keys of the random streams
GAUSSIAN, VAE_PRIOR = "AE, one Gaussian fitted on its codes", "VAE, N(0, 1)"
AE_REBUILT, VAE_REBUILT = "held-out reconstructed by the AE", "held-out reconstructed by the VAE"
MIXED, AE_PRIOR, REAL = "AE, mixture", "AE, N(0, 1)", "training images"


def prior_draws(count: int, width: int, seed: int) -> Tensor:
    """Draws from N(0, 1), [count, width]."""
    return torch.randn(count, width, generator=draws.generator(seed, PRIOR))


def mixture_draws(codes: Tensor, count: int, components: int, seed: int) -> Tensor:
    """Draws [count, F] from a mixture of Gaussians with full covariances fitted to codes [n, F]."""
    mixture = GaussianMixture(components, reg_covar=1e-4, random_state=seed).fit(codes.double().numpy())
    # scikit-learn sorts them by Gaussian
    order = torch.randperm(count, generator=draws.generator(seed, MIXTURE))
    return torch.from_numpy(mixture.sample(count)[0]).float()[order]


def sampled(plain: ImageRun, variational: ImageRun, train: Tensor, heldout: Tensor, seed: int) -> dict[str, Tensor]:
    """Images [n, D] decoded from drawn codes, reconstructions of held-out images [n, D], and training images."""
    codes, count = dense_codes(plain.model, train), len(heldout)
    prior = prior_draws(count, plain.model.width, seed)
    # as many as of the others, since a Fréchet distance falls with the number
    floor = torch.randperm(len(train), generator=draws.generator(seed, FLOOR))[:count]
    return {
        GAUSSIAN: decode_dense(plain.model, mixture_draws(codes, count, 1, seed)),
        VAE_PRIOR: decode_dense(variational.model, prior),
        MIXED: decode_dense(plain.model, mixture_draws(codes, count, COMPONENTS, seed)),
        AE_PRIOR: decode_dense(plain.model, prior),
        AE_REBUILT: reconstructed(plain, heldout),
        VAE_REBUILT: reconstructed(variational, heldout),
        REAL: train[floor],
    }


@experiment("gaps", rows=(14,), title="Are there gaps between an autoencoder's codes?")
def gaps(setting: Setting) -> Finding:
    """Samples of a plain and a variational autoencoder of equal training, beside the errors of their decoders alone."""
    judge = judge_of(setting.data)
    seeds = setting.pick(setting.seeds, setting.seeds[:1])
    train, heldout = judge.train.x, judge.heldout.x
    scores: dict[str, list[dict[str, float]]] = {}
    images: dict[str, Tensor] = {}
    scales = []
    for seed in seeds:
        plain = ae(setting, seed)
        samples = sampled(plain, vae(setting, seed), train, heldout, seed)
        scales.append(dense_codes(plain.model, train).std(0).mean().item())
        images = images or {name: rows[:SHOWN] for name, rows in samples.items()}
        for name, rows in samples.items():
            scores.setdefault(name, []).append(_scored(judge, rows))
    table = [
        {"images": name, **{measure: over_seeds([row[measure] for row in rows]) for measure in rows[0]}}
        for name, rows in scores.items()
    ]
    by_seed = {name: [row["Fréchet distance"] for row in rows] for name, rows in scores.items()}
    distance = {name: over_seeds(values) for name, values in by_seed.items()}
    text = (
        f"{gaps_said(by_seed)} A mixture of {COMPONENTS} Gaussians on the autoencoder's codes, whose standard "
        f"deviation is {np.mean(scales):.1f}, gives {mean_of(distance[MIXED]):.1f}, and N(0, 1), to which nothing "
        f"keeps them, {mean_of(distance[AE_PRIOR]):.1f}. Features are the hidden layer of a classifier with an "
        f"accuracy of {judge.accuracy:.1%} on held-out images; all sets have {len(heldout):,} images."
    )
    plane, quantiles = vae(setting, width=2), normal_quantiles(SIDE)
    pictures = [
        Picture(draw_rows(images, judge.heldout.shape), "Images from drawn codes, and from codes of images."),
        Picture(
            draw_plane(plane.model, plane.shape, quantiles, quantiles, x="latent 0", y="latent 1"),
            f"The two latents of a VAE at {SIDE} x {SIDE} quantiles of the prior, decoded.",
        ),
    ]
    return Finding(text, {"frechet": distance, "table": table, "judge_accuracy": judge.accuracy}, [table], pictures)


def gaps_said(frechet: Mapping[str, Sequence[float]]) -> str:
    """Whether there are gaps, from Fréchet distances to held-out images by seed.

    A gap is what drawing a code adds to the distance of reconstructions, beyond the distance of training images:
    reconstructions are of the very images with which they are compared.
    """
    mean = {name: mean_of(over_seeds(values)) for name, values in frechet.items()}
    added = {
        name: [a - b for a, b in zip(frechet[drawn], frechet[rebuilt], strict=True)]
        for name, drawn, rebuilt in (("AE", GAUSSIAN, AE_REBUILT), ("VAE", VAE_PRIOR, VAE_REBUILT))
    }
    beyond = {name: side(difference(values, frechet[REAL])) for name, values in added.items()}
    gap = {1: "has gaps", 0: "has none that are significant", -1: "has none"}
    larger = {1: "the autoencoder's is more", 0: "the difference is not significant", -1: "the VAE's is more"}
    farther = {1: "farther than", 0: "not significantly farther than", -1: "nearer than"}
    holds = "holds" if beyond["AE"] > 0 >= beyond["VAE"] else "does not hold"
    return (
        f"Codes drawn from one Gaussian fitted to the autoencoder's codes decode to images "
        f"{farther[side(difference(frechet[GAUSSIAN], frechet[VAE_PRIOR]))]} those of the VAE's prior from held-out "
        f"ones (Fréchet distance {mean[GAUSSIAN]:.1f} and {mean[VAE_PRIOR]:.1f}). To the distance of reconstructions "
        f"drawing adds {np.mean(added['AE']):.1f} for the autoencoder, which {gap[beyond['AE']]}, and "
        f"{np.mean(added['VAE']):.1f} for the VAE, which {gap[beyond['VAE']]} (a gap: more than the distance of "
        f"training images, {mean[REAL]:.1f}); {larger[side(difference(added['AE'], added['VAE']))]}. The claim that an "
        f"autoencoder's codes leave gaps, and a VAE's none, {holds} here."
    )


def _scored(judge: Judge, images: Tensor) -> dict[str, float]:
    real, generated = judge.classifier.features(judge.heldout.x), judge.classifier.features(images)
    inside = manifolds(real, generated)
    return {
        "Fréchet distance": frechet(real, generated).distance,
        "precision": inside.precision,
        "recall": inside.recall,
        "classifier's confidence": float(judge.classifier.confidence(images).mean()),
    }


@experiment(
    "interpolation", rows=(15,), title="Half-way between two images: their codes' mean, and their pixels'", seeds="0"
)
def interpolation(setting: Setting) -> Finding:
    """Lines and arcs between the codes of held-out images of different classes, and the blend of their pixels."""
    judge, run = judge_of(setting.data), vae(setting)
    count = setting.pick(300, 60)
    alphas = np.linspace(0, 1, setting.pick(21, 5)).tolist()
    pairs = different_pairs(judge.heldout.labels, count)
    x = judge.heldout.x
    codes = dense_codes(run.model, x)
    images = {
        "codes, line": decode_dense(run.model, torch.cat([linear(codes[i], codes[j], alphas) for i, j in pairs])),
        "codes, arc": decode_dense(run.model, torch.cat([spherical(codes[i], codes[j], alphas) for i, j in pairs])),
        "pixels blended": torch.cat([linear(x[i], x[j], alphas) for i, j in pairs]),
    }
    confidence = {name: judge.classifier.confidence(rows).reshape(count, -1) for name, rows in images.items()}
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
    pictures = [
        Picture(
            draw_interpolation(run.model, run.shape, x[[i, j]], codes[[i, j]], alphas=CHAPTER_ALPHAS),
            "The chapter's five steps between the codes of two held-out images, and between their pixels.",
        )
        for i, j in pairs[:3]
    ]
    for name, values, y in (
        ("distance", nearest, "RMS a pixel to the nearest training image"),
        ("confidence", confidence, "probability of the likeliest class"),
    ):
        curves = {path: Curve(alphas, rows.mean(0).tolist()) for path, rows in values.items()}
        pictures.append(Picture(draw_lines(curves, "α", y), f"Along the path: {name}, mean of {count} pairs."))
    return Finding(interpolation_said(*table), {"paths": table, "pairs": count}, [table], pictures)


def interpolation_said(line: Mapping[str, Any], arc: Mapping[str, Any], blend: Mapping[str, Any]) -> str:
    """The middle of the paths compared with their ends, at which nothing is mixed."""
    codes, pixels = (row["nearest image, middle"] - row["nearest image, ends"] for row in (line, blend))
    lost, lost_by_blend = (row["confidence, ends"] - row["confidence, middle"] for row in (line, blend))
    nearer = "nearer" if line["nearest image, middle"] < blend["nearest image, middle"] else "no nearer"
    leads = "less far from" if codes < pixels else "no less far from"
    surer = "loses less" if lost < lost_by_blend else "loses no less"
    return (
        f"Half-way between two held-out images of different classes, the decoded mean of their codes is "
        f"{line['nearest image, middle']:.3f} from the nearest training image (root mean squared, a pixel), {nearer} "
        f"than the blend of their pixels ({blend['nearest image, middle']:.3f}). From the ends, without a mixture, to "
        f"the middle ({codes:+.3f} and {pixels:+.3f}) the way leads the codes {leads} the training images than the "
        f"pixels. Of its confidence at the ends a classifier of real images loses {lost:.2f} on the line's middle and "
        f"{lost_by_blend:.2f} on the blend's: the line {surer} than the blend (on the arc's middle it has "
        f"{arc['confidence, middle']:.2f})."
    )


def different_pairs(labels: Tensor, count: int) -> list[tuple[int, int]]:
    """`count` random pairs of positions with different labels int64 [n].

    Raises:
        ValueError: there is only one label.
    """
    if len(labels.unique()) < 2:
        raise ValueError("labels: expected two classes or more")
    generator = draws.generator(0, PAIRS)
    pairs: list[tuple[int, int]] = []
    while len(pairs) < count:
        i, j = torch.randint(len(labels), (2,), generator=generator).tolist()
        if labels[i] != labels[j]:
            pairs.append((i, j))
    return pairs
