"""The comparison as a page: all models trained and measured, in one table, with pictures.

    compare(Path("runs/compare"), data="digits")

The folder holds comparison.html, comparison.json (everything, with settings and every seed's values) and `runs`. The
same call resumes where the last one ended: finished runs and their measures are kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sae.base.files import publish_json
from sae.base.progress import Interrupted
from sae.base.tables import number
from sae.book.chapter.base import Picture, Setting, locked_folder
from sae.book.comparison.coders import coder_of
from sae.book.comparison.figures import (
    atom_pictures,
    disentanglement_pictures,
    firing_pictures,
    models,
    probe_pictures,
    rate_pictures,
    sparsity_pictures,
    training_picture,
)
from sae.book.comparison.grounds import MATCHED
from sae.book.comparison.measures import SLACK, Row, brief, record, table
from sae.book.comparison.plan import FULL, QUICK, SMALLER
from sae.book.comparison.tiers import Tier, run_tiers
from sae.config import check
from sae.pictures.page import Page
from sae.runs.metrics import read_metrics

PAGE, RECORD = "comparison.html", "comparison.json"
COLUMNS_TEXT = (
    "All measures are taken on held-out rows. Bits: one procedure for every code (quantise each latent, entropy-code "
    "it under its histogram on training rows, decode the quantised code), at the coarsest quantiser whose FVU is at "
    f"most the unquantised code's plus {SLACK}; native bits are the model's (KL from the prior of a variational one, "
    "log2 of a codebook's size for every place). FVU at low and high rate: at the bits at which PCA reaches FVU "
    f"{MATCHED[0]} and {MATCHED[1]}, by the same procedure. L0: mean number of codes that are not zero. Dead: share of "
    "latents that never vary; active: latents that vary, and for a Gaussian code those whose mean has a variance over "
    ".01. Seeds' cosine: mean over atoms of the largest |cos| to an atom of another seed's dictionary, live atoms "
    "alone; behind a network, an atom is the mean change of the output for a standard deviation of its latent. Probes "
    "on 1, 5 and 16 latents are balanced accuracies of one class against the rest (chance .5), on all latents the "
    "accuracy over classes. MCC: mean |cos| of the true atoms to latents paired with them one to one."
)
INTERVAL_TEXT = (
    "Numbers are means over seeds with the 95% interval of Student's t (of the seeds' cosine, by a jackknife over "
    "seeds, since pairs share them); the data and their split are the same for all seeds. PCA has no seed and no "
    "interval. Seconds an epoch depend on what else the machine did."
)
LEADING_TEXT = (
    "DCI-D and modularity lead among the measures of disentanglement, on live latents: they ask whether a latent means "
    "one thing. MIG and DCI-C ask whether a thing has one latent, which does not fit an overcomplete sparse "
    "code: its latents can each mean one thing and still score near 0 there, since many share a factor."
)
INDICATORS_TEXT = (
    "This set has labels and no factors: disentanglement is measured against an indicator of every class. An image has "
    "only one class, so these indicators are not independent."
)


def compare(
    out: Path,
    *,
    data: str = "dsprites",
    seeds: int = 5,
    quick: bool = False,
    language_run: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run the comparison, or what is left of it, and write its page.

    Args:
        out: folder of the page, of comparison.json, and of the runs.
        data: images of the pixel tier.
        seeds: of every training, from 0 on.
        quick: few models and epochs.
        language_run: a language model's run whose activations are read; by default the demo model's.
        tell: reports progress.

    Returns:
        JSON values: the table in brief, what was left out and why, and the paths of page and record.

    Raises:
        ConfigError, DataError: a setting or data set cannot be used.
        Interrupted: SIGINT or SIGTERM; finished runs are kept.
    """
    check(seeds >= 2, "seeds", seeds, "at least 2: intervals and cosines are over seeds")
    with locked_folder(out):
        begun = time.perf_counter()
        setting = Setting(out=out, data=SMALLER.get(data, data), seeds=tuple(range(seeds)), quick=quick, tell=tell)
        scale = QUICK if quick else FULL
        try:
            tiers, left_out = run_tiers(setting, scale, language_run)
        except Interrupted as stopped:
            hint = "the same command resumes; finished runs and their measures are kept"
            raise Interrupted(stopped.exit_status - 128, hint) from None
        seconds = round(time.perf_counter() - begun, 1)
        settings = {
            "data": setting.data,
            "seeds": list(setting.seeds),
            "quick": quick,
            "language_run": language_run,
            "scale": scale._asdict(),
        }
        rows = [row for tier in tiers for row in tier.rows]
        grounds = [_ground_record(tier) for tier in tiers]
        write_page(out / PAGE, tiers, left_out, settings, seconds)
        about = {"settings": settings, "grounds": grounds, "left_out": left_out}
        publish_json(out / RECORD, {**about, "rows": record(rows), "seconds": seconds})
    return {
        "table": brief(rows),
        "left_out": left_out or None,
        "page": str(out / PAGE),
        "record": str(out / RECORD),
        "seconds": seconds,
    }


