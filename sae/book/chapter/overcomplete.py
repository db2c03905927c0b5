"""An overcomplete autoencoder can copy its input; what sparsity and input noise do about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sae.base import draws
from sae.base.colours import diverging
from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained_by_seed
from sae.book.chapter.measure import (
    Images,
    difference,
    enumerated,
    fvu,
    keyed,
    mean_of,
    over_seeds,
    reconstructed,
    side,
    split_images,
)
from sae.book.chapter.networks import OPTIM
from sae.book.pictures.grids import draw_rows
from sae.config import VisionConfig
from sae.evaluation.probing import few_label_probe, probing_task, sparse_probe
from sae.modules.corruption import corrupt
from sae.runs.images import ImageRun

ACTIVE = 16
"""Active latents an image of the sparse variants."""
NO_PENALTY = 1e-9  # too small to have an effect: the same code, loss and steps, without sparsity
COPIES = 0.02
"""FVU of held-out images below which the input counts as copied."""
NOISE = 0.3
SHOWN = 12
FREE = "no penalty"
COLUMN = "kept from copying by"


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
