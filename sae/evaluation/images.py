"""`sae eval` of a run on images: every metric of the saved autoencoder on held-out images, with PCA and intervals.

report = evaluate_images("runs/vae", ImageEvalConfig())
report["fvu"]["value"], report["elbo"]["value"]
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base import draws
from sae.base.progress import Progress
from sae.config import ImageEvalConfig, refuse_ignored
from sae.evaluation import bootstrap
from sae.evaluation.arrays import entropy
from sae.evaluation.baselines import PCA
from sae.evaluation.bootstrap import GroupSums, Interval, ratio
from sae.evaluation.reconstruction import Reconstruction
from sae.evaluation.variational import activity, bounds, moments
from sae.models.recipe import Corruption
from sae.models.saved import publish_report
from sae.modules.codes import Gaussian, Quantised
from sae.modules.corruption import corrupt
from sae.runs.images import ImageRun, decode_dense, dense_codes, open_image_run

CHUNK = 512
PCA_IMAGES = 20_000  # training images on which the baseline is fitted
LEVELS = (0.25, 0.5, 1.0, 1.5, 2.0)  # of the trained corruption at which denoising is measured
DRAW, NOISE = range(2)  # what random numbers are drawn for


def evaluate_images(run: str | Path, config: ImageEvalConfig | None = None) -> dict[str, Any]:
    """Evaluate the image autoencoder saved in `run` on held-out images; also written to the run's eval.json.

    Returns:
        JSON values; a metric with an interval is {"value", "low", "high"}.

    Raises:
        ConfigError, CorruptError, DataError: the run or its images cannot be used.
    """
    config = config or ImageEvalConfig()
    opened = open_image_run(run)
    if config.samples and not isinstance(opened.model.code, Gaussian):
        refuse_ignored(
            config, {"samples": f"--variant {opened.vision.variant} draws nothing; it is of variational models"}
        )
    begun = time.perf_counter()
    report = bootstrap.plain(measure(opened, config))
    head = {"run": str(run), "variant": opened.vision.variant, "data": opened.config.images.data}
    done = {**head, **report, "seconds": round(time.perf_counter() - begun, 1)}
    publish_report(opened.folder, "eval.json", done)
    return done


def measure(run: ImageRun, config: ImageEvalConfig) -> dict[str, Any]:
    """Every metric of an opened run, intervals as `Interval`."""
    train, heldout = run.images("train", limit=PCA_IMAGES), run.images("heldout", limit=config.images)
    pca = PCA.fit(train.render(chunk) for chunk in torch.arange(train.count).split(CHUNK))
    whole = Reconstruction(run.model, pca.mean, pca)
    variational = isinstance(run.model.code, Gaussian)
    sums = GroupSums()
    with Progress() as progress, progress.bar("Evaluating", heldout.count, "images") as bar:
        for index, chunk in enumerate(torch.arange(heldout.count).split(CHUNK)):
            x = heldout.render(chunk)
            whole.add(x, x, chunk)
            if variational:
                generator = draws.generator(config.seed, index, DRAW)
                measured = bounds(run.model, run.vision, x, samples=config.samples, generator=generator)
                parts = {name: value for name, value in measured._asdict().items() if value is not None}
                sums.add(chunk, {**parts, "count": torch.ones(len(x))})
            bar.advance(len(x))
    resampling = {"resamples": config.resamples, "seed": config.seed}
    metrics = whole.metrics(**resampling)
    metrics["images"] = metrics.pop("tokens")
    del metrics["documents"]
    components = _components(run, metrics["l0"])
    report: dict[str, Any] = {
        **metrics,
        "psnr": whole.sums.interval(lambda s: _decibels(s["error"] / (heldout.dim * s["count"])), **resampling),
        "densities": whole.densities(),
        "baselines": whole.baselines(k=min(components, heldout.dim), **resampling),
        "parameters": sum(p.numel() for p in run.model.parameters()),
    }
    if variational:
        bound = {name: sums.interval(ratio(name, "count"), **resampling) for name in sums.sums if name != "count"}
        report["bounds"] = {**bound, "draws": config.samples, "bits_per_dim": _bits(bound, heldout.dim)}
        report["latents"] = _activity(run, heldout.render(torch.arange(min(heldout.count, 2000))))
    if isinstance(run.model.code, Quantised):
        report["codebook"] = codebook_use(run, heldout.render(torch.arange(min(heldout.count, 2000))))
    if run.vision.corruption != "none":
        report["denoising"] = denoising(run, heldout.render(torch.arange(min(heldout.count, 2000))), config.seed)
    return report


def _components(run: ImageRun, l0: Interval | None) -> int:
    """How many numbers a code is, for the comparison with as many principal components: its L0, one at least."""
    if isinstance(run.model.code, Quantised):
        return run.model.positions
    return max(1, round(l0.value)) if l0 is not None else run.model.width


def _bits(bound: dict[str, Interval | None], dim: int) -> float | None:
    """Bits for each of an image's C·H·W numbers, by the better bound."""
    best = bound.get("importance") or bound.get("elbo")
    return None if best is None else -best.value / dim / math.log(2)


def _activity(run: ImageRun, x: Tensor) -> dict[str, Any]:
    latents = activity(*moments(run.model, x))
    return {"active": latents.active, "kl": latents.kl.tolist(), "variance": latents.variance.tolist()}


def codebook_use(run: ImageRun, x: Tensor) -> dict[str, Any]:
    """How evenly atoms are chosen: exp of the entropy of their shares (van den Oord et al. 2017), and the shares."""
    counts = torch.bincount(run.model.encode(x).indices.flatten().cpu(), minlength=run.model.width).numpy()
    perplexity = math.exp(entropy(counts))
    return {"perplexity": perplexity, "atoms": run.model.width, "shares": (counts / counts.sum()).tolist()}


def denoising(run: ImageRun, x: Tensor, seed: int) -> list[dict[str, float]]:
    """PSNR (dB) of corrupted images and of their reconstructions, at the trained level and at others."""
    trained = Corruption(run.vision.corruption, run.vision.corruption_level or 0.0)
    rows = []
    for factor in LEVELS:
        level = trained.level * factor
        noisy = corrupt(trained.name, level, x, draws.generator(seed, round(1000 * level), NOISE)).x
        with torch.no_grad():
            cleaned = decode_dense(run.model, dense_codes(run.model, noisy))
        before, after = psnr(x, noisy), psnr(x, cleaned)
        rows.append({"level": level, "noisy_psnr": before, "denoised_psnr": after, "gain": after - before})
    return rows


def psnr(x: Tensor, x_hat: Tensor) -> float:
    """10 log10(1 / mean squared error of a pixel), dB, for pixels in [0, 1]."""
    return _decibels((x_hat - x).square().mean()).item()


def _decibels(error: Tensor) -> Tensor:
    """PSNR of a mean squared error of a pixel."""
    return -10 * error.log10()
