"""An overcomplete autoencoder can copy its input; sparsity or noise makes it learn something."""

from __future__ import annotations

from typing import Any

import torch

from sae import draws
from sae.chapter.base import Finding, Picture, Setting, experiment, trained
from sae.chapter.measure import Images, fvu, mean_of, over_seeds, reconstructed, split_images
from sae.evaluation.probing import ProbingTask, few_label_probe, probing_task, sparse_probe
from sae.image_config import VisionConfig
from sae.image_runs import ImageRun
from sae.modules.corruption import corrupt
from sae.pictures.grids import diverging, draw_rows

ACTIVE = 16
"""Latents an image that the sparse ones have."""
NO_PENALTY = 1e-9  # a weight that nothing notices: the same code, loss and steps, without the sparsity
NOISE = 0.3
SHOWN = 12


def width_for(pixels: int) -> int:
    """More latents than pixels: the power of 2 above."""
    return 1 << pixels.bit_length()


def cures(pixels: int) -> dict[str, VisionConfig]:
    """One layer of ReLU latents into a dictionary of unit atoms, and what may be done to it."""
    width = width_for(pixels)
    return {
        "no penalty": VisionConfig(variant="relu", width=width, sparsity=NO_PENALTY),
        "noise": VisionConfig(variant="relu", width=width, sparsity=NO_PENALTY, corruption="gaussian"),
        "L1": VisionConfig(variant="relu", width=width, k=ACTIVE),
        "TopK": VisionConfig(variant="topk", width=width, k=ACTIVE),
    }


@experiment("overcomplete", rows=(4,), title="An overcomplete autoencoder copies its input, unless it is kept from it")
def overcomplete(setting: Setting) -> Finding:
    """More latents than pixels: reconstruction error, what noise does to it, and what single latents mean."""
    train, held = split_images(setting.data)
    pixels = train.x.shape[1]
    rows: list[dict[str, Any]] = []
    atoms = {}
    for name, vision in cures(pixels).items():
        safe = name.replace(" ", "-").lower()
        runs = [
            trained(setting, f"overcomplete-{safe}", vision, epochs=setting.pick(30, 10), seed=seed)
            for seed in setting.seeds
        ]
        each = [measures(run, train, held) for run in runs]
        rows.append({"kept from copying by": name, **{key: over_seeds([m[key] for m in each]) for key in each[0]}})
        atoms[name] = strongest_atoms(runs[0], held)
    by_name = {row["kept from copying by"]: row for row in rows}
    free, l1, sparse = (by_name[name] for name in ("no penalty", "L1", "TopK"))
    return Finding(
        text=f"With {width_for(pixels):,} latents for {pixels} pixels and nothing against it, the autoencoder copies: "
        f"FVU {mean_of(free['FVU']):.4f}, and of noise on the input a share of {mean_of(free['noise kept']):.0%} comes "
        f"out again. The best single latent for a class tells it from the rest with "
        f"{mean_of(free['best latent']):.1%} (chance 50%). Trained to take the noise off, it lets "
        f"{mean_of(by_name['noise']['noise kept']):.0%} of it through, and the best single latent reaches "
        f"{mean_of(by_name['noise']['best latent']):.1%}; with {ACTIVE} latents an image, "
        f"{mean_of(l1['best latent']):.1%} (L1) and {mean_of(sparse['best latent']):.1%} (TopK).",
        numbers={"width": width_for(pixels), "pixels": pixels, "measured": by_name},
        tables=[rows],
        pictures=[
            Picture(
                draw_rows({name: diverging(found, held.shape) for name, found in atoms.items()}, held.shape),
                "Atoms of the latents with the largest mean value.",
            )
        ],
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
