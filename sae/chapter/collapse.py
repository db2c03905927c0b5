"""Posterior collapse: latents that carry nothing, and what brings them back."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from sae.chapter.base import Finding, Picture, Setting, experiment, trained
from sae.chapter.measure import fvu, mean_of, over_seeds, reconstructed, split_images
from sae.chapter.networks import HIDDEN, OPTIM
from sae.evaluation.variational import Activity, activity, moments
from sae.image_config import VisionConfig
from sae.image_runs import ImageRun
from sae.pictures.bars import draw_ranked

LATENTS = 32
FREE_BITS = 0.25
"""Nats a latent that cost nothing."""
WARMUP = 0.5
"""Share of the steps over which the divergence's weight rises."""
CARRIES = 0.1
"""Nats of a latent's mean KL from which on it is said to carry something. The variance of the mean that the literature
looks at (.01) is passed by latents that only tremble."""
STRONG = 4.0
"""Weight of the divergence under which most latents give up."""
USUAL = VisionConfig(variant="vae", width=LATENTS, hidden=HIDDEN)
COLLAPSED = dataclasses.replace(USUAL, variant="beta_vae", beta=STRONG)
CASES = {
    "β = 1": USUAL,
    f"β = {STRONG:g}": COLLAPSED,
    f"β = {STRONG:g}, warm-up": dataclasses.replace(COLLAPSED, kl_warmup=WARMUP),
    f"β = {STRONG:g}, free bits": dataclasses.replace(COLLAPSED, free_bits=FREE_BITS),
}
FOLDERS = ("usual", "collapsed", "warm-up", "free-bits")


@experiment("collapse", rows=(13,), title="Posterior collapse, and what is done against it")
def collapse(setting: Setting) -> Finding:
    """KL of every latent under a strong divergence, as it is, with a warm-up of its weight, and with free bits."""
    _, held = split_images(setting.data)
    rows: list[dict[str, Any]] = []
    pictures = []
    for folder, (name, vision) in zip(FOLDERS, CASES.items(), strict=True):
        epochs = setting.pick(60, 30)
        run_name = f"collapse-{folder}"
        runs = [trained(setting, run_name, vision, epochs=epochs, optim=OPTIM, seed=seed) for seed in setting.seeds]
        found = [latents_of(run, held.x) for run in runs]
        rows.append(
            {
                "VAE": name,
                f"over {CARRIES} nats": over_seeds([float((a.kl > CARRIES).sum()) for a in found]),
                "active latents": over_seeds([float(a.active) for a in found]),
                "KL (nats)": over_seeds([a.kl.sum().item() for a in found]),
                "FVU": over_seeds([fvu(held.x, reconstructed(run, held.x)) for run in runs]),
            }
        )
        pictures.append(_bars(found[0], name))
    usual, collapsed, warm, free = (mean_of(row[f"over {CARRIES} nats"]) for row in rows)
    return Finding(
        text=f"Of {LATENTS} latents the VAE uses {usual:.1f} (a mean KL of over {CARRIES} nats); with the "
        f"divergence {STRONG:g} times as dear, {collapsed:.1f}: the others stay at the prior, whatever the image. "
        f"With the weight rising over the first half of the steps it uses {warm:.1f}, with "
        f"{FREE_BITS} nats a latent free of charge {free:.1f}.",
        numbers={row["VAE"]: {name: value for name, value in row.items() if name != "VAE"} for row in rows},
        tables=[rows],
        pictures=pictures,
    )


def latents_of(run: ImageRun, x: torch.Tensor) -> Activity:
    """What the latents carry on images [n, D]."""
    with torch.no_grad():
        return activity(*moments(run.model, x))


def _bars(found: Activity, name: str) -> Picture:
    carrying = np.asarray(found.kl > CARRIES)
    figure = draw_ranked(
        found.kl.numpy(),
        label="KL (nats)",
        rank="latent, by its KL",
        marked=carrying,
        names=(f"over {CARRIES} nats", "collapsed"),
        title=name,
    )
    return Picture(figure, f"Mean KL of every latent from the prior: {name}.", vector=True)
