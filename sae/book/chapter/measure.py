"""What experiments share: held-out images, FVU of any reconstruction, means over seeds, a judge, and networks.

Each network is trained by the first experiment that needs it.

runs = bottlenecks(setting, 10)          # one a seed
judge = judge_of("mnist5k")
judge.classifier.classes(images), judge.nearest(images)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from sae.book.chapter.base import Setting, trained, trained_by_seed
from sae.book.generate.classifier import CHUNK, Classifier, train_classifier
from sae.config import ConfigError, ImageDataConfig, OptimConfig, VisionConfig
from sae.data.images import ImageSet
from sae.evaluation.baselines import PCA
from sae.evaluation.bootstrap import Interval
from sae.evaluation.reconstruction import fvu_of, fvu_sums
from sae.models.autoencoder import Autoencoder
from sae.models.stems import MLPStem
from sae.models.vision import recipe_of
from sae.runs.images import ImageRun, decode_dense, dense_codes, open_split

Spread = Interval | float
"""A mean over seeds with its interval, or a plain number if there is one seed."""
JUDGE_HIDDEN = (128,)
HIDDEN = (256,)
"""The chapter's. A second hidden layer needs twice the steps: after 40 epochs on mnist5k 512-left FVU .19,
256-64 left .12."""
NOISE = 0.1
"""Noise on training inputs, against memorising 4,000 digits."""
OPTIM = OptimConfig(lr=3e-3, decay=0.5)
CHAPTER_LATENTS = 64
LATENTS = 16
EPOCHS, QUICK_EPOCHS = 40, 20


class Images(NamedTuple):
    """Images with their classes."""

    x: Tensor
    """float32 [n, D]."""
    labels: Tensor
    """int64 [n]."""
    names: tuple[str, ...]
    """Names of the classes."""
    shape: tuple[int, int, int]
    """Channels, rows, columns."""


def split_images(data: str) -> tuple[Images, Images]:
    """Training and held-out images, split as `trained` splits them.

    Raises:
        ConfigError: they have no labels.
    """
    config = ImageDataConfig(data=data)
    return _labelled(open_split(config, "train")), _labelled(open_split(config, "heldout"))


def _labelled(images: ImageSet) -> Images:
    if images.labels is None:
        raise ConfigError(f"--data {images.name}: has no labels; expected digits, mnist5k or another set with labels")
    names = images.label_names or tuple(str(label) for label in images.labels.unique().tolist())
    return Images(images.all(), images.labels, names, images.shape)


def over_seeds(values: Sequence[float]) -> Spread:
    """Mean with the 95% interval of Student's t over seeds (a mean of few runs, taken as normal)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def mean_of(spread: Spread) -> float:
    """The mean of an `over_seeds`."""
    return spread.value if isinstance(spread, Interval) else spread


def side(spread: Spread, of: float = 0.0) -> int:
    """1 or -1 if all of the interval, or the plain number, lies above or below `of`, else 0."""
    low, high = (spread.low, spread.high) if isinstance(spread, Interval) else (spread, spread)
    return int(low > of) - int(high < of)


def difference(first: Sequence[float], second: Sequence[float]) -> Spread:
    """Mean over seeds of the differences, pair by pair."""
    return over_seeds([a - b for a, b in zip(first, second, strict=True)])


