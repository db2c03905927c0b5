"""The page: what was done, the table, the pictures, and how to read them.

write_page(out / "comparison.html", tiers, left_out, settings, seconds)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae.base.tables import number
from sae.book.chapter.base import Picture
from sae.book.chapter.measure import mean_of
from sae.book.comparison.coders import coder_of
from sae.book.comparison.figures import (
    atom_pictures,
    disentanglement_picture,
    factor_pictures,
    firing_pictures,
    is_sparse,
    models,
    probe_pictures,
    rate_pictures,
    sparsity_picture,
    training_picture,
)
from sae.book.comparison.grounds import MATCHED
from sae.book.comparison.measures import SLACK
from sae.book.comparison.table import Row, table
from sae.book.comparison.tiers import Tier
from sae.book.pictures.page import Page
from sae.runs.images import ImageRun
from sae.training.logging import read_metrics

SHEETS = 4  # models whose atoms are shown

COLUMNS_TEXT = (
    "All measures are taken on held-out rows. Bits: one procedure for every code (quantise each latent, entropy-code "
    "it under its histogram on training rows, decode the quantised code), at the coarsest quantiser whose FVU is at "
    f"most the code's own plus {SLACK}; native bits are the code's own account (KL from the prior of a variational "
    "one, log2 of a codebook's size for every place). FVU at low and high rate: at the bits at which PCA reaches FVU "
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
    "interval. Seconds an epoch are of this machine as busy as it was."
)
LEADING_TEXT = (
    "DCI-D and modularity lead among the measures of disentanglement, on live latents: they ask whether a latent means "
    "one thing. MIG and DCI-C ask whether a thing has one latent, which an overcomplete sparse code denies by "
    "construction: its latents can each mean one thing and still score near 0 there, since many share a factor."
)
INDICATORS_TEXT = (
    "This set has labels and no factors: disentanglement is measured against an indicator of every class. An image is "
    "of one class alone, so these indicators are no independent causes."
)


def write_page(
    path: Path, tiers: Sequence[Tier], left_out: Mapping[str, str], settings: Mapping[str, Any], seconds: float
) -> None:
    """Write the whole page to `path`."""
    kind = "quick: a test of the way, not of who is better" if settings["quick"] else f"{seconds / 60:.0f} minutes"
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
    # a row's name comes first: it stays in sight where the table is scrolled
    page.table([{"model": row["model"], **row} for tier in tiers for row in table(tier.rows)])
    page.section("FVU against bits")
    for tier in tiers:
        _show(page, rate_pictures(tier.rows, tier.ground))
    page.section("FVU against L0")
    _show(page, [sparsity_picture(pixels.rows)])
    page.section("Disentanglement")
    page.text(LEADING_TEXT)
    _show(page, [disentanglement_picture(pixels.rows)])
    if pixels.ground.known is not None:
        _show(page, factor_pictures(pixels.rows, pixels.ground.known))
    page.section("Probes on few latents")
    _show(page, probe_pictures(pixels.rows))
    page.section("Atoms at equal FVU")
    _show(page, _sheets(pixels))
    page.section("Firing over training")
    _show(page, _courses(pixels))
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


def _show(page: Page, pictures: Sequence[Picture | None]) -> None:
    for picture in pictures:
        if picture is not None:
            page.figure(picture.figure, picture.caption, vector=picture.vector)


def _sheets(tier: Tier) -> list[Picture]:
    """Atoms of models of different families, each the one of its family nearest to a common FVU."""
    shape = tier.ground.shape
    chosen = [row for row in models(tier.rows) if row.name in tier.runs and row.family != "vqvae"]
    if shape is None or not chosen:
        return []
    target = _common_fvu(chosen)
    nearest: dict[str, Row] = {}
    for row in sorted(chosen, key=lambda row: abs(_fvu(row) - target)):
        nearest.setdefault(row.family, row)
    sparse = [row for row in nearest.values() if is_sparse(row)][: SHEETS // 2]
    dense = [row for row in nearest.values() if not is_sparse(row)][: SHEETS // 2]
    found = {}
    for row in (*sparse, *dense):
        atoms = coder_of(tier.runs[row.name][0].model, tier.ground.train).atoms
        if atoms is not None:
            found[row.name] = (row, atoms)
    return atom_pictures(found, shape, target)


def _common_fvu(rows: Sequence[Row]) -> float:
    """An FVU that sparse and dense models both come near: of all sparse ones', that with the nearest dense one."""
    sparse, dense = ([_fvu(row) for row in rows if is_sparse(row) == kind] for kind in (True, False))
    if not sparse or not dense:
        return (sparse or dense)[0]
    return min(sparse, key=lambda fvu: min(abs(fvu - other) for other in dense))


def _fvu(row: Row) -> float:
    return mean_of(row.spread("fvu") or float("nan"))


def _courses(tier: Tier) -> list[Picture]:
    """Firing over time: latents of the runs that were followed, and the mean of the first of every sparse family."""
    pictures = firing_pictures(tier.courses)
    first: dict[str, ImageRun] = {}
    families: set[str] = set()
    for row in models(tier.rows):
        if is_sparse(row) and row.family not in families:
            families.add(row.family)
            first[row.name] = tier.runs[row.name][0]
    if first:
        courses = {name: read_metrics(run.folder) for name, run in first.items()}
        pictures.append(training_picture(courses, {name: run.model.width for name, run in first.items()}))
    return pictures
