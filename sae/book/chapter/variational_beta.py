"""A heavier divergence and what it does to latents: disentanglement against reconstruction, on dSprites-like images."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae.base import draws
from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained
from sae.book.chapter.measure import fvu, mean_of, over_seeds, reconstructed
from sae.book.measures.disentanglement import Disentanglement, Trees, controls, disentanglement, mutual_information
from sae.book.pictures.charts import draw_heatmap
from sae.book.pictures.latents import draw_traversals, typical
from sae.book.pictures.lines import Curve, draw_lines
from sae.config import OptimConfig, VisionConfig
from sae.evaluation.variational import activity, bounds, moments
from sae.runs.images import ImageRun

BETAS = (0.5, 1.0, 2.0, 4.0)
USUAL_BETA, SHOWN_BETA = 1.0, 4.0  # the plain VAE, and a heavier divergence: the two that are compared
LATENTS = 6
STEPS = 9  # of a traversal


class Scored(NamedTuple):
    """One run on held-out images."""

    scores: Disentanglement
    fvu: float
    nll: float
    """Nats an image."""
    kl: float
    """Nats an image."""

    def numbers(self) -> dict[str, float]:
        """What the tables show."""
        return {
            "DCI-D": self.scores.disentanglement,
            "MIG": self.scores.mig,
            "modularity": self.scores.modularity,
            "FVU": self.fvu,
            "-log p(x|z) (nats)": self.nll,
            "KL (nats)": self.kl,
        }


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
    """Held-out images that no training image is a copy of: at 16 x 16 different factors can give the same pixels."""

    x: Tensor
    """[n, D]"""
    values: Tensor
    """Of the factors, int64 [n, K]."""
    names: tuple[str, ...]
    copies: float
    """Share of the held-out images that were left out."""


def unseen(run: ImageRun, count: int) -> Unseen:
    """So many of them, or as many as there are among twice as many."""
    images = run.images("heldout", limit=2 * count)
    positions = torch.arange(images.count)
    x = images.render(positions)
    known = {row.tobytes() for row in run.images("train").all().numpy()}
    new = torch.tensor([row.tobytes() not in known for row in x.numpy()])
    assert images.factor_values is not None
    assert images.factors is not None
    chosen = positions[new][:count]
    return Unseen(x[chosen], images.factor_values(chosen), images.factors.names, 1 - new.double().mean().item())


def scored(run: ImageRun, held: Unseen, trees: Trees = "boosted") -> Scored:
    """All scores of a run on held-out images, at the means of their codes; `trees` is DCI's."""
    x = held.x
    mean, _ = moments(run.model, x)
    bound = bounds(run.model, run.vision, x, samples=0, generator=draws.generator(0))
    return Scored(
        disentanglement(mean, held.values, trees=trees),
        fvu(x, reconstructed(run, x)),
        bound.nll.mean().item(),
        bound.kl.mean().item(),
    )


def rows_of(found: dict[str, list[Scored]]) -> list[dict[str, Any]]:
    """A row of means over seeds for every name."""
    names = list(next(iter(found.values()))[0].numbers())
    return [
        {"model": name, **{column: over_seeds([one.numbers()[column] for one in runs]) for column in names}}
        for name, runs in found.items()
    ]


