"""Posterior collapse: latents that carry nothing, and what brings them back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained
from sae.book.chapter.measure import fvu, mean_of, over_seeds, reconstructed, split_images
from sae.book.chapter.networks import HIDDEN, OPTIM
from sae.book.pictures.bars import draw_ranked
from sae.config import VisionConfig
from sae.evaluation.variational import ACTIVE_VARIANCE, Activity, activity, moments
from sae.runs.images import ImageRun

LATENTS = 32
FREE_BITS = 0.25
"""Nats a latent that cost nothing."""
WARMUP = 0.5
"""Share of the steps over which the divergence's weight rises."""
CARRIES = 0.1
"""Nats of a latent's mean KL that are shown beside the active units: free bits above it are met at no cost, whether
the latent says anything of the image or not, so it does not tell whether they cure."""
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
                "active latents": over_seeds([float(a.active) for a in found]),
                f"over {CARRIES} nats": over_seeds([float((a.kl > CARRIES).sum()) for a in found]),
                "KL (nats)": over_seeds([a.kl.sum().item() for a in found]),
                "FVU": over_seeds([fvu(held.x, reconstructed(run, held.x)) for run in runs]),
            }
        )
        pictures.append(_bars(found[0], name))
    return Finding(
        text=collapse_said(rows),
        numbers={row["VAE"]: {name: value for name, value in row.items() if name != "VAE"} for row in rows},
        tables=[rows],
        pictures=pictures,
    )


def collapse_said(rows: Sequence[Mapping[str, Any]]) -> str:
    """Active units and error of the four cases, and what the two cures did to both."""
    active, carrying, left = (
        [mean_of(row[name]) for row in rows] for name in ("active latents", f"over {CARRIES} nats", "FVU")
    )
    lost = (
        f"the other {LATENTS - active[1]:.1f} stay where they are, whatever the image"
        if active[1] < active[0]
        else "no fewer"
    )
    cures = []
    for name, place in (("a weight that rises over the first half of the steps", 2), ("free bits", 3)):
        more, better = active[place] > active[1], left[place] < left[1]
        word = {(True, True): "helps", (False, False): "does not help"}.get((more, better), "helps by one of the two")
        cures.append(f"{name}: {active[place]:.1f} active, FVU {left[place]:.3f}, which {word}")
    free = f", which {FREE_BITS} free nats a latent may pass at no cost" if FREE_BITS > CARRIES else ""
    return (
        f"Of {LATENTS} latents the VAE has {active[0]:.1f} active (the variance of the mean over images is above "
        f"{ACTIVE_VARIANCE}) at FVU {left[0]:.3f}; with the divergence {STRONG:g} times as dear, {active[1]:.1f} at "
        f"{left[1]:.3f}: {lost}. Against that, {'; '.join(cures)}. Mean KLs of over {CARRIES} nats{free}, have "
        f"{carrying[0]:.1f}, {carrying[1]:.1f}, {carrying[2]:.1f} and {carrying[3]:.1f} latents."
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
