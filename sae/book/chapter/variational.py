"""The reparameterised draw and the bound: divergence in closed form, gradient by finite differences, and its variance.

What a variational loss bounds: the textbook's squared error + KL, and the importance-weighted bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sae.base import draws
from sae.book.chapter.base import Finding, Picture, Setting, experiment
from sae.book.chapter.measure import heldout, mean_of, over_seeds, vae
from sae.config import VisionConfig
from sae.evaluation.bootstrap import GroupSums, Interval, ratio
from sae.evaluation.variational import bounds, gaussian_code, moments, nll_at
from sae.models.autoencoder import Autoencoder
from sae.modules.divergences import gaussian_log_density, kl_per_latent
from sae.pictures.charts import draw_bars, draw_scatter
from sae.pictures.lines import Curve, draw_lines
from sae.runs.images import ImageRun
from sae.runs.metrics import read_metrics
from sae_kernels import SparseCodes

KL_DRAWS, NOISE, GRADIENT = range(3)  # keys of the random streams
DRAWS = (1, 5, 64, 512)
RESAMPLES = 1000


class KLCheck(NamedTuple):
    """KL(q(z|x) || N(0, 1)) of every image [N], nats, two ways."""

    closed: Tensor
    """-½ Σ 1 + log σ² - μ² - σ²."""
    estimate: Tensor
    """Mean of log q(z|x) - log p(z) over draws."""
    error: Tensor
    """Standard error of the estimate."""

    @property
    def scores(self) -> Tensor:
        """The difference in standard errors [N]: standard normal if the two are equal."""
        return (self.estimate - self.closed) / self.error


class GradientCheck(NamedTuple):
    """Gradient of nll + KL by the encoder's outputs (means, log-variances) of every image [N, 2 F]."""

    automatic: Tensor
    """Through the draw z = μ + σ ε, for fixed ε."""
    differences: Tensor
    """By central differences."""

    @property
    def error(self) -> float:
        """RMS of the difference over RMS of the gradient."""
        return ((self.automatic - self.differences).norm() / self.automatic.norm()).item()


@torch.no_grad()
def check_kl(model: Autoencoder, x: Tensor, *, draws: int, generator: torch.Generator) -> KLCheck:
    """The closed form beside Monte Carlo with `draws` draws, as training makes them, for images x [N, D]."""
    mean, log_variance = moments(model, x)
    listed = model.select(model.embed(x))
    zero = torch.zeros(())
    total, squares = (torch.zeros(len(x), dtype=torch.float64) for _ in range(2))
    for _ in range(draws):
        z = model.code.sample(listed, generator).values
        ratio = gaussian_log_density(z, mean, log_variance) - gaussian_log_density(z, zero, zero)
        total += ratio.sum(1).double()
        squares += ratio.sum(1).double().square()
    average = total / draws
    spread = (squares / draws - average.square()).clamp_min(0) * draws / (draws - 1)
    return KLCheck(kl_per_latent(mean, log_variance).sum(1).double(), average, (spread / draws).sqrt())


def check_gradient(
    model: Autoencoder, config: VisionConfig, x: Tensor, *, seed: int, step: float = 0.005
) -> GradientCheck:
    """The gradient through the draw beside central differences of width 2 `step`, with the same noise throughout."""
    with torch.no_grad():
        start = model.select(model.embed(x)).values

    def loss(outputs: Tensor) -> Tensor:
        listed = SparseCodes.dense(outputs)
        z = model.code.sample(listed, draws.generator(seed, NOISE)).values
        return nll_at(model, config, z, x) + kl_per_latent(*gaussian_code(model).moments(listed)).sum(1)

    outputs = start.clone().requires_grad_()
    (automatic,) = torch.autograd.grad(loss(outputs).sum(), outputs)
    differences = torch.empty_like(start)
    with torch.no_grad():
        for column in range(start.shape[1]):
            shift = torch.zeros_like(start)
            shift[:, column] = step
            differences[:, column] = (loss(start + shift) - loss(start - shift)) / (2 * step)
    return GradientCheck(automatic, differences)


