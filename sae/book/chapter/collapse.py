"""Posterior collapse: latents that carry no information, and remedies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained_by_seed
from sae.book.chapter.measure import HIDDEN, OPTIM, fvu_of_runs, keyed, mean_of, over_seeds, split_images
from sae.config import VisionConfig
from sae.evaluation.variational import ACTIVE_VARIANCE, activity, moments
from sae.pictures.charts import draw_activity

LATENTS = 32
FREE_BITS = 0.25
"""Nats of KL a latent without a penalty."""
WARMUP = 0.5
"""Share of the steps over which the divergence's weight rises."""
CARRIES = 0.1
"""Nats of mean KL above which latents are counted, beside the active units. Latents have as many nats as free bits
allow, whether they depend on the image or not: this count does not tell whether free bits are a remedy."""
STRONG = 4.0
"""Weight of the divergence under which most latents collapse."""
USUAL = VisionConfig(variant="vae", width=LATENTS, hidden=HIDDEN)
COLLAPSED = dataclasses.replace(USUAL, variant="beta_vae", beta=STRONG)
CASES = {
    "usual": ("β = 1", USUAL),
    "collapsed": (f"β = {STRONG:g}", COLLAPSED),
    "warm-up": (f"β = {STRONG:g}, warm-up", dataclasses.replace(COLLAPSED, kl_warmup=WARMUP)),
    "free-bits": (f"β = {STRONG:g}, free bits", dataclasses.replace(COLLAPSED, free_bits=FREE_BITS)),
}
"""By run folder: name and settings."""


@experiment("collapse", rows=(13,), title="Posterior collapse, and what is done against it")
def collapse(setting: Setting) -> Finding:
    """KL of every latent under a strong divergence: without a remedy, with a warm-up of its weight, with free bits."""
    _, heldout = split_images(setting.data)
    rows: list[dict[str, Any]] = []
    pictures = []
    for folder, (name, vision) in CASES.items():
        runs = trained_by_seed(setting, f"collapse-{folder}", vision, epochs=setting.pick(60, 30), optim=OPTIM)
        latents = [activity(*moments(run.model, heldout.x)) for run in runs]
        rows.append(
            {
                "VAE": name,
                "active latents": over_seeds([float(a.active) for a in latents]),
                f"over {CARRIES} nats": over_seeds([float((a.kl > CARRIES).sum()) for a in latents]),
                "KL (nats)": over_seeds([a.kl.sum().item() for a in latents]),
                "FVU": fvu_of_runs(runs, heldout.x),
            }
        )
        figure = draw_activity(latents[0], title=name)
        pictures.append(Picture(figure, f"Mean KL of every latent from the prior: {name}."))
    return Finding(collapse_said(rows), keyed(rows, "VAE"), [rows], pictures)


def collapse_said(rows: Sequence[Mapping[str, Any]]) -> str:
    """Active units and error of the four cases, and the effect of the two remedies on both."""
    active, carrying, error = (
        [mean_of(row[name]) for row in rows] for name in ("active latents", f"over {CARRIES} nats", "FVU")
    )
    lost = (
        f"the means of the other {LATENTS - active[1]:.1f} are the same for all images"
        if active[1] < active[0]
        else "no fewer"
    )
    remedies = []
    for name, i in (("a weight that rises over the first half of the steps", 2), ("free bits", 3)):
        helps = (active[i] > active[1]) + (error[i] < error[1])
        word = ("does not help", "helps by one of the two", "helps")[helps]
        remedies.append(f"{name}: {active[i]:.1f} active, FVU {error[i]:.3f}, which {word}")
    free = f" (of which {FREE_BITS} are free a latent)" if FREE_BITS > CARRIES else ""
    return (
        f"Of {LATENTS} latents the VAE has {active[0]:.1f} active (the variance of the mean over images is above "
        f"{ACTIVE_VARIANCE}) at FVU {error[0]:.3f}; with {STRONG:g} times the weight of the divergence {active[1]:.1f} "
        f"at {error[1]:.3f}: {lost}. Remedies: {'; '.join(remedies)}. Latents with a mean KL of over {CARRIES} "
        f"nats{free}: {carrying[0]:.1f}, {carrying[1]:.1f}, {carrying[2]:.1f} and {carrying[3]:.1f}."
    )
