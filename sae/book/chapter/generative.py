"""Generative models measured: the chapter's table of VAE, GAN and diffusion, and the families that mix them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sae.base.tables import number
from sae.book.chapter.base import Finding, Picture, Setting, experiment
from sae.book.chapter.generative_models import Measured, families, images_seen, measure, quantised, score, sizes_of
from sae.book.chapter.generative_verdicts import Numbers, summary, verdicts
from sae.book.chapter.measure import Judge, judge_of
from sae.book.generate.base import Sampler
from sae.book.generate.diffusion import Diffusion
from sae.book.generate.latent import VAESampler, code_indices, decode_indices, train_prior
from sae.book.pictures.grids import draw_rows
from sae.pictures.lines import Curve, draw_lines

SHOWN = 16  # images a row of a picture
STEPS = (2, 5, 10, 25)  # of sampling


@experiment("generative_families", rows=(24, 25, 27), title="VAE, GAN and diffusion, measured")
def generative_families(setting: Setting) -> Finding:
    """The chapter's table, each of its verdicts compared with a number; with the mixed families as further rows."""
    data = "digits" if setting.quick else setting.data
    seeds = setting.seeds[:1] if setting.quick else setting.seeds
    judge = judge_of(data)
    shape, heldout = judge.heldout.shape, judge.heldout.x
    sizes = sizes_of(setting, shape)
    measured: dict[str, list[Measured]] = {}
    first: dict[str, Sampler] = {}
    for seed in seeds:
        models = families(setting, data, shape, seed)
        first = first or models
        for name, model in models.items():
            measured.setdefault(name, []).append(measure(judge, model, seed))
    seen = images_seen(sizes, len(judge.train.x) if sizes.limit is None else sizes.limit)
    floor, constant = _references(judge)
    steps = _by_steps(judge, first["diffusion"], sizes.diffusion.times)
    rows = verdicts({name: Numbers.of(each) for name, each in measured.items()})
    text = (
        f"{data}, {len(judge.train.x)} training images, seeds {', '.join(map(str, seeds))}. Features: the hidden units "
        "before the output of one classifier of the labelled training images, the same for all, with an accuracy of "
        f"{judge.accuracy:.1%} on held-out images; {len(heldout)} samples against as many held-out images. A Fréchet "
        "distance depends on the features and the number of samples: compare within this page. High frequencies: their "
        "share of the samples' power over their share of the images'. Classes are the classifier's names for samples; "
        "a class is hit if it has a tenth of its share or more. A seed fails if samples are not finite, fewer than "
        "half of the classes are hit, or they are no nearer to the data than one constant sample. "
        f"VAE, GAN and VAE-GAN have the same decoder of {sizes.latents} latents; the number of training images that a "
        "family sees differs and is in the table. These are small networks on few images: the verdicts are about them, "
        f"not about the families at large. {_words(rows)}"
    )
    curves = {
        name: Curve([p["evaluations"] for p in points], [p["frechet"] for p in points])
        for name, points in steps.items()
    }
    pictures = [
        Picture(_samples(first, heldout, shape), "The first samples of seed 0, unselected; above, held-out images."),
        Picture(_reconstructions(first, heldout, shape), "Held-out images through VAE and VAE-GAN."),
        Picture(draw_scores(measured, floor["Fréchet"]), "Distance of every seed; dashed: training images."),
        Picture(
            draw_lines(curves, "network calls a sample", "Fréchet distance", log_x=True),
            "Distance by network calls a sample, diffusion of seed 0.",
        ),
    ]
    references = {"training images": floor, "one constant sample": constant}
    numbers = {
        "families": {name: [m.numbers() for m in each] for name, each in measured.items()},
        "references": references,
        "steps": steps,
        "verdicts": rows,
        "judge_accuracy": judge.accuracy,
        "data": data,
    }
    table = [*summary(measured, seen), *({"model": name, **row} for name, row in references.items())]
    return Finding(text, numbers, [rows, table], pictures)


def draw_scores(measured: Mapping[str, Sequence[Measured]], floor: float) -> Figure:
    """Fréchet distance of every seed of every family, and that of training images; failed seeds are crosses."""
    figure = Figure(figsize=(6.4, 0.42 * len(measured) + 1.0))
    axis = figure.subplots()
    for place, seeds in enumerate(measured.values()):
        for m in seeds:
            if m.score.frechet is not None:
                axis.plot(m.score.frechet.distance, place, "x" if m.score.failure else "o", color="C3", alpha=0.7)
    axis.axvline(floor, linestyle="--", color="0.5")
    axis.set_xlim(left=0)
    axis.set_yticks(range(len(measured)), list(measured))
    axis.invert_yaxis()
    axis.set_xlabel("Fréchet distance, left is better")
    return figure