def gradient_estimates(
    model: Autoencoder, config: VisionConfig, x: Tensor, *, samples: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """One-draw estimates of the gradient of E_q[-log p(x|z)] by (μ, log σ²), one image x [D]: [samples, 2 F] each.

    pathwise: through z = μ + σ ε (Kingma & Welling 2014). score function: nll · ∇ log q(z|x) (Williams 1992); with a
    baseline: nll less its mean over the other draws, which does not change the expectation (Mnih & Rezende 2016).
    """
    with torch.no_grad():
        start = model.select(model.embed(x.unsqueeze(0))).values
    outputs = start.expand(samples, -1).clone().requires_grad_()
    listed = SparseCodes.dense(outputs)
    z = model.code.sample(listed, generator).values
    nll = nll_at(model, config, z, x.expand(samples, -1))
    (pathwise,) = torch.autograd.grad(nll.sum(), outputs, retain_graph=True)
    mean, log_variance = gaussian_code(model).moments(listed)
    log_q = gaussian_log_density(z.detach(), mean, log_variance).sum()
    (score,) = torch.autograd.grad(log_q, outputs)
    weight = nll.detach().unsqueeze(1)
    others = (weight.sum() - weight) / (samples - 1)
    return {"pathwise": pathwise, "score function": weight * score, "score, baseline": (weight - others) * score}


@experiment(
    "reparameterisation", rows=(9,), title="The reparameterised draw: exact KL and gradients, little noise", seeds="0"
)
def reparameterisation(setting: Setting) -> Finding:
    """Closed form against Monte Carlo, automatic against finite differences, pathwise against score function."""
    run = vae(setting)
    model, config = run.model, run.vision
    x = heldout(run, 64)
    kl = check_kl(model, x, draws=setting.pick(10_000, 500), generator=draws.generator(0, KL_DRAWS))
    gradient = check_gradient(model, config, x[:16], seed=0)
    samples, images = setting.pick((4000, 16), (500, 4))
    estimates = [
        gradient_estimates(model, config, x[i], samples=samples, generator=draws.generator(i, GRADIENT))
        for i in range(images)
    ]
    names = list(estimates[0])
    # a draw's variance, summed over the encoder's outputs, mean over images
    variances = {name: sum(e[name].var(0).sum().item() for e in estimates) / images for name in names}
    ratio = {name: variances[name] / variances["pathwise"] for name in names}
    rows = [
        {"estimator": name, "variance of one draw": variances[name], "times the pathwise": ratio[name]}
        for name in names
    ]
    inside = (kl.scores.abs() < 1.96).double().mean().item()
    numbers = {
        "kl_closed": kl.closed.mean().item(),
        "kl_monte_carlo": kl.estimate.mean().item(),
        "kl_inside_95": inside,
        "gradient_relative_error": gradient.error,
        "variance": variances,
        "variance_ratio": ratio,
    }
    text = (
        f"The closed form gives {kl.closed.mean():.3f} nats, Monte Carlo {kl.estimate.mean():.3f}; the first is in the "
        f"second's 95% interval for {inside:.0%} of {len(x)} images. The gradient through the draw differs from finite "
        f"differences by {gradient.error:.2%}. The variance of one draw's gradient is "
        f"{ratio['score function']:,.0f} times that of the pathwise estimator for the score function, and "
        f"{ratio['score, baseline']:,.0f} times with a baseline."
    )
    points = torch.stack([kl.closed, kl.estimate], 1).numpy()
    pictures = [
        Picture(
            draw_scatter(points, x="KL, closed form (nats)", y="KL, Monte Carlo (nats)"),
            "KL of held-out images from the prior, two ways.",
        ),
        Picture(
            draw_bars(variances, label="variance of one draw's gradient, summed over the encoder's outputs", log=True),
            f"Variance of the gradient by estimator, mean over {images} images.",
        ),
        Picture(
            draw_running_means(estimates[0]),
            "The mean of more and more draws, for the component of one image's gradient that varies most.",
        ),
    ]
    return Finding(text, numbers, [rows], pictures)


def draw_running_means(estimates: dict[str, Tensor]) -> Figure:
    """Means of the first draws, one curve an estimator."""
    component = int(estimates["pathwise"].var(0).argmax())
    curves = {}
    for name, rows in estimates.items():
        count = torch.arange(1, len(rows) + 1)
        curves[name] = Curve(count.tolist(), (rows[:, component].cumsum(0) / count).tolist(), "-")
    return draw_lines(curves, "draws", "mean gradient (nats a unit)", log_x=True)


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