@experiment(
    "beta_sweep",
    rows=(12,),
    title="What a heavier divergence does to disentanglement and reconstruction",
    seeds="0 to 4 (0 alone with --quick)",
)
def beta_sweep(setting: Setting) -> Finding:
    """β-VAEs over seeds, with a capacity-held and a total-correlation one in the same table."""
    seeds, betas = setting.pick(range(5), range(1)), setting.pick(BETAS, BETAS[1::2])
    count = setting.pick(4000, 400)
    trees: Trees = "extra" if setting.quick else "boosted"
    models: dict[str, dict[str, Any]] = {
        **{named(beta): {"variant": "beta_vae", "beta": beta} for beta in betas},
        "capacity, 4 nats": {"variant": "capacity_vae", "capacity": 4.0, "gamma": 30.0},
        "β-TCVAE, β = 10": {"variant": "beta_tcvae", "beta": 10.0},
    }
    shown = dsprites_run(setting, "beta_vae", 0, SHOWN_BETA)
    held = unseen(shown, count)
    found = {
        name: [scored(dsprites_run(setting, seed=seed, **settings), held, trees) for seed in seeds]
        for name, settings in models.items()
    }
    table = rows_of(found)
    controls = control_rows(shown, held, trees)
    swept = table[: len(betas)]
    curves = {
        column: Curve(list(betas), [row[column] for row in swept]) for column in ("DCI-D", "MIG", "modularity", "FVU")
    }
    plain, heavy = (next(row for row in swept if row["model"] == named(beta)) for beta in (USUAL_BETA, SHOWN_BETA))
    pairs = list(zip(found[heavy["model"]], found[plain["model"]], strict=True))
    gains = {
        "DCI-D": [high.scores.disentanglement - low.scores.disentanglement for high, low in pairs],
        "MIG": [high.scores.mig - low.scores.mig for high, low in pairs],
        "-log p(x|z) (nats)": [high.nll - low.nll for high, low in pairs],
    }
    # a seed starts all its runs from the same weights, and differs from other seeds by more than β does
    risen = ", ".join(
        f"{name} {mean_of(plain[name]):.3f} to {mean_of(heavy[name]):.3f}, up in {sum(gain > 0 for gain in each)} of "
        f"{len(each)} seeds"
        for name, each in gains.items()
    )
    text = (
        f"From β = {USUAL_BETA:g} to {SHOWN_BETA:g} (means of {len(seeds)} seeds on 16 x 16 dSprites-like images): "
        f"{risen}. Measured on {len(held.x)} held-out images; {held.copies:.0%} were left out, whose pixels a training "
        "image shares. "
        "Scores of true factors and of shuffled labels are their ceiling and floor."
    )
    picture = Picture(
        draw_lines(curves, "β", "score, or FVU", log_x=True),
        f"Scores and reconstruction error of held-out images against β, mean and 95% interval of {len(seeds)} seeds.",
        vector=True,
    )
    numbers: dict[str, Any] = {
        str(row["model"]): {k: v for k, v in row.items() if k != "model"} for row in [*table, *controls]
    }
    numbers["gained by a seed"] = {name: over_seeds(each) for name, each in gains.items()}
    numbers["copies left out"] = held.copies
    return Finding(text, numbers, [table, controls], [picture])


def named(beta: float) -> str:
    """A β-VAE's name in the tables."""
    return f"β-VAE, β = {beta:g}"


def control_rows(run: ImageRun, held: Unseen, trees: Trees) -> list[dict[str, Any]]:
    """The ceiling and the floor of the scores."""
    mean, _ = moments(run.model, held.x)
    rows = []
    for name, (codes, factors) in controls(mean, held.values).items():
        found = disentanglement(codes, factors, trees=trees)
        scores = {"DCI-D": found.disentanglement, "MIG": found.mig, "modularity": found.modularity}
        rows.append({"model": name.replace("_", " "), **scores})
    return rows


@experiment("traversals", rows=(12,), title="What single latents of a β-VAE mean", seeds="0")
def traversals(setting: Setting) -> Finding:
    """Every latent moved through the prior's range, by falling divergence, and what each tells of the factors."""
    run = dsprites_run(setting, "beta_vae", 0, SHOWN_BETA)
    held = unseen(run, setting.pick(4000, 600))
    mean, log_variance = moments(run.model, held.x)
    kl = activity(mean, log_variance).kl
    order = kl.argsort(descending=True).tolist()
    share = _shares(mean, held.values)[order]
    # what a latent tells of labels that were shuffled is what the estimate gives for nothing
    nothing = _shares(*controls(mean, held.values)["shuffled_labels"]).max()
    names = [f"z {latent}: {kl[latent]:.2f} nats" for latent in order]
    values = torch.linspace(-2.5, 2.5, STEPS).repeat(len(order), 1)
    walk = draw_traversals(run.model, run.shape, mean[typical(mean)], order, values, names=names)
    factors = held.names
    table = [
        {"latent": f"z {latent}", "KL (nats)": kl[latent].item(), **dict(zip(factors, row, strict=True))}
        for latent, row in zip(order, share.tolist(), strict=True)
    ]
    best = [factors[int(row.argmax())] if row.max() > 2 * nothing else "none" for row in share]
    numbers = {"kl": kl[order].tolist(), "best_factor": best, "share": share.tolist(), "share of shuffled": nothing}
    text = (
        f"Sorted by their divergence, the latents carry {', '.join(f'{value:.2f}' for value in kl[order].tolist())} "
        f"nats; the factors that they tell most of are {', '.join(best)} (none: less than twice the largest share that "
        f"shuffled labels give, {nothing:.3f})."
    )
    heat = draw_heatmap(share, rows=names, columns=factors, label="information / entropy of the factor")
    shown = [
        Picture(walk, "Rows: latents by falling divergence, each set to values from -2.5 to 2.5, all others held."),
        Picture(heat, "Mutual information of every latent with every factor, as a share of the factor's entropy."),
    ]
    return Finding(text, numbers, [table], shown)


def _shares(codes: Any, factors: Any) -> np.ndarray:
    """Mutual information of every latent with every factor over the factor's entropy, [F, K]."""
    found = mutual_information(codes, factors)
    return found.matrix / found.entropies