def enumerated(words: Iterable[Any]) -> str:
    """Words as "one, two and three"."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def keyed(rows: Iterable[Mapping[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    """Rows of a table by their value of the column `name`, which is left out of them."""
    return {row[name]: {column: value for column, value in row.items() if column != name} for row in rows}


def fvu(x: Tensor, x_hat: Tensor) -> float:
    """Σ||x - x̂||² / Σ||x - mean||² of images [n, D] and any reconstruction of them."""
    return fvu_of("error", fvu_sums(x, x_hat)).item()


def pca_reconstruction(pca: PCA, x: Tensor, k: int) -> Tensor:
    """Images [n, D] rebuilt from k components."""
    return pca.decode(pca.codes(x, k)).float()


def reconstructed(run: ImageRun, x: Tensor) -> Tensor:
    """Images [n, D] through the saved autoencoder, at the mean of its code."""
    return decode_dense(run.model, dense_codes(run.model, x))


def fvu_of_runs(runs: Iterable[ImageRun], x: Tensor) -> Spread:
    """FVU of images [n, D], over runs of several seeds."""
    return over_seeds([fvu(x, reconstructed(run, x)) for run in runs])


class Judge(NamedTuple):
    """A classifier trained on the training images alone; samples are compared in its features."""

    classifier: Classifier
    train: Images
    heldout: Images

    @property
    def accuracy(self) -> float:
        """On held-out images."""
        return (self.classifier.classes(self.heldout.x) == self.heldout.labels).double().mean().item()

    def nearest(self, x: Tensor) -> Tensor:
        """Root mean squared difference a pixel between images [n, D] and their nearest training images, [n]."""
        rows = [torch.cdist(part, self.train.x).amin(1) for part in x.split(CHUNK)]
        return torch.cat(rows) / x.shape[1] ** 0.5


@functools.lru_cache(maxsize=2)
def judge_of(data: str) -> Judge:
    """The judge of a labelled set, cached.

    Raises:
        ConfigError: the set has no labels.
    """
    train, heldout = split_images(data)
    stem = MLPStem(train.x.shape[1], JUDGE_HIDDEN)
    return Judge(train_classifier(train.x, train.labels, stem, classes=len(train.names), seed=0), train, heldout)


def chapter_networks(setting: Setting) -> list[ImageRun]:
    """The chapter's autoencoder, pixels-256-64-256-pixels, trained on clean inputs."""
    vision = VisionConfig(variant="ae", width=CHAPTER_LATENTS, hidden=(256,))
    return trained_by_seed(setting, "chapter", vision, epochs=setting.pick(40, 8), optim=OPTIM)


def bottlenecks(setting: Setting, k: int) -> list[ImageRun]:
    """Autoencoders of k latents that generalise to held-out images."""
    vision = VisionConfig(variant="ae", width=k, hidden=HIDDEN, corruption="gaussian", corruption_level=NOISE)
    return trained_by_seed(setting, f"bottleneck-{k}", vision, epochs=setting.pick(60, 25), optim=OPTIM)


def variational_bottlenecks(setting: Setting, k: int) -> list[ImageRun]:
    """VAEs of the same network, with a Bernoulli likelihood."""
    vision = VisionConfig(variant="vae", width=k, hidden=HIDDEN)
    return trained_by_seed(setting, f"variational-{k}", vision, epochs=setting.pick(60, 25), optim=OPTIM)


def vae(setting: Setting, seed: int = 0, *, width: int = LATENTS, **settings: Any) -> ImageRun:
    """A variational autoencoder on the setting's images; `settings` are `VisionConfig`'s."""
    name = f"vae-{width}" + "".join(f"-{value}" for value in settings.values())
    return _twin(setting, name, VisionConfig(variant="vae", width=width, **settings), seed)


def ae(setting: Setting, seed: int = 0) -> ImageRun:
    """The same without noise and divergence, with the same likelihood: nothing else differs."""
    vision = VisionConfig(variant="ae", width=LATENTS, likelihood="bernoulli")
    return _twin(setting, f"ae-{LATENTS}-bernoulli", vision, seed)


def _twin(setting: Setting, name: str, vision: VisionConfig, seed: int) -> ImageRun:
    # on 4,000 digits 3 nats better than batches of 128 at 1e-3, in the same time
    optim = OptimConfig(lr=2e-3, batch=64)
    return trained(setting, name, vision, epochs=setting.pick(EPOCHS, QUICK_EPOCHS), optim=optim, seed=seed)


def heldout(run: ImageRun, limit: int) -> Tensor:
    """The first held-out images [n, D]."""
    return run.images("heldout", limit=limit).all()


def random_codes(run: ImageRun, x: Tensor, seed: int) -> Tensor:
    """Codes [n, k] of images [n, D] by a run's network before its first step."""
    return dense_codes(untrained(run.vision, run.shape, seed), x)


def untrained(vision: VisionConfig, shape: Sequence[int], seed: int) -> Autoencoder:
    """The configured autoencoder for images of shape [C, H, W], before its first step."""
    model = recipe_of(vision, shape, 1000).model  # only loss terms depend on the number of images
    model.initialise(torch.Generator().manual_seed(seed))
    return model.eval()
