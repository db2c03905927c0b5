"""Anomaly detection by the likelihood of an autoencoder trained on normal images alone, and where that may fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.base import draws
from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained
from sae.book.chapter.measure import Images, mean_of, over_seeds, shifted, side, split_images
from sae.book.measures.anomaly import Detected, detect, over_classes
from sae.book.pictures.charts import draw_histograms
from sae.config import OptimConfig, VisionConfig
from sae.evaluation.baselines import PCA
from sae.evaluation.variational import bounds
from sae.runs.images import ImageRun

COMPONENTS = 16
"""Of the baseline: the squared distance from that many principal components of the normal images."""
DRAWS = 16  # of the importance-weighted bound
CHUNK = 256  # images whose bound is taken at a time
VISION = VisionConfig(variant="vae", width=16, hidden=(256,), likelihood="gaussian", variance=0.02)
FEW_IMAGES = OptimConfig(lr=2e-3, batch=32, decay=0.5)
"""A class is a tenth of the images: smaller batches, so that there are steps enough."""
EASY = "1"
"""A digit that any of these models draws well, whether it has seen it or not."""


@experiment("anomaly", rows=(19,), title="Trained on normal images alone: are the others unlikely?")
def anomaly(setting: Setting) -> Finding:
    """Every class in turn as the normal one, and the case in which the score may be the wrong way round."""
    train, held = split_images(setting.data)
    names = setting.pick(held.names, held.names[:2])
    own: dict[str, list[Detected]] = {}
    scores: dict[str, Tensor] = {}
    for name in names:
        runs = [_run(setting, name, seed) for seed in setting.seeds]
        found = [negative_log_likelihood(run, held.x) for run in runs]
        scores[name] = found[0]
        own[name] = [detect(score.numpy(), ~_is(held, name)) for score in found]
    baseline = over_classes({name: _pca(train, held, _is(train, name), ~_is(held, name)) for name in names})
    rows: list[dict[str, Any]] = [
        {
            "normal": name,
            "AUROC": over_seeds([d.auroc for d in own[name]]),
            "average precision": over_seeds([d.average_precision for d in own[name]]),
            "share of anomalies": own[name][0].share,
            f"PCA-{COMPONENTS} AUROC": baseline.each[name].auroc,
        }
        for name in names
    ]
    means = [over_classes({name: own[name][i] for name in names}) for i in range(len(setting.seeds))]
    mean = {
        "auroc": over_seeds([m.mean.auroc for m in means]),
        "average_precision": over_seeds([m.mean.average_precision for m in means]),
        "pca_auroc": baseline.mean.auroc,
    }
    worst = min(names, key=lambda name: mean_of(over_seeds([d.auroc for d in own[name]])))
    pictures = [
        _histogram(scores[name], ~_is(held, name), f"trained on {name} alone", f"not {name}")
        for name in dict.fromkeys((names[0], worst))
    ]
    text = (
        f"Trained on one class and asked about all, the negative log-likelihood tells the others apart with a mean "
        f"AUROC of {mean_of(mean['auroc']):.3f} over classes ({beside(mean)})."
    )
    numbers: dict[str, Any] = {"mean": mean, "classes": rows}
    if EASY in held.names:
        numbers["failure"], picture = failure(setting, train, held)
        pictures.append(picture)
        text += " " + failure_said(numbers["failure"], mean)
        hard = numbers["failure"]
        rows.append(
            {
                "normal": f"all but {EASY}",
                "AUROC": hard["auroc"],
                "average precision": hard["average_precision"],
                "share of anomalies": hard["share"],
                f"PCA-{COMPONENTS} AUROC": hard["pca_auroc"],
            }
        )
    return Finding(text=text, numbers=numbers, tables=[rows], pictures=pictures)


def beside(found: Mapping[str, Any]) -> str:
    """The baseline's AUROC, and which is the higher."""
    own, baseline = mean_of(found["auroc"]), found["pca_auroc"]
    higher = "more than" if own > baseline else "no more than"
    return f"{higher} {COMPONENTS} principal components, {baseline:.3f}"


def failure_said(found: Mapping[str, Any], mean: Mapping[str, Any]) -> str:
    """Whether simple anomalies are the more likely ones, and what that is beside single classes."""
    own, usual = mean_of(found["auroc"]), mean_of(mean["auroc"])
    likely = {
        1: "the score is the right way round",
        0: "the score does not tell them apart",
        -1: "the score fails: the anomalies are the more likely ones",
    }[side(shifted(found["auroc"], -0.5))]
    less = "less" if own < usual else "no less"
    return (
        f"Trained on all but the {EASY}s, it scores them at AUROC {own:.3f} ({beside(found)}), {less} than the mean "
        f"over single classes; beside .5, {likely}."
    )


def failure(setting: Setting, train: Images, held: Images) -> tuple[dict[str, Any], Picture]:
    """All but the simplest class is normal."""
    runs = [_run(setting, f"!{EASY}", seed) for seed in setting.seeds]
    scores = [negative_log_likelihood(run, held.x) for run in runs]
    found = [detect(score.numpy(), _is(held, EASY)) for score in scores]
    numbers = {
        "auroc": over_seeds([d.auroc for d in found]),
        "average_precision": over_seeds([d.average_precision for d in found]),
        "share": found[0].share,
        "pca_auroc": _pca(train, held, ~_is(train, EASY), _is(held, EASY)).auroc,
    }
    return numbers, _histogram(scores[0], _is(held, EASY), f"trained on all but {EASY}", EASY)


def _run(setting: Setting, normal: str, seed: int) -> ImageRun:
    one = not normal.startswith("!")
    # the others are nine times as many images an epoch
    epochs = setting.pick(50 if one else 15, 40 if one else 10)
    folder = f"anomaly-{normal.replace('!', 'not-')}"
    return trained(setting, folder, VISION, epochs=epochs, optim=FEW_IMAGES, only_label=normal, seed=seed)


def negative_log_likelihood(run: ImageRun, x: Tensor) -> Tensor:
    """Importance-weighted estimate of -log p(x) of images [n, D], nats [n]."""
    parts = []
    for index, rows in enumerate(x.split(CHUNK)):
        generator = draws.generator(0, index)
        importance = bounds(run.model, run.vision, rows, samples=DRAWS, generator=generator).importance
        assert importance is not None  # draws were asked for
        parts.append(-importance)
    return torch.cat(parts)


def _is(images: Images, name: str) -> np.ndarray:
    return (images.labels == images.names.index(name)).numpy()


def _pca(train: Images, held: Images, normal: np.ndarray, anomalous: np.ndarray) -> Detected:
    square, energy = PCA.fit([train.x[torch.from_numpy(normal)]]).energies(held.x)
    return detect((square - energy[:, :COMPONENTS].sum(1)).numpy(), anomalous)


def _histogram(score: Tensor, anomalous: np.ndarray, title: str, other: str) -> Picture:
    values = {"normal": score.numpy()[~anomalous], other: score.numpy()[anomalous]}
    figure = draw_histograms(values, x="negative log-likelihood (nats)", y="share of images", title=title)
    return Picture(figure, f"Scores of held-out images, {title}.", vector=True)
