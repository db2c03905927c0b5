"""Posterior collapse: latents that carry nothing, and what brings them back."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from sae.chapter.base import Finding, Picture, Setting, experiment, trained
from sae.chapter.measure import fvu, mean_of, over_seeds, reconstructed, split_images
from sae.chapter.networks import HIDDEN, OPTIM
from sae.evaluation.variational import ACTIVE_VARIANCE, Activity, activity, moments
from sae.image_config import VisionConfig
from sae.image_runs import ImageRun
from sae.pictures.bars import draw_ranked

LATENTS = 32
FREE_BITS = 0.25
"""Nats a latent that cost nothing."""
WARMUP = 0.5
"""Share of the steps over which the divergence's weight rises."""
PLAIN = VisionConfig(variant="vae", width=LATENTS, hidden=HIDDEN)
CURES = {
    "as it is": PLAIN,
    "warm-up": dataclasses.replace(PLAIN, kl_warmup=WARMUP),
    "free bits": dataclasses.replace(PLAIN, free_bits=FREE_BITS),
}


@experiment("collapse", rows=(13,), title="Posterior collapse, and two cures")
def collapse(setting: Setting) -> Finding:
    """KL of every latent of the chapter's VAE, as it is, with a warm-up of the divergence, and with free bits."""
    _, held = split_images(setting.data)
    rows: list[dict[str, Any]] = []
    pictures = []
    for name, vision in CURES.items():
        folder = f"collapse-{name.replace(' ', '-')}"
        epochs = setting.pick(60, 30)
        runs = [trained(setting, folder, vision, epochs=epochs, optim=OPTIM, seed=seed) for seed in setting.seeds]
        found = [latents_of(run, held.x) for run in runs]
        rows.append(
            {
                "VAE": name,
                "active latents": over_seeds([float(a.active) for a in found]),
                "KL (nats)": over_seeds([a.kl.sum().item() for a in found]),
                "FVU": over_seeds([fvu(held.x, reconstructed(run, held.x)) for run in runs]),
            }
        )
        pictures.append(_bars(found[0], name))
    plain, warm, free = rows
    return Finding(
        text=f"Of {LATENTS} latents the VAE uses {mean_of(plain['active latents']):.1f} (variance of the mean over "
        f"{ACTIVE_VARIANCE}); the others stay at the prior. With the divergence's weight rising over the first half of "
        f"the steps it uses {mean_of(warm['active latents']):.1f}, with {FREE_BITS} nats a latent free of charge "
        f"{mean_of(free['active latents']):.1f}.",
        numbers={row["VAE"]: {name: value for name, value in row.items() if name != "VAE"} for row in rows},
        tables=[rows],
        pictures=pictures,
    )


def latents_of(run: ImageRun, x: torch.Tensor) -> Activity:
    """What the latents carry on images [n, D]."""
    with torch.no_grad():
        return activity(*moments(run.model, x))


def _bars(found: Activity, name: str) -> Picture:
    active = np.asarray(found.variance > ACTIVE_VARIANCE)
    figure = draw_ranked(
        found.kl.numpy(),
        label="KL (nats)",
        rank="latent, by its KL",
        marked=active,
        names=("active", "collapsed"),
        title=name,
    )
    return Picture(figure, f"Mean KL of every latent from the prior: {name}.", vector=True)
