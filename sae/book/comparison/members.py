"""Every member of the tiers on images: trained in a run folder, measured, and kept there.

rows = image_rows(tour, ground, members, epochs=..., limit=...)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base.files import publish_json, read_json
from sae.book.chapter.base import Setting, trained
from sae.book.comparison.coders import Coder, coder_of
from sae.book.comparison.grounds import Ground
from sae.book.comparison.measures import Measured, measure
from sae.book.comparison.plan import Member, RowMember
from sae.book.comparison.rows import RowsConfig, trained_rows
from sae.book.comparison.table import Row
from sae.config import OptimConfig, to_json
from sae.evaluation.stability import pair_cosines
from sae.runs.images import ImageRun

KEPT = "comparison.json"
FORMAT = 3  # of what is kept beside a run; a change of any measure raises it


class Tour:
    """Says how far the report is, and how long the rest may take.

    Args:
        setting: where, with which seeds, and whom to tell.
        total: trainings and measurements in all.
    """

    def __init__(self, setting: Setting, total: int) -> None:
        self.setting, self.total = setting, total
        self.done = self.kept = 0
        self._begun = time.perf_counter()

    def step(self, name: str, *, kept: bool) -> None:
        """Count one more; kept ones of an earlier call cost nothing and are left out of the rate."""
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
        found = [
            trained(tour.setting, f"{ground.tier}-{member.name}", member.vision, data=ground.data,
                    epochs=epochs, limit=limit, seed=seed)
            for seed in tour.setting.seeds
        ]  # fmt: skip
        coders: list[Coder] = []
        measured = []
        for seed, run in zip(tour.setting.seeds, found, strict=True):
            coder = coder_of(run.model, ground.train, seconds=run.record["training"]["seconds"] / epochs)
            coders.append(coder)
            measured.append(kept_or_measured(tour, run.folder, coder, ground, seed=seed))
        settings = {**to_json(member.vision), "epochs": epochs, "images": limit}
        likeness = seeds_likeness(coders, measured)
        rows.append(Row(ground.tier, ground.data, member.name, member.family, measured, likeness, settings))
        runs[member.name] = found
    return rows, runs


def rows_on_rows(
    tour: Tour, ground: Ground, train: Tensor, provenance: dict[str, Any], members: Sequence[RowMember], **how: Any
) -> list[Row]:
    """Train and measure sparse autoencoders on activations: a row each.

    Args:
        tour: whom to tell.
        ground: what they are held against.
        train: rows they learn from [n, D]; the ground may hold fewer.
        provenance: where these come from.
        members: who.
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
        likeness = seeds_likeness(coders, measured)
        rows.append(Row(ground.tier, ground.data, member.name, member.family, measured, likeness, settings))
    return rows


def kept_or_measured(tour: Tour, folder: Path, coder: Coder, ground: Ground, *, seed: int) -> Measured:
    """What is kept beside a run if it was measured on the same ground, else measured now and kept."""
    found, kept = kept_or_made(folder / KEPT, ground, seed, lambda: {"run": measure(coder, ground, seed=seed)})
    tour.step(folder.name, kept=kept)
    return found["run"]


def kept_or_made(
    path: Path, ground: Ground, seed: int, make: Callable[[], Mapping[str, Measured]]
) -> tuple[dict[str, Measured], bool]:
    """What `path` holds of the same ground, by name, and True; else what `make` gives, kept there, and False."""
    asked = {
        "format": FORMAT,
        "rows": ground.digest,
        "budgets": [bits if math.isfinite(bits) else None for bits in ground.budgets],
        "seed": seed,
    }
    if path.exists():
        held = read_json(path)
        if held.get("asked") == asked:
            return {name: Measured(**found) for name, found in held["measured"].items()}, True
    made = dict(make())
    publish_json(path, {"asked": asked, "measured": {name: found._asdict() for name, found in made.items()}})
    return made, False


def seeds_likeness(coders: Sequence[Coder], measured: Sequence[Measured]) -> tuple[float, ...]:
    """Cosine of every pair of seeds' live atoms; empty without atoms or seeds to compare.

    Cosines of nearest atoms, whatever their sign, mean over both dictionaries (`sae.evaluation.stability`).
    """
    live = []
    for coder, found in zip(coders, measured, strict=True):
        if coder.atoms is None:
            return ()
        alive = torch.tensor(found.rates) > 0
        live.append(coder.atoms[alive & (coder.atoms.norm(dim=1) > 0)])
    if len(live) < 2 or any(len(atoms) == 0 for atoms in live):
        return ()
    return pair_cosines(live)


def control_rows(
    tour: Tour, ground: Ground, made: Callable[[int], Mapping[str, Coder]], *, seeds: Sequence[int], family: str
) -> list[Row]:
    """Rows of codes that were not trained: `made` gives them by name for a seed."""
    coders, found = [made(seed) for seed in seeds], []
    for seed, by_name in zip(seeds, coders, strict=True):

        def measured(by_name: Mapping[str, Coder] = by_name, seed: int = seed) -> dict[str, Measured]:
            return {name: measure(coder, ground, seed=seed) for name, coder in by_name.items()}

        found.append(kept_or_made(control_path(tour, ground, family, seed), ground, seed, measured)[0])
    rows = []
    for name in coders[0]:
        mine = [by_name[name] for by_name in found]
        likeness = seeds_likeness([by_name[name] for by_name in coders], mine)
        rows.append(Row(ground.tier, ground.data, name, family, mine, likeness))
    return rows


def control_path(tour: Tour, ground: Ground, family: str, seed: int) -> Path:
    """Where measures of codes without a run are kept."""
    return tour.setting.out / "controls" / f"{safe_name(ground.tier)}-{safe_name(ground.data)}-{family}-{seed}.json"


def safe_name(name: str) -> str:
    """A name as part of a file's."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
