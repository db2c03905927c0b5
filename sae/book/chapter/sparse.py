"""Sparse autoencoders on pixels: by L1, by a divergence from a firing rate, and by selection, as on language models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sae.base.colours import diverging
from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained
from sae.book.chapter.measure import Images, Spread, fvu, mean_of, over_seeds, reconstructed, split_images
from sae.book.chapter.networks import OPTIM
from sae.book.pictures.bars import draw_ranked
from sae.book.pictures.charts import draw_histograms
from sae.book.pictures.grids import draw_rows
from sae.book.pictures.lines import Curve, draw_lines
from sae.config import VisionConfig
from sae.runs.images import ImageRun, dense_codes

TARGETS = (4, 8, 16, 32)
"""Latents an image that the penalty's weight is steered to."""
RATE = 0.05
RATE_WEIGHT = 0.01
"""Of the divergence from the rate, a pixel: the squared error that it is weighed against is a sum over pixels. Three
times as much and half of the error is still there on digits after 40 epochs: latents near 0 move slowly."""
ACTIVE = 16
SHOWN = 12


def latents_for(setting: Setting, pixels: int) -> int:
    """Latents of the dictionaries: more than there are principal components to find."""
    return setting.pick(512 if pixels > 256 else 256, 128)


def l0_of(run: ImageRun, images: Images) -> float:
    """Latents that fire in an image, on average."""
    with torch.no_grad():
        return run.model.encode(images.x).l0().float().mean().item()


@experiment("l1", rows=(6,), title="An L1 penalty and sparse codes: error against the number of active latents")
def l1(setting: Setting) -> Finding:
    """FVU over L0 for the penalty sum |z_j| ||d_j||, and for TopK at the same numbers."""
    train, held = split_images(setting.data)
    width = latents_for(setting, train.x.shape[1])
    rows: list[dict[str, Any]] = []
    for k in setting.pick(TARGETS, TARGETS[::2]):
        row: dict[str, Any] = {"asked for": k}
        for variant, name in (("relu", "L1"), ("topk", "TopK")):
            runs = [_dictionary(setting, variant, width, k, seed) for seed in setting.seeds]
            row[f"{name} L0"] = over_seeds([l0_of(run, held) for run in runs])
            row[f"{name} FVU"] = over_seeds([fvu(held.x, reconstructed(run, held.x)) for run in runs])
        rows.append(row)
    curves = {
        name: Curve([mean_of(row[f"{name} L0"]) for row in rows], [row[f"{name} FVU"] for row in rows])
        for name in ("L1", "TopK")
    }
    said = "; ".join(f"{mean_of(row['L1 L0']):.1f} latents, FVU {mean_of(row['L1 FVU']):.3f}" for row in rows)
    return Finding(
        text=f"The penalty's weight sets how many of {width} latents fire in an image, and so what is lost: {said}. "
        + same_l0_said(
            *([(mean_of(row[f"{name} L0"]), mean_of(row[f"{name} FVU"])) for row in rows] for name in curves)
        ),
        numbers={"width": width, "curve": rows},
        tables=[rows],
        pictures=[
            Picture(
                draw_lines(curves, "L0, active latents an image", "FVU, held-out images", log_x=True),
                "Held-out error over sparsity.",
                vector=True,
            )
        ],
    )


def same_l0_said(l1: Sequence[tuple[float, float]], topk: Sequence[tuple[float, float]]) -> str:
    """What TopK leaves beside L1 at TopK's own numbers of active latents, from points (L0, FVU) by rising L0.

    L1's curve is read between its points, straight in the logarithms of both: the FVU falls as a power of L0.
    """
    l0, left = np.log(np.array(l1).T)
    inside = [(at, own) for at, own in topk if l0[0] <= np.log(at) <= l0[-1]]
    if not inside:
        return "None of TopK's numbers of active latents lies among those of the penalty."
    pairs = [(at, float(np.exp(np.interp(np.log(at), l0, left))), own) for at, own in inside]
    less = sum(own < penalised for _, penalised, own in pairs)
    said = "; ".join(f"{own:.3f} and {penalised:.3f} at {at:.1f}" for at, penalised, own in pairs)
    return (
        f"At TopK's own numbers, as far as the penalty's curve reaches, TopK leaves and the curve has, read between "
        f"its points: {said} latents. TopK leaves less at {less} of {len(pairs)}."
    )


def _dictionary(setting: Setting, variant: str, width: int, k: int, seed: int) -> ImageRun:
    vision = VisionConfig(variant=variant, width=width, k=k)
    return trained(setting, f"{variant}-{width}-{k}", vision, epochs=setting.pick(40, 10), seed=seed)


