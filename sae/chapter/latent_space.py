"""What lies between codes: samples from the prior, the plane of two latents, and paths from one image to another."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from sae import draws
from sae.chapter.base import Finding, Picture, Setting, experiment
from sae.chapter.latent_space_judge import Judge, judge_of
from sae.chapter.measure import mean_of, over_seeds, reconstructed
from sae.chapter.variational_models import ae, vae
from sae.evaluation.generation import frechet, manifolds
from sae.image_runs import ImageRun, decode_dense, dense_codes
from sae.pictures.grids import draw_rows
from sae.pictures.latents import CHAPTER_ALPHAS, draw_interpolation, draw_plane, linear, normal_quantiles, spherical
from sae.pictures.lines import Curve, draw_lines

SHOWN = 12
COMPONENTS = 20  # of the mixture
SIDE = 20  # of the manifold
PRIOR, MIXTURE, PAIRS = range(3)  # what random numbers are drawn for


def prior_draws(count: int, width: int, seed: int) -> Tensor:
    """Draws from N(0, 1), [count, width]."""
    return torch.randn(count, width, generator=draws.generator(seed, PRIOR))


def mixture_draws(codes: Tensor, count: int, components: int, seed: int) -> Tensor:
    """Draws [count, F] from Gaussians fitted to codes [n, F], so many of them, each with a full covariance."""
    fitted = GaussianMixture(components, reg_covar=1e-4, random_state=seed).fit(codes.double().numpy())
    # they come Gaussian by Gaussian
    order = torch.randperm(count, generator=draws.generator(seed, MIXTURE))
    return torch.from_numpy(fitted.sample(count)[0]).float()[order]


def sampled(plain: ImageRun, variational: ImageRun, train: Tensor, count: int, seed: int) -> dict[str, Tensor]:
    """Images [count, D] from codes that no image has, by who decodes them and where the codes come from."""
    codes = dense_codes(plain.model, train)
    prior = prior_draws(count, plain.model.width, seed)
    return {
        "AE, N(0, 1)": decode_dense(plain.model, prior),
        "AE, one Gaussian": decode_dense(plain.model, mixture_draws(codes, count, 1, seed)),
        "AE, mixture": decode_dense(plain.model, mixture_draws(codes, count, COMPONENTS, seed)),
        "VAE, N(0, 1)": decode_dense(variational.model, prior),
    }


@experiment("gaps", rows=(14,), title="An autoencoder's codes leave gaps, a variational one's do not")
def gaps(setting: Setting) -> Finding:
    """Samples from the prior through a plain and a variational decoder, which are trained alike."""
    judge = judge_of(setting.data)
    seeds = setting.pick(setting.seeds, setting.seeds[:1])
    train, held = judge.train.x, judge.held.x
    found: dict[str, list[dict[str, float]]] = {}
    pictures: dict[str, Tensor] = {}
    for seed in seeds:
        images = sampled(ae(setting, seed), vae(setting, seed), train, len(held), seed)
        images["held-out, reconstructed by the VAE"] = reconstructed(vae(setting, seed), held)
        images["held-out images"] = held
        pictures = pictures or {name: rows[:SHOWN] for name, rows in images.items()}
        for name, rows in images.items():
            found.setdefault(name, []).append(_judged(judge, train, rows))
    measures = list(found["held-out images"][0])
    table = [
        {"images": name, **{measure: over_seeds([row[measure] for row in rows]) for measure in measures}}
        for name, rows in found.items()
    ]
    distance = {row["images"]: row["Fréchet distance"] for row in table}
    plane = vae(setting, width=2)
    text = (
        f"Codes drawn from the prior decode to images at a Fréchet distance of {mean_of(distance['VAE, N(0, 1)']):.1f} "
        f"from the training images by the VAE, and of {mean_of(distance['AE, N(0, 1)']):.1f} by the autoencoder, whose "
        f"codes lie elsewhere. Who fits a density to the autoencoder's codes afterwards can sample it as well: one "
        f"Gaussian gives {mean_of(distance['AE, one Gaussian']):.1f}, a mixture of {COMPONENTS} "
        f"{mean_of(distance['AE, mixture']):.1f}. Held-out images are at "
        f"{mean_of(distance['held-out images']):.1f}. Features are the hidden layer of a classifier that names "
        f"{judge.accuracy:.1%} of held-out images rightly."
    )
    numbers = {"frechet": distance, "table": table, "judge_accuracy": judge.accuracy}
    quantiles = normal_quantiles(SIDE)
    shown = [
        Picture(draw_rows(pictures, judge.held.shape), "Images from codes that no image has."),
        Picture(
            draw_plane(plane.model, plane.shape, quantiles, quantiles, x="latent 0", y="latent 1"),
            f"The two latents of a VAE at {SIDE} x {SIDE} quantiles of the prior, decoded.",
        ),
    ]
    return Finding(text, numbers, [table], shown)


def _judged(judge: Judge, train: Tensor, images: Tensor) -> dict[str, float]:
    real, generated = judge.features(train), judge.features(images)
    inside = manifolds(real[: len(images)], generated)
    return {
        "Fréchet distance": frechet(real, generated).distance,
        "precision": inside.precision,
        "recall": inside.recall,
        "classifier's confidence": float(judge.confidence(images).mean()),
    }


@experiment("interpolation", rows=(15,), title="Between two codes lie images; between two images lie blends")
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
    line, arc, blend = table
    text = (
        f"Half-way between two held-out images of different classes, the decoded mean of their codes is "
        f"{line['nearest image, middle']:.3f} from the nearest training image (root mean squared, a pixel), and the "
        f"blend of their pixels {blend['nearest image, middle']:.3f}; decoded images are smooth, and nearer at the "
        f"ends already ({line['nearest image, ends']:.3f} and {blend['nearest image, ends']:.3f}). A classifier of "
        f"the real images gives its best class {line['confidence, middle']:.2f} on the line's middle, "
        f"{arc['confidence, middle']:.2f} on the arc's and {blend['confidence, middle']:.2f} on the blend."
    )
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
