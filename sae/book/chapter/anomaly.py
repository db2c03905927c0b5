"""Anomaly detection by the likelihood of an autoencoder trained on normal images, and a case where it may fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae.base import draws
from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained_by_seed
from sae.book.chapter.measure import Images, mean_of, over_seeds, side, split_images
from sae.book.measures.anomaly import Detected, detect, mean_over
from sae.config import OptimConfig, VisionConfig
from sae.evaluation.baselines import PCA
from sae.evaluation.variational import bounds
from sae.pictures.charts import draw_histograms
from sae.runs.images import ImageRun

COMPONENTS = 16
"""Of the baseline, whose score is the squared distance from the span of the normal images' principal components."""
DRAWS = 16  # of the importance-weighted bound
CHUNK = 256  # images whose bound is taken at a time
VISION = VisionConfig(variant="vae", width=16, hidden=(256,), likelihood="gaussian", variance=0.02)
FEW_IMAGES = OptimConfig(lr=2e-3, batch=32, decay=0.5)
"""One class is a tenth of the images: smaller batches give enough steps."""
EASY = "1"
"""A digit that every such model reconstructs well, whether it was trained on it or not."""


class Trial:
    """One class, or all but one, as the normal images: scores by seed, and the baseline's result.

    Args:
        setting: the seeds.
        train: training images.
        heldout: the images that are scored.
        name: of a class; `others` makes all other classes the normal ones.
        others: see `name`.
    """

    def __init__(self, setting: Setting, train: Images, heldout: Images, name: str, *, others: bool = False) -> None:
        # all other classes are nine times as many images an epoch
        epochs = setting.pick(15, 10) if others else setting.pick(50, 40)
        folder = f"anomaly-{'not-' if others else ''}{name}"
        label = f"!{name}" if others else name
        runs = trained_by_seed(setting, folder, VISION, epochs=epochs, optim=FEW_IMAGES, only_label=label)
        self.scores = [negative_log_likelihood(run, heldout.x) for run in runs]
        normal, self.anomalous = (
            (images.labels == images.names.index(name)).numpy() != inverted
            for images, inverted in ((train, others), (heldout, not others))
        )
        self.results = [detect(score, self.anomalous) for score in self.scores]
        square, energy = PCA.fit([train.x[torch.from_numpy(normal)]]).energies(heldout.x)
        self.baseline = detect(square - energy[:, :COMPONENTS].sum(1), self.anomalous)

    @property
    def numbers(self) -> dict[str, Any]:
        """The results over seeds, and the baseline's."""
        return {**summary(self.results, self.baseline), "share": self.results[0].share}

    def histogram(self, title: str, other: str) -> Picture:
        """Scores of seed 0, of normal images and of those called `other`."""
        score = self.scores[0].numpy()
        values = {"normal": score[~self.anomalous], other: score[self.anomalous]}
        figure = draw_histograms(values, x="negative log-likelihood (nats)", y="share of images", title=title)
        return Picture(figure, f"Scores of held-out images, {title}.")


@experiment("anomaly", rows=(19,), title="Trained on normal images alone: are the others unlikely?")
def anomaly(setting: Setting) -> Finding:
    """Every class in turn as the normal one, and a case in which the score may be the wrong way round."""
    train, heldout = split_images(setting.data)
    names = setting.pick(heldout.names, heldout.names[:2])
    trials = {name: Trial(setting, train, heldout, name) for name in names}
    by_seed = [mean_over(results) for results in zip(*(trial.results for trial in trials.values()), strict=True)]
    mean = summary(by_seed, mean_over([trial.baseline for trial in trials.values()]))
    rows = [_row(name, trial.numbers) for name, trial in trials.items()]
    worst = min(names, key=lambda name: mean_of(trials[name].numbers["auroc"]))
    shown = dict.fromkeys((names[0], worst))
    pictures = [trials[name].histogram(f"trained on {name} alone", f"not {name}") for name in shown]
    text = (
        f"Trained on one class and tested on all, the negative log-likelihood detects the others with a mean AUROC of "
        f"{mean_of(mean['auroc']):.3f} over classes ({compared_with_pca(mean)})."
    )
    numbers: dict[str, Any] = {"mean": mean, "classes": rows}
    if EASY in heldout.names:
        hard = Trial(setting, train, heldout, EASY, others=True)
        numbers["failure"] = hard.numbers
        pictures.append(hard.histogram(f"trained on all but {EASY}", EASY))
        text += " " + failure_said(hard.numbers, mean)
        rows.append(_row(f"all but {EASY}", hard.numbers))
    return Finding(text, numbers, [rows], pictures)


def summary(results: list[Detected], baseline: Detected) -> dict[str, Any]:
    """AUROC and average precision over seeds, and the baseline's AUROC."""
    return {
        "auroc": over_seeds([result.auroc for result in results]),
        "average_precision": over_seeds([result.average_precision for result in results]),
        "pca_auroc": baseline.auroc,
    }


def _row(normal: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "normal": normal,
        "AUROC": numbers["auroc"],
        "average precision": numbers["average_precision"],
        "share of anomalies": numbers["share"],
        f"PCA-{COMPONENTS} AUROC": numbers["pca_auroc"],
    }


def compared_with_pca(numbers: Mapping[str, Any]) -> str:
    """The baseline's AUROC, and which is higher."""
    higher = "more than" if mean_of(numbers["auroc"]) > numbers["pca_auroc"] else "no more than"
    return f"{higher} {COMPONENTS} principal components, {numbers['pca_auroc']:.3f}"


def failure_said(numbers: Mapping[str, Any], mean: Mapping[str, Any]) -> str:
    """Whether simple anomalies are the more likely images, and how that compares with single classes."""
    auroc, usual = mean_of(numbers["auroc"]), mean_of(mean["auroc"])
    verdict = {
        1: "the score is the right way round",
        0: "the score does not tell them apart",
        -1: "the score fails: the anomalies are more likely than normal images",
    }[side(numbers["auroc"], 0.5)]
    less = "less" if auroc < usual else "no less"
    return (
        f"Trained on all but the {EASY}s, it scores them at AUROC {auroc:.3f} ({compared_with_pca(numbers)}), {less} "
        f"than the mean over single classes; compared with chance, .5, {verdict}."
    )


def negative_log_likelihood(run: ImageRun, x: Tensor) -> Tensor:
    """Importance-weighted estimate of -log p(x) of images [n, D], nats [n]."""
    parts = []
    for index, rows in enumerate(x.split(CHUNK)):
        generator = draws.generator(0, index)
        importance = bounds(run.model, run.vision, rows, samples=DRAWS, generator=generator).importance
        assert importance is not None  # draws were asked for
        parts.append(-importance)
    return torch.cat(parts)
