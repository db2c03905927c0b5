"""A vector-quantised autoencoder: how much of its codebook is used, and what keeps it in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained
from sae.book.chapter.measure import fvu, over_seeds, reconstructed, side
from sae.book.chapter.variational_models import heldout
from sae.book.pictures.bars import draw_ranked
from sae.book.pictures.grids import draw_rows
from sae.config import OptimConfig, VisionConfig
from sae.evaluation.images import codebook_use
from sae.runs.images import ImageRun

SHOWN = 12
WAYS: dict[str, dict[str, Any]] = {
    "moving averages, resets": {},
    "moving averages": {"resets": False},
    "gradient, resets": {"momentum": 0.0},
    "gradient": {"momentum": 0.0, "resets": False},
}


def quantised_run(setting: Setting, name: str, seed: int, **settings: Any) -> ImageRun:
    """A VQ-VAE with a small convolutional network."""
    channels = setting.pick((16, 32), (16,))
    atoms = setting.pick(128, 32)
    vision = VisionConfig(variant="vqvae", width=atoms, code_dim=16, channels=channels, **settings)
    safe = "vqvae-" + name.replace(",", "").replace(" ", "-")
    return trained(setting, safe, vision, epochs=setting.pick(20, 6), seed=seed, optim=OptimConfig(lr=2e-3, batch=64))


@experiment("codebook", rows=(22,), title="What keeps a codebook in use")
def codebook(setting: Setting) -> Finding:
    """Perplexity of the codebook with and without moving averages, with and without resets of forgotten atoms."""
    seeds = setting.pick(setting.seeds, setting.seeds[:1])
    table, shares, by_seed = [], {}, {}
    for name, settings in WAYS.items():
        runs = [quantised_run(setting, name, seed, **settings) for seed in seeds]
        x = heldout(runs[0], 1000)
        use = [codebook_use(run, x) for run in runs]
        by_seed[name] = [one["perplexity"] for one in use]
        shares[name] = np.array(use[0]["shares"])
        table.append(
            {
                "codebook learns by": name,
                "perplexity": over_seeds(by_seed[name]),
                "of": use[0]["atoms"],
                "atoms never used": over_seeds([float((np.array(one["shares"]) == 0).sum()) for one in use]),
                "FVU": over_seeds([fvu(x, reconstructed(run, x)) for run in runs]),
            }
        )
    perplexity = {str(row["codebook learns by"]): row["perplexity"] for row in table}
    atoms = table[0]["of"]
    run = quantised_run(setting, "moving averages, resets", seeds[0])
    x = heldout(run, SHOWN)
    text = (
        f"{use_said(by_seed, atoms)} An image of {x.shape[1]} pixels is "
        f"{run.model.positions} atoms, at most {run.model.positions * np.log2(atoms):.0f} bits."
    )
    shown = [
        Picture(
            draw_ranked(share, label="share of all places", rank=f"atom, by its use ({name})"),
            f"Use of the codebook's atoms on held-out images: {name}.",
            vector=True,
        )
        for name, share in shares.items()
        if name in ("moving averages, resets", "gradient")
    ]
    rows = {"held-out": x, "reconstructed": reconstructed(run, x)}
    shown.append(Picture(draw_rows(rows, run.shape), "Held-out images through the codebook."))
    return Finding(text, {"perplexity": perplexity, "atoms": atoms}, [table], shown)


def use_said(perplexity: Mapping[str, Sequence[float]], atoms: int) -> str:
    """All four ways by seed, and what each half of them is worth where the other stays as it is."""
    both, averages, resets, neither = (np.array(perplexity[name]) for name in WAYS)
    by_resets, by_averages = (both - averages, resets - neither), (both - resets, averages - neither)
    gain = {
        "resets": np.mean(by_resets, axis=0),
        "moving averages in place of the gradient": np.mean(by_averages, axis=0),
    }
    keeps = sorted(
        (name for name in gain if side(over_seeds(gain[name].tolist())) > 0), key=lambda name: -gain[name].mean()
    )
    return (
        f"Held-out images use a codebook of {atoms} as evenly as if so many atoms were in use: with resets "
        f"{both.mean():.1f} by moving averages and {resets.mean():.1f} by gradient, without resets "
        f"{averages.mean():.1f} and {neither.mean():.1f}. Resets change that by {by_resets[0].mean():+.1f} (averages) "
        f"and {by_resets[1].mean():+.1f} (gradient), moving averages by {by_averages[0].mean():+.1f} (with resets) and "
        f"{by_averages[1].mean():+.1f} (without). What keeps more of it in use, on average over the other choice: "
        f"{', then '.join(keeps) or 'neither, that the seeds show'}."
    )
