"""Autoencoders of more latents than pixels: that they can copy, and what sparsity and input noise do about it.

Sparse by L1, by a divergence from a firing rate, and by selection, as on language models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sae.base import draws
from sae.base.colours import diverging
from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained_by_seed
from sae.book.chapter.measure import (
    OPTIM,
    Images,
    difference,
    enumerated,
    fvu,
    fvu_of_runs,
    keyed,
    mean_of,
    over_seeds,
    reconstructed,
    side,
    split_images,
)
from sae.book.pictures.grids import draw_rows
from sae.config import VisionConfig
from sae.evaluation.probing import few_label_probe, probing_task, sparse_probe
from sae.modules.corruption import corrupt
from sae.pictures.charts import draw_histograms, draw_ranked
from sae.pictures.lines import Curve, draw_lines
from sae.runs.images import ImageRun, dense_codes

ACTIVE = 16
"""Active latents an image of the sparse variants."""
NO_PENALTY = 1e-9  # too small to have an effect: the same code, loss and steps, without sparsity
COPIES = 0.02
"""FVU of held-out images below which the input counts as copied."""
NOISE = 0.3
SHOWN = 12
FREE = "no penalty"
COLUMN = "kept from copying by"
TARGETS = (4, 8, 16, 32)
"""Active latents an image, to which the penalty's weight is adapted."""
RATE = 0.05
RATE_WEIGHT = 0.01
"""Of the divergence from the rate, for each pixel, since the squared error is a sum over pixels. With three times as
much, half of the error is still there on digits after 40 epochs: latents near 0 move slowly."""


