"""Generative models measured: the chapter's table of VAE, GAN and diffusion, and the families that mix them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sae.base.tables import number
from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained
from sae.book.chapter.generative_models import (
    Measured,
    drawn,
    families,
    images_seen,
    measure,
    score,
    sizes_of,
    variational,
)
from sae.book.chapter.generative_pictures import draw_scores
from sae.book.chapter.generative_verdicts import Numbers, summary, verdicts
from sae.book.chapter.latent_space_judge import Judge, judge_of
from sae.book.generate.base import Sampler
from sae.book.generate.diffusion import Diffusion
from sae.book.generate.latent import VAESampler
from sae.book.generate.prior import code_indices, decode_indices, train_prior
from sae.book.pictures.grids import draw_rows
from sae.book.pictures.lines import Curve, draw_lines
from sae.config import VisionConfig
from sae.runs.images import decode_dense, dense_codes

SHOWN = 16  # images a row of a picture
STEPS = (2, 5, 10, 25)  # of sampling


@experiment("generative_families", rows=(24, 25, 27), title="VAE, GAN and diffusion, measured")
def generative_families(setting: Setting) -> Finding:
    """The chapter's table, every word of it against a number; with the mixed families as further rows."""
    data = "digits" if setting.quick else setting.data
    seeds = setting.seeds[:1] if setting.quick else setting.seeds
    judge = judge_of(data)
    shape, heldout = judge.held.shape, judge.held.x
    sizes = sizes_of(setting, shape)
    scores: dict[str, list[Measured]] = {}
    first: dict[str, Sampler] = {}
    for seed in seeds:
        models = families(setting, data, shape, seed)
        first = first or models
        for name, model in models.items():
            scores.setdefault(name, []).append(measure(judge, model, seed))
    seen = images_seen(sizes, len(judge.train.x) if sizes.limit is None else sizes.limit)
    rows, numbers = summary(scores, seen), {name: _numbers(found) for name, found in scores.items()}
    floor, constant = _references(judge)
    steps = _by_steps(judge, first, sizes.diffusion.times)
    says = verdicts({name: Numbers.of(found) for name, found in scores.items()})
    text = (
        f"{data}, {len(judge.train.x)} training images, seeds {', '.join(map(str, seeds))}. Features: the hidden units "
        "before the output of one classifier of the labelled training images, the same for all, "
        f"{judge.accuracy:.1%} right on held-out images; {len(heldout)} samples against as many "
        "held-out images. A Fréchet distance depends on the features and the number of samples: compare within this "
        "page. High frequencies: their share of the samples' power over their share of the images'. Classes are what "
        "the classifier calls a sample; one is hit from a tenth of its share on. A seed fails if samples are not "
        "finite, fewer than half of the classes are hit, or they are no nearer to the data than one constant sample. "
        f"VAE, GAN and VAE-GAN have the same decoder of {sizes.latents} latents; how many training images each family "
        "sees differs and stands in the table. These are small networks on few images: the verdicts are on them, not "
        f"on the families at large. {_words(says)}"
    )
    pictures = [
        Picture(_samples(first, heldout, shape), "The first samples of seed 0, held-out images above: none is chosen."),
        Picture(_reconstructions(setting, data, judge, first), "Held-out images through VAE and VAE-GAN."),
        Picture(draw_scores(scores, floor["Fréchet"]), "Distance of every seed; dashed: training images.", True),
        Picture(
            draw_lines(_curves(steps), "network calls a sample", "Fréchet distance", log_x=True),
            "Distance by network calls a sample, diffusion of seed 0.",
            True,
        ),
    ]
    references = {"training images": floor, "one constant sample": constant}
    kept = {"families": numbers, "references": references, "steps": steps, "verdicts": says}
    table = [*rows, *({"model": name, **row} for name, row in references.items())]
    return Finding(text, {**kept, "judge_accuracy": judge.accuracy, "data": data}, [says, table], pictures)


def _references(judge: Judge) -> tuple[dict[str, Any], dict[str, Any]]:
    """What training images score, as many as samples, and the distance of one constant image."""
    real = score(judge, judge.train.x[: len(judge.held.x)])
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


def _numbers(found: list[Measured]) -> list[dict[str, Any]]:
    """All of every seed, as JSON values."""
    return [
        {
            "frechet": None if m.score.frechet is None else m.score.frechet.distance,
            "precision": None if m.score.manifolds is None else m.score.manifolds.precision,
            "recall": None if m.score.manifolds is None else m.score.manifolds.recall,
            "classes": None if m.score.modes is None else m.score.modes.hit,
            "failure": m.score.failure,
            **{name: value for name, value in m._asdict().items() if name != "score"},
        }
        for m in found
    ]


def _by_steps(judge: Judge, models: Mapping[str, Sampler], times: int) -> dict[str, list[dict[str, float]]]:
    """Distance of the diffusion's samples by the number of steps, without new noise (DDIM) and with all of DDPM's."""
    model = models["diffusion"]
    assert isinstance(model, Diffusion)
    found: dict[str, list[dict[str, float]]] = {}
    for name, noise in (("DDIM", 0.0), ("DDPM", 1.0)):
        for steps in (s for s in STEPS if s <= times):
            samples = model.with_steps(steps, noise).sample(len(judge.held.x), torch.Generator().manual_seed(0))
            distance = _distance(judge, samples)
            if distance is not None:
                found.setdefault(name, []).append({"evaluations": steps, "frechet": distance})
    return found


