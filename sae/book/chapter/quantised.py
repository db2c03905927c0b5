"""A vector-quantised autoencoder: how much of its codebook is used, and what keeps it in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained
from sae.book.chapter.measure import fvu_of_runs, heldout, over_seeds, reconstructed, side
from sae.book.pictures.grids import draw_rows
from sae.config import OptimConfig, VisionConfig
from sae.evaluation.images import codebook_use
from sae.pictures.charts import draw_ranked

SHOWN = 12
USUAL = "moving averages, resets"
WAYS: dict[str, dict[str, Any]] = {
    USUAL: {},
    "moving averages": {"resets": False},
    "gradient, resets": {"momentum": 0.0},
    "gradient": {"momentum": 0.0, "resets": False},
}


@experiment("codebook", rows=(22,), title="What keeps a codebook in use")
def codebook(setting: Setting) -> Finding:
    """Perplexity of the codebook with and without moving averages, with and without resets of unused atoms."""
    seeds = setting.pick(setting.seeds, setting.seeds[:1])
    size: dict[str, Any] = {"width": setting.pick(128, 32), "channels": setting.pick((16, 32), (16,))}
    optim, epochs = OptimConfig(lr=2e-3, batch=64), setting.pick(20, 6)
    table, by_seed, pictures, first = [], {}, [], None
    for name, settings in WAYS.items():
        vision = VisionConfig(variant="vqvae", code_dim=16, **size, **settings)
        folder = "vqvae-" + name.replace(",", "").replace(" ", "-")
        runs = [trained(setting, folder, vision, epochs=epochs, seed=seed, optim=optim) for seed in seeds]
        first = first or runs[0]
        x = heldout(runs[0], 1000)
        use = [codebook_use(run, x) for run in runs]
        shares = [np.array(one["shares"]) for one in use]
        by_seed[name] = [one["perplexity"] for one in use]
        table.append(
            {
                "codebook learns by": name,
                "perplexity": over_seeds(by_seed[name]),
                "of": use[0]["atoms"],
                "atoms never used": over_seeds([float((share == 0).sum()) for share in shares]),
                "FVU": fvu_of_runs(runs, x),
            }
        )
        if name in (USUAL, "gradient"):
            figure = draw_ranked(shares[0], label="share of all places", rank=f"atom, by its use ({name})")
            pictures.append(Picture(figure, f"Use of the codebook's atoms on held-out images: {name}."))
    assert first is not None
    x = heldout(first, SHOWN)
    images = {"held-out": x, "reconstructed": reconstructed(first, x)}
    pictures.append(Picture(draw_rows(images, first.shape), "Held-out images through the codebook."))
    atoms, positions = table[0]["of"], first.model.positions
    text = (
        f"{use_said(by_seed, atoms)} An image of {x.shape[1]} pixels is {positions} atoms, at most "
        f"{positions * np.log2(atoms):.0f} bits."
    )
    numbers = {"perplexity": {row["codebook learns by"]: row["perplexity"] for row in table}, "atoms": atoms}
    return Finding(text, numbers, [table], pictures)


def use_said(perplexity: Mapping[str, Sequence[float]], atoms: int) -> str:
    """Perplexities of all four ways, and the effect of each choice with the other fixed, from values by seed."""
    both, averages, resets, neither = (np.array(perplexity[name]) for name in WAYS)
    by_resets, by_averages = (both - averages, resets - neither), (both - resets, averages - neither)
    gain = {
        "resets": np.mean(by_resets, axis=0),
        "moving averages in place of the gradient": np.mean(by_averages, axis=0),
    }
    better = sorted(
        (name for name in gain if side(over_seeds(gain[name].tolist())) > 0), key=lambda name: -gain[name].mean()
    )
    return (
        f"Perplexity of a codebook of {atoms} atoms on held-out images: with resets {both.mean():.1f} by moving "
        f"averages and {resets.mean():.1f} by gradient, without resets {averages.mean():.1f} and {neither.mean():.1f}. "
        f"Resets change it by {by_resets[0].mean():+.1f} (averages) and {by_resets[1].mean():+.1f} (gradient), moving "
        f"averages by {by_averages[0].mean():+.1f} (with resets) and {by_averages[1].mean():+.1f} (without). What "
        "keeps more of the codebook in use, on average over the other choice: "
        f"{', then '.join(better) or 'neither, significantly'}."
    )