@experiment("rate", rows=(7,), title="A divergence from a firing rate: latents that are on for one image in twenty")
def rate(setting: Setting) -> Finding:
    """Mean values of sigmoid latents on held-out images, with and without the divergence from the rate."""
    _, held = split_images(setting.data)
    found: dict[str, list[np.ndarray]] = {}
    errors: dict[str, Spread] = {}
    for name, weight in (("held to the rate", RATE_WEIGHT * held.x.shape[1]), ("free", 0.0)):
        vision = VisionConfig(variant="kl_sparse", width=64, rate=RATE, rate_weight=weight)
        folder = f"kl-sparse-{weight:g}"
        epochs = setting.pick(60, 40)
        runs = [trained(setting, folder, vision, epochs=epochs, optim=OPTIM, seed=seed) for seed in setting.seeds]
        found[name] = [dense_codes(run.model, held.x).mean(0).numpy() for run in runs]
        errors[name] = over_seeds([fvu(held.x, reconstructed(run, held.x)) for run in runs])
    rows = [
        {
            "latents": name,
            "median rate": over_seeds([float(np.median(r)) for r in rates]),
            f"within {RATE / 2:g} and {RATE * 2:g}": over_seeds([near(r) for r in rates]),
            "FVU": errors[name],
        }
        for name, rates in found.items()
    ]
    share = mean_of(over_seeds([near(rates) for rates in found["held to the rate"]]))
    pooled = {name: np.concatenate(rates) for name, rates in found.items()}
    return Finding(
        text=f"With the divergence from a rate of {RATE}, the latents' mean values on held-out images have the median "
        f"{mean_of(rows[0]['median rate']):.3f}, and {share:.0%} of them lie within "
        f"a factor of two of it; without, the median is {mean_of(rows[1]['median rate']):.3f}.",
        numbers={row["latents"]: {name: value for name, value in row.items() if name != "latents"} for row in rows},
        tables=[rows],
        pictures=[
            Picture(
                draw_histograms(
                    pooled,
                    x="mean value of a latent, held-out images",
                    y="share of latents",
                    bins=np.linspace(0, 1, 41),
                    at={"rate asked for": RATE},
                ),
                "How often latents are on, all seeds together.",
                vector=True,
            )
        ],
    )


def near(rates: np.ndarray) -> float:
    """Share of latents whose rate is within a factor of two of the one asked for."""
    return float(((rates >= RATE / 2) & (rates <= RATE * 2)).mean())


@experiment("selection", rows=(8,), title="TopK, BatchTopK and JumpReLU on pixels, by the kernels of language models")
def selection(setting: Setting) -> Finding:
    """Firing rates, dead latents and atoms of dictionaries that select."""
    train, held = split_images(setting.data)
    width = latents_for(setting, train.x.shape[1])
    rows, pictures = [], []
    atoms = {}
    for variant in ("topk", "batchtopk", "jumprelu"):
        runs = [_dictionary(setting, variant, width, ACTIVE, seed) for seed in setting.seeds]
        rates = [firing_rates(run, held) for run in runs]
        rows.append(
            {
                "variant": variant,
                "route": runs[0].record["training"]["route"],
                "L0": over_seeds([float(r.sum()) for r in rates]),
                "FVU": over_seeds([fvu(held.x, reconstructed(run, held.x)) for run in runs]),
                "dead": over_seeds([float((r == 0).mean()) for r in rates]),
                "median rate": over_seeds([float(np.median(r)) for r in rates]),
            }
        )
        figure = draw_ranked(rates[0], label="share of images", rank="latent, by its firing rate", title=variant)
        pictures.append(Picture(figure, f"Firing rates on held-out images, {variant}.", vector=True))
        order = np.argsort(-rates[0])[:SHOWN].tolist()
        atoms[variant] = diverging(runs[0].model.dictionary.W.detach()[order], held.shape)
    pictures.append(Picture(draw_rows(atoms, held.shape), "Atoms of the latents that fire most often."))
    return Finding(
        text=f"Dictionaries of {width} atoms, asked for {ACTIVE} latents an image: "
        + "; ".join(
            f"{row['variant']} L0 {mean_of(row['L0']):.1f}, FVU {mean_of(row['FVU']):.3f}, "
            f"{mean_of(row['dead']):.1%} dead, {row['route']} steps"
            for row in rows
        )
        + ". Dead means: on none of the held-out images.",
        numbers={row["variant"]: {name: value for name, value in row.items() if name != "variant"} for row in rows},
        tables=[rows],
        pictures=pictures,
    )


def firing_rates(run: ImageRun, images: Images) -> np.ndarray:
    """Share of images in which every latent fires, [F]."""
    return (dense_codes(run.model, images.x) > 0).float().mean(0).numpy()
