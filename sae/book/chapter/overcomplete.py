"""An overcomplete autoencoder can copy its input; what sparsity and noise on the input make of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sae.base import draws
from sae.base.colours import diverging
from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained
from sae.book.chapter.measure import Images, enumerated, fvu, mean_of, over_seeds, reconstructed, side, split_images
from sae.book.chapter.networks import OPTIM
from sae.book.pictures.grids import draw_rows
from sae.config import VisionConfig
from sae.evaluation.probing import ProbingTask, few_label_probe, probing_task, sparse_probe
from sae.modules.corruption import corrupt
from sae.runs.images import ImageRun

ACTIVE = 16
"""Latents an image that the sparse ones have."""
NO_PENALTY = 1e-9  # a weight that nothing notices: the same code, loss and steps, without the sparsity
COPIES = 0.02
"""FVU of held-out images below which the input is copied."""
NOISE = 0.3
SHOWN = 12
FREE = "no penalty"


def width_for(pixels: int) -> int:
    """More latents than pixels: the power of 2 above."""
    return 1 << pixels.bit_length()


def cures(pixels: int) -> dict[str, VisionConfig]:
    """One layer of ReLU latents into a dictionary of unit atoms, and what may be done to it."""
    width = width_for(pixels)
    # k is how many latents are active at the start: with 16 too few to copy with, and FVU on mnist5k stayed at .12. The
    # usual rate (.0056 there) is too high for copying as well: .059, and .002 with half of it
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
    train, held = split_images(setting.data)
    pixels = train.x.shape[1]
    rows: list[dict[str, Any]] = []
    atoms, found = {}, {}
    for name, vision in cures(pixels).items():
        safe = name.replace(" ", "-").lower()
        runs = [
            trained(setting, f"overcomplete-{safe}", vision, epochs=setting.pick(30, 40), optim=OPTIM, seed=seed)
            for seed in setting.seeds
        ]
        each = found[name] = [measures(run, train, held) for run in runs]
        rows.append({"kept from copying by": name, **{key: over_seeds([m[key] for m in each]) for key in each[0]}})
        atoms[name] = strongest_atoms(runs[0], held)
    by_name = {row["kept from copying by"]: row for row in rows}
    return Finding(
        text=f"With {width_for(pixels):,} latents for {pixels} pixels {copying_said(found)}",
        numbers={"width": width_for(pixels), "pixels": pixels, "measured": by_name},
        tables=[rows],
        pictures=[
            Picture(
                draw_rows({name: diverging(rows, held.shape) for name, rows in atoms.items()}, held.shape),
                "Atoms of the latents with the largest mean value.",
            )
        ],
    )


def copying_said(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Whether it copies where nothing keeps it from that, and which cure does what, from measures by seed."""
    mean = {name: {key: mean_of(over_seeds([m[key] for m in each])) for key in each[0]} for name, each in found.items()}
    free, cures = mean[FREE], [name for name in found if name != FREE]
    copies = "copies" if free["FVU"] < COPIES else "does not copy"

    def told(key: str, sign: int) -> tuple[list[str], list[str]]:
        """Cures with less or more than without any, by the sign, and the others, with what they have."""
        sides = {}
        for name in cures:
            change = over_seeds([a[key] - b[key] for a, b in zip(found[name], found[FREE], strict=True)])
            sides[name] = side(change) == sign
        said = {name: f"{name} ({mean[name][key]:.0%})" for name in cures}
        return [said[n] for n in cures if sides[n]], [said[n] for n in cures if not sides[n]]

    less, as_much = told("noise kept", -1)
    better, no_better = told("best latent", 1)
    return (
        f"and nothing against it, the autoencoder {copies}: FVU {free['FVU']:.4f} (copying: below {COPIES:g}), and of "
        f"noise on the input a share of {free['noise kept']:.0%} comes out again. The best single latent for a class "
        f"tells it from the rest with {free['best latent']:.0%} (chance 50%). Less noise comes out with "
        f"{enumerated(less or ['none'])}, no less with {enumerated(as_much or ['none'])}; the best single latent "
        f"is better with {enumerated(better or ['none'])}, no better that the seeds show with "
        f"{enumerated(no_better or ['none'])}. L1 and TopK are asked for {ACTIVE} latents an image."
    )


def measures(run: ImageRun, train: Images, held: Images) -> dict[str, float]:
    """FVU, L0, the share of noise that is passed on, and accuracies of probes, on held-out images."""
    noisy = corrupt("gaussian", NOISE, held.x, draws.generator(0)).x
    clean_out, noisy_out = reconstructed(run, held.x), reconstructed(run, noisy)
    with torch.no_grad():
        codes, test = run.model.encode(train.x), run.model.encode(held.x)
    task: ProbingTask = probing_task(codes, train.labels, test, held.labels)
    return {
        "FVU": fvu(held.x, clean_out),
        "L0": test.l0().float().mean().item(),
        "noise kept": ((noisy_out - clean_out).square().sum() / (noisy - held.x).square().sum()).item(),
        "best latent": sparse_probe(task, 1).accuracy,
        "best 5": sparse_probe(task, 5).accuracy,
        "100 labels": few_label_probe(task, min(100, len(train.x))).mean,
    }


def strongest_atoms(run: ImageRun, held: Images) -> torch.Tensor:
    """The atoms [SHOWN, D] that contribute most to reconstructions."""
    with torch.no_grad():
        mean = run.model.encode(held.x).to_dense().abs().mean(0)
    return run.model.dictionary.W.detach()[mean.topk(SHOWN).indices]