def _ground_record(tier: Tier) -> dict[str, Any]:
    ground = tier.ground
    return {
        "tier": ground.tier,
        "data": ground.data,
        "train_rows": len(ground.train),
        "heldout_rows": len(ground.heldout),
        "dimensions": ground.train.shape[1],
        "matched_bits": [b if b == b else None for b in ground.budgets],
        "pca_curve": [list(point) for point in ground.pca],
    }


def write_page(
    path: Path, tiers: Sequence[Tier], left_out: Mapping[str, str], settings: Mapping[str, Any], seconds: float
) -> None:
    """Write the whole page to `path`."""
    kind = "quick: tests that everything runs" if settings["quick"] else f"{seconds / 60:.0f} minutes"
    about = f"{settings['data']}, {len(settings['seeds'])} seeds; {kind}"
    page = Page("Sparse and image autoencoders on common ground", about)
    page.section("What was compared")
    page.table([_described(tier) for tier in tiers])
    for name, reason in left_out.items():
        page.text(f"Left out: {name}. {reason}")
    page.section("One table")
    for text in (INTERVAL_TEXT, COLUMNS_TEXT, LEADING_TEXT):
        page.text(text)
    pixels = tiers[1]
    if pixels.ground.known is not None and pixels.ground.known.indicators:
        page.text(INDICATORS_TEXT)
    # a row's name comes first: it stays visible if the table is scrolled
    page.table([{"model": row["model"], **row} for tier in tiers for row in table(tier.rows)])
    sections = {
        "FVU against bits": [picture for tier in tiers for picture in rate_pictures(tier.rows, tier.ground)],
        "FVU against L0": sparsity_pictures(pixels.rows),
        "Disentanglement": disentanglement_pictures(pixels.rows, pixels.ground.known),
        "Probes on few latents": probe_pictures(pixels.rows),
        "Atoms at equal FVU": _sheets(pixels),
        "Firing over training": _courses(pixels),
    }
    for title, pictures in sections.items():
        page.section(title, LEADING_TEXT if title == "Disentanglement" else "")
        for picture in pictures:
            page.figure(*picture)
    page.section("Settings")
    page.text(json.dumps(dict(settings)))
    page.write(path)


def _described(tier: Tier) -> dict[str, Any]:
    ground = tier.ground
    bits = " and ".join(number(round(b, 1)) if b == b else "not reached" for b in ground.budgets)
    return {
        "tier": ground.tier,
        "data": ground.data,
        "dimensions": ground.train.shape[1],
        "training rows": len(ground.train),
        "held-out rows": len(ground.heldout),
        "models": len(models(tier.rows)),
        f"PCA's bits for FVU {MATCHED[0]} and {MATCHED[1]}": bits,
    }


def _sheets(tier: Tier) -> list[Picture]:
    """Atoms of models of different families, near a common FVU."""

    def atoms_of(row: Row) -> Tensor | None:
        return coder_of(tier.runs[row.name][0].model, tier.ground.train).atoms

    return atom_pictures([row for row in tier.rows if row.family != "vqvae"], atoms_of, tier.ground.shape)


def _courses(tier: Tier) -> list[Picture]:
    """Firing over time: latents of the runs that were followed, and the mean of every sparse family's first run."""
    pictures = firing_pictures(tier.courses)
    first: dict[str, Row] = {}
    for row in models(tier.rows, True):
        first.setdefault(row.family, row)
    runs = {row.name: tier.runs[row.name][0] for row in first.values()}
    if runs:
        courses = {name: read_metrics(run.folder) for name, run in runs.items()}
        pictures.append(training_picture(courses, {name: run.model.width for name, run in runs.items()}))
    return pictures
