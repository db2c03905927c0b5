"""What a variational loss bounds: the textbook's squared error + KL, and the importance-weighted bound."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sae.base import draws
from sae.book.chapter.base import Finding, Picture, Setting, experiment
from sae.book.chapter.measure import mean_of, over_seeds
from sae.book.chapter.networks import heldout, vae
from sae.book.pictures.lines import Curve, draw_lines
from sae.evaluation.bootstrap import GroupSums, Interval, ratio
from sae.evaluation.variational import bounds
from sae.runs.images import ImageRun
from sae.training.logging import read_metrics

DRAWS = (1, 5, 64, 512)
RESAMPLES = 1000


@experiment("importance_weighted", rows=(11,), title="What more draws do to the bound on the likelihood")
def importance_weighted(setting: Setting) -> Finding:
    """The bound with more and more draws, by seed and over seeds, with intervals over held-out images."""
    ks = setting.pick(DRAWS, DRAWS[:3])
    seeds = setting.pick(setting.seeds, setting.seeds[:2])
    rows, table = [], []
    for seed in seeds:
        run = vae(setting, seed)
        rows.append(_by_draws(run, heldout(run, setting.pick(1000, 100)), ks))
        table.append({"seed": seed, **{_column(name): interval for name, interval in rows[-1].items()}})
    names = list(rows[0])
    mean = {name: over_seeds([row[name].value for row in rows]) for name in names}
    table.append({"seed": "mean over seeds", **{_column(name): mean[name] for name in names}})
    rises = {name: interval for name, interval in rows[0].items() if name.startswith("rise")}
    every = [row[name] for row in rows for name in rises]
    numbers = {
        **{name: mean[name] for name in names if name not in rises},
        "rises": rises,
        "certain": sum(rise.low >= 0 for rise in every),
        "falls": sum(rise.high < 0 for rise in every),
    }
    last = ks[-1]
    text = (
        f"The ELBO of held-out images is {mean_of(mean['elbo']):.2f} nats (mean over {len(rows)} seeds); with 1 draw "
        f"the bound is {mean_of(mean['k1']):.2f}, with {last} {mean_of(mean[f'k{last}']):.2f}. "
        f"{rises_said(every)}"
    )
    curves = {f"seed {seed}": Curve(ks, [row[f"k{k}"] for k in ks]) for seed, row in zip(seeds, rows, strict=True)}
    picture = Picture(
        draw_lines(curves, "draws an image, K", "bound on log p(x) (nats an image)", log_x=True),
        "Importance-weighted bound of held-out images against the number of draws, 95% intervals over images.",
    )
    return Finding(text, numbers, [table], [picture])


def rises_said(rises: Sequence[Interval]) -> str:
    """How often the bound rose from one K to the next, by 95% intervals over images."""
    up, down = sum(rise.low >= 0 for rise in rises), sum(rise.high < 0 for rise in rises)
    least = min(rises, key=lambda rise: rise.low)
    return (
        f"From one K to the next the bound rose in {up} of {len(rises)} steps and fell in {down} (95% intervals over "
        f"images on one side of zero); the step with the lowest interval is {least.value:+.2f} nats "
        f"[{least.low:.2f}, {least.high:.2f}]."
    )


def _column(name: str) -> str:
    return {"elbo": "ELBO"}.get(name, f"K = {name[1:]}" if name[0] == "k" else name)


def _by_draws(run: ImageRun, x: Tensor, ks: tuple[int, ...]) -> dict[str, Interval]:
    """ELBO, the bound for every K, and its rise from one K to the next, with intervals over images."""
    values = {"elbo": bounds(run.model, run.vision, x, samples=0, generator=draws.generator(0)).elbo}
    for k in ks:
        importance = bounds(run.model, run.vision, x, samples=k, generator=draws.generator(k)).importance
        assert importance is not None
        values[f"k{k}"] = importance
    for low, high in zip(ks[:-1], ks[1:], strict=True):
        values[f"rise {low} to {high}"] = values[f"k{high}"] - values[f"k{low}"]
    sums = GroupSums()
    sums.add(torch.arange(len(x)), {**values, "count": torch.ones(len(x))})
    intervals = {name: sums.interval(ratio(name, "count"), resamples=RESAMPLES, seed=0) for name in values}
    return {name: interval for name, interval in intervals.items() if interval is not None}


@experiment("squared_error_and_kl", rows=(10,), title="Squared error + KL is a Gaussian of variance 1/2", seeds="0")
def squared_error_and_kl(setting: Setting) -> Finding:
    """Two runs, one by the textbook's loss and one by the Gaussian likelihood: one network, losses a constant apart."""
    textbook = vae(setting, likelihood="squared_error")
    gaussian = vae(setting, likelihood="gaussian", variance=0.5)
    constant = 0.5 * math.prod(textbook.shape) * math.log(math.pi)
    rows = [
        {
            "step": one["step"],
            "squared error": one["parts"]["squared_error"],
            "KL": one["parts"]["gaussian_kl"],
            "squared error + KL": one["loss"],
            "Gaussian nll + KL": other["loss"],
            "difference": other["loss"] - one["loss"],
            "D/2 ln π": constant,
        }
        for one, other in zip(read_metrics(textbook.folder), read_metrics(gaussian.folder), strict=True)
    ]
    off = max(abs(row["difference"] - constant) for row in rows)
    pairs = zip(textbook.model.parameters(), gaussian.model.parameters(), strict=True)
    apart = max((a - b).abs().max().item() for a, b in pairs)
    numbers = {"constant": constant, "largest_loss_difference": off, "largest_weight_difference": apart}
    text = (
        f"The textbook's loss, ||x - x̂||² + KL, is the negative ELBO of a Gaussian of variance 1/2 less D/2 ln π = "
        f"{constant:.2f} nats. The logged losses of the two runs differ by that constant up to {off:.0e} nats, and "
        f"after {textbook.config.epochs} epochs from one seed no weight differs by more than {apart:.0e}."
    )
    return Finding(text, numbers, [rows[-5:]])
