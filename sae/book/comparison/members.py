"""Members of the tiers: trained in a run folder, measured, and their measures saved there.

rows = image_rows(tour, ground, members, epochs=..., limit=...)
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.base.files import publish_json, read_json
from sae.book.chapter.base import Setting, safe_name, trained_by_seed
from sae.book.comparison.coders import Coder, coder_of
from sae.book.comparison.grounds import Ground
from sae.book.comparison.measures import Measured, Row, measure
from sae.book.comparison.plan import Member, RowMember
from sae.config import OptimConfig, RunConfig, SAEConfig, to_json
from sae.data.images import ImageSet
from sae.evaluation.stability import pair_cosines
from sae.models.autoencoder import Autoencoder
from sae.models.language import recipe_of
from sae.models.recipe import Recipe
from sae.models.saved import CONFIG, load, read_config
from sae.runs.images import ImageRun
from sae.training.images import SampleData
from sae.training.run import train
from sae.training.run_folder import check_kept_run

MEASURES = "comparison.json"
FORMAT = 3  # of saved measures; raise it when a measure changes


@dataclass(frozen=True, kw_only=True)
class RowsConfig(RunConfig):
    """One training run on rows of activations held in memory."""

    source: str
    """What gave the rows."""
    sae: SAEConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    epochs: int = 20
    """Passes over the rows."""


class RowsRun(NamedTuple):
    """A finished run."""

    model: Autoencoder
    """In its saved form."""
    seconds: float
    """Of an epoch."""


def trained_rows(
    config: RowsConfig, rows: Tensor, provenance: dict[str, Any], *, tell: Callable[[str], None]
) -> RowsRun:
    """The run in `config.out`, trained or resumed unless it is finished.

    Args:
        config: where, and with which settings.
        rows: activations float32 [n, d].
        provenance: JSON values that say where they come from.
        tell: told what is trained.

    Raises:
        ConfigError: the run that is there has other settings, or learns from other rows.
    """
    begun = (config.out / CONFIG).is_file()
    if begun:
        check_kept_run(config, provenance)
    if not begun or not read_config(config.out)["autoencoder"]:
        tell(f"{'resuming' if begun else 'training'} {config.out.name}")
        config = dataclasses.replace(config, resume=begun, device="cpu")
        train(config, RowsData(config, rows, provenance))
    record = read_config(config.out)
    return RowsRun(load(config.out), record["training"]["seconds"] / config.epochs)


class RowsData(SampleData):
    """Rows in memory as training data.

    Args:
        config: settings of the run.
        rows: float32 [n, d].
        provenance: JSON values that say where they come from.
    """

    kind, unit, command, advice = "rows", "rows", "sae image compare", ""

    def __init__(self, config: RowsConfig, rows: Tensor, provenance: dict[str, Any]) -> None:
        images = ImageSet(config.source, (1, 1, rows.shape[1]), len(rows), lambda places: rows[places], provenance)
        super().__init__(config, images, config.sae, config.optim, config.epochs)

    def recipe(self) -> Recipe:
        return recipe_of(self.sae, [self.images.dim])


class Tour:
    """Reports progress, and about how long the rest will take.

    Args:
        setting: the folder, the seeds, and where progress is reported.
        total: trainings and measurements in all.
    """

    def __init__(self, setting: Setting, total: int) -> None:
        self.setting, self.total = setting, total
        self.done = self.kept = 0
        self._begun = time.perf_counter()

    def step(self, name: str, *, kept: bool) -> None:
        """Count one more; those saved by an earlier call take no time and are left out of the rate."""
        self.done += 1
        self.kept += kept
        fresh = self.done - self.kept
        if kept or not fresh:
            return
        left = (time.perf_counter() - self._begun) / fresh * (self.total - self.done)
        about = f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left"
        self.setting.tell(f"[{self.done}/{self.total}] {name} measured; {about}")


def image_rows(
    tour: Tour, ground: Ground, members: Sequence[Member], *, epochs: int, limit: int
) -> tuple[list[Row], dict[str, list[ImageRun]]]:
    """Train and measure members on images: a row each, and their runs by name, seed by seed."""
    rows, runs = [], {}
    for member in members:
        name = f"{ground.tier}-{member.name}"
        options = {"data": ground.data, "epochs": epochs, "limit": limit}
        runs[member.name] = trained_by_seed(tour.setting, name, member.vision, **options)
        coders, measured = [], []
        for seed, run in zip(tour.setting.seeds, runs[member.name], strict=True):
            coders.append(coder_of(run.model, ground.train, seconds=run.record["training"]["seconds"] / epochs))
            measured.append(kept_or_measured(tour, run.folder, coders[-1], ground, seed=seed))
        settings = {**to_json(member.vision), "epochs": epochs, "images": limit}
        similarity = similarity_of_seeds(coders, measured)
        rows.append(Row(ground.tier, ground.data, member.name, member.family, measured, similarity, settings))
    return rows, runs


def rows_on_rows(
    tour: Tour, ground: Ground, train: Tensor, provenance: dict[str, Any], members: Sequence[RowMember], **how: Any
) -> list[Row]:
    """Train and measure sparse autoencoders on activations: a row each.

    Args:
        tour: reports progress.
        ground: with the rows they are measured on.
        train: training rows [n, D]; the ground may have fewer.
        provenance: where these come from.
        members: the models.
        how: `epochs`, and `batch` rows a step.
    """
    rows = []
    for member in members:
        coders, measured = [], []
        for seed in tour.setting.seeds:
            config = RowsConfig(
                out=tour.setting.out / "runs" / f"{safe_name(ground.data)}-{member.name}-{seed}",
                source=ground.data,
                sae=member.sae,
                optim=OptimConfig(batch=how["batch"]),
                epochs=how["epochs"],
                seed=seed,
                device="cpu",
            )
            run = trained_rows(config, train, provenance, tell=tour.setting.tell)
            coders.append(coder_of(run.model, ground.train, seconds=run.seconds))
            measured.append(kept_or_measured(tour, config.out, coders[-1], ground, seed=seed))
        settings = {**to_json(member.sae), **how, "rows": len(train)}
        similarity = similarity_of_seeds(coders, measured)
        rows.append(Row(ground.tier, ground.data, member.name, member.family, measured, similarity, settings))
    return rows


def kept_or_measured(tour: Tour, folder: Path, coder: Coder, ground: Ground, *, seed: int) -> Measured:
    """The measures saved in a run folder if they are of the same ground, else measured now and saved."""
    measured, kept = kept_or_made(folder / MEASURES, ground, seed, lambda: {"run": measure(coder, ground, seed=seed)})
    tour.step(folder.name, kept=kept)
    return measured["run"]


def kept_or_made(
    path: Path, ground: Ground, seed: int, make: Callable[[], Mapping[str, Measured]]
) -> tuple[dict[str, Measured], bool]:
    """Measures saved in `path` if they are of the same ground, by name, and True; else new ones, saved, and False."""
    asked = {
        "format": FORMAT,
        "rows": ground.digest,
        "budgets": [bits if math.isfinite(bits) else None for bits in ground.budgets],
        "seed": seed,
    }
    if path.exists():
        saved = read_json(path)
        if saved.get("asked") == asked:
            return {name: Measured(**measured) for name, measured in saved["measured"].items()}, True
    made = dict(make())
    publish_json(path, {"asked": asked, "measured": {name: measured._asdict() for name, measured in made.items()}})
    return made, False


def similarity_of_seeds(coders: Sequence[Coder], measured: Sequence[Measured]) -> tuple[float, ...]:
    """Cosine of every pair of seeds' live atoms; empty without atoms or seeds to compare.

    Cosines of nearest atoms, whatever their sign, mean over both dictionaries (`sae.evaluation.stability`).
    """
    live = []
    for coder, of_seed in zip(coders, measured, strict=True):
        if coder.atoms is None:
            return ()
        alive = torch.tensor(of_seed.rates) > 0
        live.append(coder.atoms[alive & (coder.atoms.norm(dim=1) > 0)])
    if len(live) < 2 or any(len(atoms) == 0 for atoms in live):
        return ()
    return pair_cosines(live)


def control_rows(
    tour: Tour, ground: Ground, make: Callable[[int], Mapping[str, Coder]], *, seeds: Sequence[int], family: str
) -> list[Row]:
    """Rows of codes that were not trained: `make` returns them by name for a seed."""
    coders, measured = [make(seed) for seed in seeds], []
    for seed, by_name in zip(seeds, coders, strict=True):

        def measure_all(by_name: Mapping[str, Coder] = by_name, seed: int = seed) -> dict[str, Measured]:
            return {name: measure(coder, ground, seed=seed) for name, coder in by_name.items()}

        measured.append(kept_or_made(control_path(tour, ground, family, seed), ground, seed, measure_all)[0])
    rows = []
    for name in coders[0]:
        seeds_of = [by_name[name] for by_name in measured]
        similarity = similarity_of_seeds([by_name[name] for by_name in coders], seeds_of)
        rows.append(Row(ground.tier, ground.data, name, family, seeds_of, similarity))
    return rows


def control_path(tour: Tour, ground: Ground, family: str, seed: int) -> Path:
    """The file of measures of codes without a run."""
    return tour.setting.out / "controls" / f"{safe_name(ground.tier)}-{safe_name(ground.data)}-{family}-{seed}.json"
