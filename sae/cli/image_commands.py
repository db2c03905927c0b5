"""The commands of `sae image`: one dataclass each, whose fields are the flags; as in `sae.cli.commands`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from sae.cli.options import Json
from sae.cli.training import run_training
from sae.config import ImageEvalConfig, ImageTrainConfig


@dataclass(frozen=True, kw_only=True)
class ImageTrain:
    """Train an autoencoder on images."""

    config: ImageTrainConfig
    dry_run: bool = False
    """Print shapes, steps, memory, disk and time; keep no training, write nothing."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        return run_training(self.config, dry_run=self.dry_run)


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


@dataclass(frozen=True, kw_only=True)
class ImageReport:
    """Write one page with every picture that a finished run on images can show."""

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    out: Path | None = None
    """File to write; by default report.html in the run folder."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.book.report.image import image_report

        return image_report(self.run_folder, self.out)


@dataclass(frozen=True, kw_only=True)
class ImageChapter:
    """Run the experiments of the textbook's chapter on autoencoders, and write them as one page.

    Run again with the same flags, it resumes where it stopped: finished experiments and runs are kept.
    """

    out: Path
    """Folder of the page (chapter.html), of findings.json, and of the runs."""
    data: str = "mnist5k"
    """Images with labels, for experiments that need no particular data set."""
    only: str = ""
    """Experiments to run, with commas; by default all."""
    seeds: int | None = None
    """Seeds of every claim, except those that state a number of their own; by default 3, and 1 with --quick."""
    quick: bool = False
    """Few epochs: shows that everything runs, not that the claims hold."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.base.progress import Progress
        from sae.book.chapter.base import Setting
        from sae.book.chapter.report import run_chapter

        with Progress() as progress:
            return run_chapter(Setting(**self.setting(), tell=progress.say), self.names())

    def setting(self) -> dict[str, Any]:
        """Where the experiments are run, and at which size."""
        seeds = (1 if self.quick else 3) if self.seeds is None else self.seeds
        return {"out": self.out, "data": self.data, "seeds": tuple(range(seeds)), "quick": self.quick}

    def names(self) -> list[str]:
        """The experiments asked for; none for all."""
        return [name for name in self.only.split(",") if name]


@dataclass(frozen=True, kw_only=True)
class ImageCompare:
    """Compare sparse autoencoders with image autoencoders on common ground: planted atoms, pixels, activations.

    Run again with the same flags, it resumes where it stopped: finished runs and their measures are kept.
    """

    out: Path
    """Folder of the page (comparison.html), of comparison.json, and of the runs."""
    data: str = "dsprites"
    """Images of the pixel tier: dsprites (drawn at 32x32 unless it names a size), digits, mnist5k, or another set."""
    seeds: int | None = None
    """Seeds of every training; by default 5, and 2 with --quick."""
    language_run: str | None = None
    """A run on a language model, whose activations the third tier reads; by default the demo model's layer 9."""
    quick: bool = False
    """Few models and epochs: shows that everything runs, not who is better."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.book.comparison.report import compare

        return compare(self.out, **self.options(), tell=_tell)

    def options(self) -> dict[str, Any]:
        """What is compared, and at which size."""
        seeds = (2 if self.quick else 5) if self.seeds is None else self.seeds
        return {"data": self.data, "seeds": seeds, "quick": self.quick, "language_run": self.language_run}


def _tell(text: str) -> None:
    """Print a line on stderr; every training shows its own progress bar."""
    print(text, file=sys.stderr, flush=True)


IMAGE_COMMANDS: dict[str, type] = {
    "train": ImageTrain,
    "eval": ImageEval,
    "report": ImageReport,
    "chapter": ImageChapter,
    "compare": ImageCompare,
}
