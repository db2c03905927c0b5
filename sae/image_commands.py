"""The commands of `sae image`: one dataclass each, whose fields are the flags; as in `sae.commands`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from sae.commands import Json, summary
from sae.image_config import ImageEvalConfig, ImageTrainConfig


@dataclass(frozen=True, kw_only=True)
class ImageTrain:
    """Train an autoencoder on images and evaluate it on held-out ones."""

    config: ImageTrainConfig
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.training.images import train_images

        return summary(train_images(self.config))


@dataclass(frozen=True, kw_only=True)
class ImageEval:
    """Evaluate a saved image autoencoder on held-out images (`sae eval` with an image run's own settings)."""

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    config: ImageEvalConfig = field(default_factory=ImageEvalConfig)
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.evaluation.images import evaluate_images

        return evaluate_images(self.run_folder, self.config)


IMAGE_COMMANDS: dict[str, type] = {
    "train": ImageTrain,
    "eval": ImageEval,
}
