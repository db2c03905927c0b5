"""The effect of a heavier divergence on latents: disentanglement against reconstruction, on dSprites-like images."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae.base import draws
from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained
from sae.book.chapter.measure import fvu, keyed, mean_of, over_seeds, reconstructed
from sae.book.measures.disentanglement import Trees, controls, disentanglement, mutual_information
from sae.book.pictures.latents import draw_traversals, typical
from sae.config import OptimConfig, VisionConfig
from sae.evaluation.variational import activity, bounds, moments
from sae.pictures.charts import draw_heatmap
from sae.pictures.lines import Curve, draw_lines
from sae.runs.images import ImageRun

BETAS = (0.5, 1.0, 2.0, 4.0)
USUAL_BETA, SHOWN_BETA = 1.0, 4.0  # the plain VAE and one of heavier divergence, which are compared
LATENTS = 6
STEPS = 9  # of a traversal


def dsprites_run(setting: Setting, variant: str, seed: int, beta: float | None = None, **settings: Any) -> ImageRun:
    """A variational autoencoder of few latents on the dSprites-like set."""
    vision = VisionConfig(variant=variant, width=LATENTS, beta=beta, hidden=(256, 128), **settings)
    return trained(
        setting,
        variant if beta is None else f"{variant}-{beta:g}",
        vision,
        data="dsprites?size=16",
        epochs=setting.pick(12, 1),
        limit=setting.pick(20_000, 2000),
        seed=seed,
        optim=OptimConfig(lr=2e-3, batch=64),
    )


class Unseen(NamedTuple):
    """Held-out images unlike all training images: at 16 x 16 different factors can give the same pixels."""

    x: Tensor
    """[n, D]"""
    values: Tensor
    """Of the factors, int64 [n, K]."""
    names: tuple[str, ...]
    copies: float
    """Share of the held-out images that were left out."""


def unseen(run: ImageRun, count: int) -> Unseen:
    """`count` unseen images, or as many as there are among twice as many."""
    images = run.images("heldout", limit=2 * count)
    positions = torch.arange(images.count)
    x = images.render(positions)
    training = {row.tobytes() for row in run.images("train").all().numpy()}
    new = torch.tensor([row.tobytes() not in training for row in x.numpy()])
    assert images.factor_values is not None
    assert images.factors is not None
    kept = positions[new][:count]
    return Unseen(x[kept], images.factor_values(kept), images.factors.names, 1 - new.double().mean().item())


def scored(run: ImageRun, heldout: Unseen, trees: Trees) -> dict[str, float]:
    """All scores of a run on held-out images, at the means of their codes; `trees` is DCI's."""
    mean, _ = moments(run.model, heldout.x)
    bound = bounds(run.model, run.vision, heldout.x, samples=0, generator=draws.generator(0))
    return {
        **_scores(mean, heldout.values, trees),
        "FVU": fvu(heldout.x, reconstructed(run, heldout.x)),
        "-log p(x|z) (nats)": bound.nll.mean().item(),
        "KL (nats)": bound.kl.mean().item(),
    }


def _scores(codes: Any, factors: Any, trees: Trees) -> dict[str, float]:
    scores = disentanglement(codes, factors, trees=trees)
    return {"DCI-D": scores.disentanglement, "MIG": scores.mig, "modularity": scores.modularity}