def _references(judge: Judge) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores of training images, as many as samples, and the distance of one constant image."""
    real = score(judge, judge.train.x[: len(judge.heldout.x)])
    assert real.frechet is not None
    assert real.manifolds is not None
    assert real.modes is not None
    floor = {
        "Fréchet": real.frechet.distance,
        "precision": real.manifolds.precision,
        "recall": real.manifolds.recall,
        "classes": f"{real.modes.hit}/{real.modes.of}",
        "KL of classes": real.modes.divergence,
    }
    return floor, {"Fréchet": real.frechet.of_a_constant}


def _by_steps(judge: Judge, model: Sampler, times: int) -> dict[str, list[dict[str, float]]]:
    """Distance of the diffusion's samples by the number of steps, without new noise (DDIM) and with DDPM's."""
    assert isinstance(model, Diffusion)
    points: dict[str, list[dict[str, float]]] = {}
    for name, noise in (("DDIM", 0.0), ("DDPM", 1.0)):
        for steps in (s for s in STEPS if s <= times):
            samples = model.with_steps(steps, noise).sample(len(judge.heldout.x), torch.Generator().manual_seed(0))
            distance = _distance(judge, samples)
            if distance is not None:
                points.setdefault(name, []).append({"evaluations": steps, "frechet": distance})
    return points


def _words(rows: list[dict[str, str]]) -> str:
    agreed = [row["property"] for row in rows if row["agrees"] == "yes"]
    others = [row["property"] for row in rows if row["agrees"] == "no"]
    undecided = [row["property"] for row in rows if row["agrees"] not in ("yes", "no")]
    words = f"As in the chapter: {', '.join(agreed) or 'nothing'}; otherwise: {', '.join(others) or 'nothing'}"
    return f"{words}; undecided with one seed: {', '.join(undecided)}." if undecided else f"{words}."


def _samples(models: Mapping[str, Sampler], heldout: Tensor, shape: tuple[int, int, int]) -> Figure:
    rows = {"held-out": heldout[: 2 * SHOWN]}
    rows |= {name: model.sample(2 * SHOWN, torch.Generator().manual_seed(0)) for name, model in models.items()}
    split: dict[str, Tensor] = {}
    for i, (name, images) in enumerate(rows.items(), 1):
        # the second row's name is blank, and unique
        split |= {name: images[:SHOWN], " " * i: images[SHOWN:]}
    return draw_rows(split, shape)


def _reconstructions(models: Mapping[str, Sampler], heldout: Tensor, shape: tuple[int, int, int]) -> Figure:
    rows = {"held-out": heldout[:SHOWN]}
    for name in ("VAE", "VAE-GAN"):
        model = models[name]
        assert isinstance(model, VAESampler)
        rows[name] = model.reconstruct(heldout[:SHOWN])
    return draw_rows(rows, shape)


@experiment("vqvae2_samples", rows=(23,), title="VQ-VAE-2: samples by a prior over two levels of codes", seeds="0")
def vqvae2_samples(setting: Setting) -> Finding:
    """Two levels of codes, a prior over both, and samples without one."""
    data = "digits" if setting.quick else setting.data
    judge = judge_of(data)
    heldout, seed = judge.heldout.x, setting.seeds[0]
    sizes = sizes_of(setting, judge.heldout.shape)
    run = quantised(setting, "vqvae2", data, sizes, sizes.channels[-1:], seed)
    setting.tell("prior of codes, two levels")
    model = train_prior(run, sizes.prior, seed=seed)
    codes, heldout_codes = (code_indices(run.model, x) for x in (run.images("train").all(), heldout))
    generator = torch.Generator().manual_seed(seed)
    # every position's codes with their frequencies in the data, independent of one another
    shuffled = torch.stack([c[torch.randperm(len(c), generator=generator)] for c in codes.T], 1)
    samples = {
        "reconstructed": decode_indices(run.model, heldout_codes),
        "prior": model.sample(len(heldout), generator),
        "independent": decode_indices(run.model, shuffled[: len(heldout)]),
    }
    distances = {name: _distance(judge, images) for name, images in samples.items()}
    with torch.no_grad():
        prior = model.prior.nats(heldout_codes).mean().item()
    positions = codes.shape[1]
    nats = {
        "prior": prior,
        "independent": _independent(codes, heldout_codes, sizes.atoms),
        "uniform": positions * math.log(sizes.atoms),
    }
    listed = ", ".join(f"{name} {number(value)}" for name, value in distances.items())
    text = (
        f"{data}: {positions} codes an image, coarse level first, of {sizes.atoms} atoms. A held-out image's codes "
        f"take {nats['prior']:.1f} nats under the prior, {nats['independent']:.1f} by the frequencies at each "
        f"position, {nats['uniform']:.1f} at equal odds. Fréchet distance in the classifier's features: {listed}."
    )
    images = {name: rows[:SHOWN] for name, rows in {"held-out": heldout, **samples}.items()}
    caption = "Held-out images; their reconstructions; samples of the prior; every code drawn independently."
    picture = Picture(draw_rows(images, judge.heldout.shape), caption)
    return Finding(text, {"nats": nats, "frechet": distances, "positions": positions}, (), [picture])


def _distance(judge: Judge, samples: Tensor) -> float | None:
    distance = score(judge, samples).frechet
    return None if distance is None else distance.distance


def _independent(codes: Tensor, heldout: Tensor, atoms: int) -> float:
    """-log of held-out codes [M, P] under the frequencies of codes [N, P] at each position: mean, nats a sample.

    One is added to every atom's count.
    """
    counts = torch.nn.functional.one_hot(codes, atoms).sum(0).double() + 1
    odds = counts / counts.sum(1, keepdim=True)
    return -odds.log()[torch.arange(heldout.shape[1]), heldout].sum(1).mean().item()