def variants(width: int) -> dict[str, VisionConfig]:
    """One layer of ReLU latents into a dictionary of unit atoms: free, and with each remedy against copying."""
    # k is the number of latents active at the start: with 16, too few to copy, FVU on mnist5k stayed at .12. The usual
    # learning rate (.0056 there) is too high for copying as well: .059, and .002 with half of it
    free = VisionConfig(variant="relu", width=width, k=width // 2, sparsity=NO_PENALTY)
    return {
        FREE: free,
        "noise": dataclasses.replace(free, corruption="gaussian"),
        "L1": VisionConfig(variant="relu", width=width, k=ACTIVE),
        "TopK": VisionConfig(variant="topk", width=width, k=ACTIVE),
    }


@experiment(
    "overcomplete", rows=(4,), title="Does an overcomplete autoencoder copy its input, and what keeps it from that?"
)
def overcomplete(setting: Setting) -> Finding:
    """More latents than pixels: reconstruction error, what noise does to it, and what single latents mean."""
    train, heldout = split_images(setting.data)
    pixels = train.x.shape[1]
    width = 1 << pixels.bit_length()  # the power of 2 above
    rows: list[dict[str, Any]] = []
    atoms, measured = {}, {}
    for name, vision in variants(width).items():
        folder = f"overcomplete-{name.replace(' ', '-').lower()}"
        runs = trained_by_seed(setting, folder, vision, epochs=setting.pick(30, 40), optim=OPTIM)
        measured[name] = [measures(run, train, heldout) for run in runs]
        rows.append({COLUMN: name, **{key: over_seeds([m[key] for m in measured[name]]) for key in measured[name][0]}})
        atoms[name] = diverging(strongest_atoms(runs[0], heldout), heldout.shape)
    text = f"With {width:,} latents for {pixels} pixels {copying_said(measured)}"
    numbers = {"width": width, "pixels": pixels, "measured": keyed(rows, COLUMN)}
    picture = Picture(draw_rows(atoms, heldout.shape), "Atoms of the latents with the largest mean value.")
    return Finding(text, numbers, [rows], [picture])


def copying_said(measured: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Whether the free autoencoder copies, and what each remedy does, from measures by seed."""
    by_seed = {name: {key: [m[key] for m in each] for key in each[0]} for name, each in measured.items()}
    free, remedies = by_seed[FREE], [name for name in measured if name != FREE]
    copies = "copies" if mean_of(over_seeds(free["FVU"])) < COPIES else "does not copy"

    def compared(key: str, sign: int) -> tuple[str, str]:
        """Remedies that lower or raise the measure, by the sign, and those that don't, with their means."""
        named = {name: f"{name} ({mean_of(over_seeds(by_seed[name][key])):.0%})" for name in remedies}
        changed = [n for n in remedies if side(difference(by_seed[n][key], free[key])) == sign]
        others = [n for n in remedies if n not in changed]
        return enumerated([named[n] for n in changed] or ["none"]), enumerated([named[n] for n in others] or ["none"])

    less, as_much = compared("noise kept", -1)
    better, no_better = compared("best latent", 1)
    return (
        f"and no constraint, the autoencoder {copies}: FVU {mean_of(over_seeds(free['FVU'])):.4f} (copying: below "
        f"{COPIES:g}), and {mean_of(over_seeds(free['noise kept'])):.0%} of the noise in the input is in the output. "
        f"The best single latent for a class tells it from the rest with "
        f"{mean_of(over_seeds(free['best latent'])):.0%} (chance 50%). Less noise is passed on with {less}, no less "
        f"with {as_much}; the best single latent is better with {better}, not significantly better with {no_better}. "
        f"L1 and TopK are set to {ACTIVE} latents an image."
    )


def measures(run: ImageRun, train: Images, heldout: Images) -> dict[str, float]:
    """FVU, L0, the share of noise that is passed on, and accuracies of probes, on held-out images."""
    noisy = corrupt("gaussian", NOISE, heldout.x, draws.generator(0)).x
    clean_output, noisy_output = reconstructed(run, heldout.x), reconstructed(run, noisy)
    with torch.no_grad():
        codes, test = run.model.encode(train.x), run.model.encode(heldout.x)
    task = probing_task(codes, train.labels, test, heldout.labels)
    return {
        "FVU": fvu(heldout.x, clean_output),
        "L0": test.l0().float().mean().item(),
        "noise kept": ((noisy_output - clean_output).square().sum() / (noisy - heldout.x).square().sum()).item(),
        "best latent": sparse_probe(task, 1),
        "best 5": sparse_probe(task, 5),
        "100 labels": few_label_probe(task, min(100, len(train.x))),
    }


def strongest_atoms(run: ImageRun, heldout: Images) -> torch.Tensor:
    """The atoms [SHOWN, D] that contribute most to reconstructions."""
    with torch.no_grad():
        mean = run.model.encode(heldout.x).to_dense().abs().mean(0)
    return run.model.dictionary.W.detach()[mean.topk(SHOWN).indices]


def latents_for(setting: Setting, pixels: int) -> int:
    """Latents of the dictionaries: more than there are principal components."""
    return setting.pick(512 if pixels > 256 else 256, 128)


def _dictionaries(setting: Setting, variant: str, width: int, k: int) -> list[ImageRun]:
    vision = VisionConfig(variant=variant, width=width, k=k)
    return trained_by_seed(setting, f"{variant}-{width}-{k}", vision, epochs=setting.pick(40, 10))


@experiment("l1", rows=(6,), title="An L1 penalty and sparse codes: error against the number of active latents")
def l1(setting: Setting) -> Finding:
    """FVU over L0 for the penalty sum |z_j| ||d_j||, and for TopK at the same numbers."""
    train, heldout = split_images(setting.data)
    width = latents_for(setting, train.x.shape[1])
    rows: list[dict[str, Any]] = []
    for k in setting.pick(TARGETS, TARGETS[::2]):
        row: dict[str, Any] = {"asked for": k}
        for variant, name in (("relu", "L1"), ("topk", "TopK")):
            runs = _dictionaries(setting, variant, width, k)
            row[f"{name} L0"] = over_seeds(
                [(dense_codes(run.model, heldout.x) != 0).sum(1).float().mean().item() for run in runs]
            )
            row[f"{name} FVU"] = fvu_of_runs(runs, heldout.x)
        rows.append(row)
    points = {
        name: [(mean_of(row[f"{name} L0"]), mean_of(row[f"{name} FVU"])) for row in rows] for name in ("L1", "TopK")
    }
    curves = {
        name: Curve([l0 for l0, _ in means], [row[f"{name} FVU"] for row in rows]) for name, means in points.items()
    }
    listed = "; ".join(f"{l0:.1f} latents, FVU {error:.3f}" for l0, error in points["L1"])
    text = (
        f"The penalty's weight sets how many of {width} latents are active in an image, and so the error: {listed}. "
        f"{same_l0_said(points['L1'], points['TopK'])}"
    )
    figure = draw_lines(curves, "L0, active latents an image", "FVU, held-out images", log_x=True)
    return Finding(text, {"width": width, "curve": rows}, [rows], [Picture(figure, "Held-out error over sparsity.")])


def same_l0_said(l1: Sequence[tuple[float, float]], topk: Sequence[tuple[float, float]]) -> str:
    """The errors of TopK and of L1 at TopK's numbers of active latents, from points (L0, FVU) by rising L0.

    L1's curve is interpolated linearly in the logarithms of both: FVU falls as a power of L0.
    """
    l0, fvu = np.log(np.array(l1).T)
    inside = [(at, error) for at, error in topk if l0[0] <= np.log(at) <= l0[-1]]
    if not inside:
        return "None of TopK's numbers of active latents is within the range of the penalty's."
    pairs = [(at, float(np.exp(np.interp(np.log(at), l0, fvu))), error) for at, error in inside]
    less = sum(error < penalised for _, penalised, error in pairs)
    listed = "; ".join(f"{error:.3f} and {penalised:.3f} at {at:.1f}" for at, penalised, error in pairs)
    return (
        "At TopK's numbers of active latents, within the range of the penalty's curve, FVU by TopK and by the penalty "
        f"(interpolated) is {listed} latents. TopK leaves less at {less} of {len(pairs)}."
    )


@experiment("rate", rows=(7,), title="A divergence from a firing rate: latents that are on for one image in twenty")
def rate(setting: Setting) -> Finding:
    """Mean values of sigmoid latents on held-out images, with and without the divergence from the rate."""
    _, heldout = split_images(setting.data)
    rows, pooled, near = [], {}, f"within {RATE / 2:g} and {RATE * 2:g}"
    for name, weight in (("held to the rate", RATE_WEIGHT * heldout.x.shape[1]), ("free", 0.0)):
        vision = VisionConfig(variant="kl_sparse", width=64, rate=RATE, rate_weight=weight)
        runs = trained_by_seed(setting, f"kl-sparse-{weight:g}", vision, epochs=setting.pick(60, 40), optim=OPTIM)
        rates = [dense_codes(run.model, heldout.x).mean(0).numpy() for run in runs]
        pooled[name] = np.concatenate(rates)
        rows.append(
            {
                "latents": name,
                "median rate": over_seeds([float(np.median(r)) for r in rates]),
                near: over_seeds([float(((r >= RATE / 2) & (r <= RATE * 2)).mean()) for r in rates]),
                "FVU": fvu_of_runs(runs, heldout.x),
            }
        )
    medians = [mean_of(row["median rate"]) for row in rows]
    share = mean_of(rows[0][near])
    text = (
        f"With the divergence from a rate of {RATE}, the median of the latents' mean values on held-out images is "
        f"{medians[0]:.3f}, and {share:.0%} of them are within a factor of two of the rate; without it the median is "
        f"{medians[1]:.3f}."
    )
    figure = draw_histograms(
        pooled,
        x="mean value of a latent, held-out images",
        y="share of latents",
        bins=np.linspace(0, 1, 41),
        at={"rate asked for": RATE},
    )
    picture = Picture(figure, "Mean values of latents, all seeds together.")
    return Finding(text, keyed(rows, "latents"), [rows], [picture])


@experiment("selection", rows=(8,), title="TopK, BatchTopK and JumpReLU on pixels, by the kernels of language models")
def selection(setting: Setting) -> Finding:
    """Firing rates, dead latents and atoms of dictionaries that select latents."""
    train, heldout = split_images(setting.data)
    width = latents_for(setting, train.x.shape[1])
    rows, pictures = [], []
    atoms = {}
    for variant in ("topk", "batchtopk", "jumprelu"):
        runs = _dictionaries(setting, variant, width, ACTIVE)
        rates = [(dense_codes(run.model, heldout.x) > 0).float().mean(0).numpy() for run in runs]
        rows.append(
            {
                "variant": variant,
                "route": runs[0].record["training"]["route"],
                "L0": over_seeds([float(r.sum()) for r in rates]),
                "FVU": fvu_of_runs(runs, heldout.x),
                "dead": over_seeds([float((r == 0).mean()) for r in rates]),
                "median rate": over_seeds([float(np.median(r)) for r in rates]),
            }
        )
        figure = draw_ranked(rates[0], label="share of images", rank="latent, by its firing rate", title=variant)
        pictures.append(Picture(figure, f"Firing rates on held-out images, {variant}."))
        order = np.argsort(-rates[0])[:SHOWN].tolist()
        atoms[variant] = diverging(runs[0].model.dictionary.W.detach()[order], heldout.shape)
    pictures.append(Picture(draw_rows(atoms, heldout.shape), "Atoms of the latents that fire most often."))
    listed = "; ".join(
        f"{row['variant']} L0 {mean_of(row['L0']):.1f}, FVU {mean_of(row['FVU']):.3f}, "
        f"{mean_of(row['dead']):.1%} dead, {row['route']} steps"
        for row in rows
    )
    text = (
        f"Dictionaries of {width} atoms, set to {ACTIVE} active latents an image: {listed}. A latent is dead if it "
        "fires in none of the held-out images."
    )
    return Finding(text, keyed(rows, "variant"), [rows], pictures)