@experiment(
    "beta_sweep",
    rows=(12,),
    title="What a heavier divergence does to disentanglement and reconstruction",
    seeds="0 to 4 (0 alone with --quick)",
)
def beta_sweep(setting: Setting) -> Finding:
    """β-VAEs over seeds, and in the same table a VAE of constrained capacity and a β-TCVAE."""
    seeds, betas = setting.pick(range(5), range(1)), setting.pick(BETAS, BETAS[1::2])
    trees: Trees = "extra" if setting.quick else "boosted"
    models: dict[str, dict[str, Any]] = {
        **{named(beta): {"variant": "beta_vae", "beta": beta} for beta in betas},
        "capacity, 4 nats": {"variant": "capacity_vae", "capacity": 4.0, "gamma": 30.0},
        "β-TCVAE, β = 10": {"variant": "beta_tcvae", "beta": 10.0},
    }
    shown = dsprites_run(setting, "beta_vae", 0, SHOWN_BETA)
    heldout = unseen(shown, setting.pick(4000, 400))
    by_seed = {
        name: [scored(dsprites_run(setting, seed=seed, **settings), heldout, trees) for seed in seeds]
        for name, settings in models.items()
    }
    table = [
        {"model": name, **{column: over_seeds([one[column] for one in runs]) for column in runs[0]}}
        for name, runs in by_seed.items()
    ]
    means, _ = moments(shown.model, heldout.x)
    control_table = [
        {"model": name.replace("_", " "), **_scores(codes, factors, trees)}
        for name, (codes, factors) in controls(means, heldout.values).items()
    ]
    plain, heavy = named(USUAL_BETA), named(SHOWN_BETA)
    # a seed starts all its runs from the same weights, and seeds differ by more than β changes
    gains = {
        name: [high[name] - low[name] for high, low in zip(by_seed[heavy], by_seed[plain], strict=True)]
        for name in ("DCI-D", "MIG", "-log p(x|z) (nats)")
    }
    means_by_name = keyed(table, "model")
    risen = ", ".join(
        f"{name} {mean_of(means_by_name[plain][name]):.3f} to {mean_of(means_by_name[heavy][name]):.3f}, up in "
        f"{sum(gain > 0 for gain in each)} of {len(each)} seeds"
        for name, each in gains.items()
    )
    text = (
        f"From β = {USUAL_BETA:g} to {SHOWN_BETA:g} (means of {len(seeds)} seeds on 16 x 16 dSprites-like images): "
        f"{risen}. Measured on {len(heldout.x)} held-out images; {heldout.copies:.0%} were left out because a training "
        "image has the same pixels. Scores of true factors and of shuffled labels are their ceiling and floor."
    )
    curves = {
        column: Curve(list(betas), [row[column] for row in table[: len(betas)]])
        for column in ("DCI-D", "MIG", "modularity", "FVU")
    }
    picture = Picture(
        draw_lines(curves, "β", "score, or FVU", log_x=True),
        f"Scores and reconstruction error of held-out images against β, mean and 95% interval of {len(seeds)} seeds.",
    )
    numbers = {
        **keyed([*table, *control_table], "model"),
        "gained by a seed": {name: over_seeds(each) for name, each in gains.items()},
        "copies left out": heldout.copies,
    }
    return Finding(text, numbers, [table, control_table], [picture])


def named(beta: float) -> str:
    """A β-VAE's name in the tables."""
    return f"β-VAE, β = {beta:g}"


@experiment("traversals", rows=(12,), title="What single latents of a β-VAE mean", seeds="0")
def traversals(setting: Setting) -> Finding:
    """Every latent moved through the prior's range, by falling divergence, and its information about the factors."""
    run = dsprites_run(setting, "beta_vae", 0, SHOWN_BETA)
    heldout = unseen(run, setting.pick(4000, 600))
    mean, log_variance = moments(run.model, heldout.x)
    kl = activity(mean, log_variance).kl
    order = kl.argsort(descending=True).tolist()
    share = _shares(mean, heldout.values)[order]
    # the estimate for labels that were shuffled, where the truth is 0
    chance = _shares(*controls(mean, heldout.values)["shuffled_labels"]).max()
    names = [f"z {latent}: {kl[latent]:.2f} nats" for latent in order]
    values = torch.linspace(-2.5, 2.5, STEPS).repeat(len(order), 1)
    walk = draw_traversals(run.model, run.shape, mean[typical(mean)], order, values, names=names)
    factors = heldout.names
    table = [
        {"latent": f"z {latent}", "KL (nats)": kl[latent].item(), **dict(zip(factors, row, strict=True))}
        for latent, row in zip(order, share.tolist(), strict=True)
    ]
    best = [factors[int(row.argmax())] if row.max() > 2 * chance else "none" for row in share]
    numbers = {"kl": kl[order].tolist(), "best_factor": best, "share": share.tolist(), "share of shuffled": chance}
    text = (
        f"Sorted by their divergence, the latents have {', '.join(f'{value:.2f}' for value in kl[order].tolist())} "
        f"nats; the factors they tell most about are {', '.join(best)} (none: less than twice the largest share for "
        f"shuffled labels, {chance:.3f})."
    )
    heat = draw_heatmap(share, rows=names, columns=factors, label="information / entropy of the factor")
    pictures = [
        Picture(walk, "Rows: latents by falling divergence, each set to values from -2.5 to 2.5, all others fixed."),
        Picture(heat, "Mutual information of every latent with every factor, as a share of the factor's entropy."),
    ]
    return Finding(text, numbers, [table], pictures)


def _shares(codes: Any, factors: Any) -> np.ndarray:
    """Mutual information of every latent with every factor over the factor's entropy, [F, K]."""
    information = mutual_information(codes, factors)
    return information.matrix / information.entropies