def _curves(steps: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Curve]:
    return {name: Curve([p["evaluations"] for p in ps], [p["frechet"] for p in ps]) for name, ps in steps.items()}


def _words(says: list[dict[str, str]]) -> str:
    agreed = [row["property"] for row in says if row["agrees"] == "yes"]
    others = [row["property"] for row in says if row["agrees"] == "no"]
    undecided = [row["property"] for row in says if row["agrees"] not in ("yes", "no")]
    words = f"As the chapter has it: {', '.join(agreed) or 'nothing'}; not so: {', '.join(others) or 'nothing'}"
    return f"{words}; not told by one seed: {', '.join(undecided)}." if undecided else f"{words}."


def _samples(models: Mapping[str, Sampler], heldout: Tensor, shape: tuple[int, int, int]) -> Figure:
    rows = {"held-out": heldout[: 2 * SHOWN]}
    rows |= {name: drawn(model, 2 * SHOWN) for name, model in models.items()}
    split: dict[str, Tensor] = {}
    for i, (name, images) in enumerate(rows.items(), 1):
        # the second row's name is blank, and another blank for every model
        split |= {name: images[:SHOWN], " " * i: images[SHOWN:]}
    return draw_rows(split, shape)


def _reconstructions(setting: Setting, data: str, judge: Judge, models: Mapping[str, Sampler]) -> Figure:
    x = judge.held.x[:SHOWN]
    run = variational(setting, data, judge.held.shape, setting.seeds[0])
    hybrid = models["VAE-GAN"]
    assert isinstance(hybrid, VAESampler)
    rows = {"held-out": x, "VAE": decode_dense(run.model, dense_codes(run.model, x)), "VAE-GAN": hybrid.reconstruct(x)}
    return draw_rows(rows, judge.held.shape)


@experiment("vqvae2_samples", rows=(23,), title="VQ-VAE-2: samples by a prior over two levels of codes", seeds="0")
def vqvae2_samples(setting: Setting) -> Finding:
    """Two levels of codes, a prior over both, and what samples are without one."""
    data = "digits" if setting.quick else setting.data
    judge = judge_of(data)
    sizes = sizes_of(setting, judge.held.shape)
    seed = setting.seeds[0]
    run = trained(
        setting,
        "generative-vqvae2",
        VisionConfig(variant="vqvae2", width=sizes.atoms, code_dim=16, channels=sizes.channels[-1:]),
        data=data,
        epochs=sizes.vqvae_epochs,
        limit=sizes.limit,
        seed=seed,
    )
    setting.tell("prior of codes, two levels")
    model = train_prior(run, sizes.prior, seed=seed)
    codes = code_indices(run.model, run.images("train").all())
    generator = torch.Generator().manual_seed(seed)
    # every position's codes as often as in the data, but without regard to each other
    shuffled = torch.stack([c[torch.randperm(len(c), generator=generator)] for c in codes.T], 1)
    alone = decode_indices(run.model, shuffled[: len(judge.held.x)])
    held = code_indices(run.model, judge.held.x)
    written = decode_indices(run.model, held)
    samples = {"reconstructed": written, "prior": model.sample(len(judge.held.x), generator), "independent": alone}
    distances = {name: _distance(judge, images) for name, images in samples.items()}
    with torch.no_grad():
        prior = model.prior.nats(held).mean().item()
    nats = {
        "prior": prior,
        "independent": _independent(codes, held, sizes.atoms),
        "uniform": _uniform(held, sizes.atoms),
    }
    text = (
        f"{data}: {codes.shape[1]} codes an image, coarse level first, of {sizes.atoms} atoms. A held-out "
        f"image's codes take {nats['prior']:.1f} nats by the prior, by each position's own frequencies "
        f"{nats['independent']:.1f}, even odds {nats['uniform']:.1f}. Fréchet distance in the classifier's features: "
        + ", ".join(f"{name} {number(value)}" for name, value in distances.items())
        + "."
    )
    shown = {"held-out": judge.held.x, **samples}
    picture = draw_rows({name: images[:SHOWN] for name, images in shown.items()}, judge.held.shape)
    caption = "Held-out images; as the codes write them; samples of the prior; every code drawn by itself."
    return Finding(
        text, {"nats": nats, "frechet": distances, "positions": codes.shape[1]}, (), [Picture(picture, caption)]
    )


def _distance(judge: Judge, samples: Tensor) -> float | None:
    found = score(judge, samples).frechet
    return None if found is None else found.distance


def _independent(codes: Tensor, held: Tensor, atoms: int) -> float:
    """-log of the frequencies that codes [N, P] have at each position, of codes held out [M, P]: mean, nats a sample.

    Every atom counts once more than it was seen.
    """
    counts = torch.nn.functional.one_hot(codes, atoms).sum(0).double() + 1
    odds = counts / counts.sum(1, keepdim=True)
    return -odds.log()[torch.arange(held.shape[1]), held].sum(1).mean().item()


def _uniform(codes: Tensor, atoms: int) -> float:
    return codes.shape[1] * math.log(atoms)
