"""The three tiers one after the other: planted atoms, pixels, activations.

tiers, left_out = run_tiers(setting, QUICK, language_run=None)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sae.book.chapter.base import Setting
from sae.book.comparison.coders import coder_of
from sae.book.comparison.controls import ceiling_and_floor, pca_controls, random_controls
from sae.book.comparison.courses import Moment, firing_over_time
from sae.book.comparison.grounds import Ground, ground_of, pixel_ground, planted_ground
from sae.book.comparison.language import LanguageRows, language_rows
from sae.book.comparison.measures import Row, measure
from sae.book.comparison.members import Tour, control_path, control_rows, image_rows, kept_or_made, rows_on_rows
from sae.book.comparison.plan import (
    PLANTED_K,
    PLANTED_WIDTH,
    Scale,
    pixel_members,
    planted_members,
    row_members,
)
from sae.runs.images import ImageRun

READ_BY_SAES = ("ae", "vae")  # variants whose stems the third tier reads
FOLLOWED = ("topk", "relu")  # variants whose firing rates are followed over a training: the last setting of each
IMAGE_K, LANGUAGE_K = 8, 32
LANGUAGE_BATCH, IMAGE_BATCH = 1024, 128
SMALL_PCA, DENSE = 8, 32  # components of the two rows of PCA, and latents of the random projection
HISTOGRAM_ROWS = 12_000  # training rows of a language model for medians and histograms of codes


class Tier(NamedTuple):
    """One tier's rows."""

    ground: Ground
    rows: list[Row]
    runs: Mapping[str, Sequence[ImageRun]]
    """Runs on images by the row's name, seed by seed; empty for activations."""
    courses: Mapping[str, Sequence[Moment]]
    """Firing along a training, by name."""


def run_tiers(setting: Setting, scale: Scale, language_run: str | None) -> tuple[list[Tier], dict[str, str]]:
    """Train and measure all models.

    Returns:
        The tiers, and for every tier that was left out the reason.
    """
    quick = setting.quick
    scratch = setting.out / "runs" / "harvest"
    # first, since only this can fail for lack of data
    language = language_rows(language_run, tokens=scale.tokens, quick=quick, scratch=scratch)
    planted, pixels = planted_ground(scale), pixel_ground(setting.data, scale)
    readers = READ_BY_SAES[: 1 if quick else None]
    count = len(planted_members(quick=quick)) + len(pixel_members(pixels.shape, quick=quick))
    count += len(readers) * len(row_members(1, k=1, quick=quick))
    count += len(row_members(1, k=1, quick=quick)) * isinstance(language, LanguageRows)
    tour = Tour(setting, count * len(setting.seeds))
    tiers = [_planted(tour, planted, scale), _pixels(tour, pixels, scale)]
    tiers += [_on_encoder(tour, tiers[1], variant, scale) for variant in readers]
    if isinstance(language, str):
        return tiers, {"language-model activations": language}
    return [*tiers, _on_language_model(tour, language, scale)], {}


def _planted(tour: Tour, ground: Ground, scale: Scale) -> Tier:
    members = planted_members(quick=tour.setting.quick)
    rows, runs = image_rows(tour, ground, members, epochs=scale.planted_epochs, limit=scale.planted)
    rows += _controls(tour, ground, width=PLANTED_WIDTH, k=PLANTED_K, dense=PLANTED_WIDTH)
    return Tier(ground, rows, runs, {})


def _pixels(tour: Tour, ground: Ground, scale: Scale) -> Tier:
    members = pixel_members(ground.shape, quick=tour.setting.quick)
    epochs = scale.epochs(*ground.train.shape)
    rows, runs = image_rows(tour, ground, members, epochs=epochs, limit=scale.images)
    width = 64 if tour.setting.quick else 256
    rows += _controls(tour, ground, width=width, k=IMAGE_K, dense=DENSE)
    coder = coder_of(next(of_name for name, of_name in runs.items() if name.startswith("topk"))[0].model, ground.train)
    ends, _ = kept_or_made(
        control_path(tour, ground, "ends", 0),
        ground,
        0,
        lambda: ceiling_and_floor(coder.encode(ground.heldout), coder.encode(ground.train), ground, seed=0),
    )
    rows += [Row(ground.tier, ground.data, name, "control", [measured]) for name, measured in ends.items()]
    followed = FOLLOWED[: 1 if tour.setting.quick else None]
    courses = {
        member.name: firing_over_time(tour.setting, ground, member, epochs=epochs, limit=scale.images)
        for variant in followed
        for member in [m for m in members if m.family == variant][-1:]
    }
    return Tier(ground, rows, runs, courses)


def _controls(tour: Tour, ground: Ground, *, width: int, k: int, dense: int) -> list[Row]:
    """Untrained encoders, a row each over all seeds, and PCA."""
    pca = control_rows(tour, ground, lambda seed: pca_controls(ground, (SMALL_PCA, dense)), seeds=(0,), family="PCA")
    random = control_rows(
        tour,
        ground,
        lambda seed: random_controls(ground, width=width, k=k, dense=dense, seed=seed),
        seeds=tour.setting.seeds,
        family="control",
    )
    return pca + random


def _on_encoder(tour: Tour, pixels: Tier, variant: str, scale: Scale) -> Tier:
    """Sparse autoencoders on the outputs of the stem of a variant's widest model, of seed 0."""
    named = [name for name in pixels.runs if name.startswith(f"{variant}-")][-1]
    run, ground = pixels.runs[named][0], pixels.ground
    train, heldout = (run.model.embed(x).detach() for x in (ground.train, ground.heldout))
    data = f"{ground.data}, {named}'s stem"
    embedded = ground_of("encoder activations", data, train, heldout, labels=ground.labels, known=ground.known)
    members = row_members(train.shape[1], k=IMAGE_K, quick=tour.setting.quick)
    provenance = {"name": data, "encoder": run.record["autoencoder"]["sha256"], "images": run.record["data"]}
    how = {"epochs": scale.epochs(*train.shape), "batch": IMAGE_BATCH}
    rows = rows_on_rows(tour, embedded, train, provenance, members, **how)
    rows += control_rows(
        tour, embedded, lambda seed: pca_controls(embedded, (SMALL_PCA, DENSE)), seeds=(0,), family="PCA"
    )
    return Tier(embedded, rows, {}, {})


def _on_language_model(tour: Tour, language: LanguageRows, scale: Scale) -> Tier:
    ground = ground_of("language-model activations", language.source, language.train[:HISTOGRAM_ROWS], language.heldout)
    members = row_members(language.train.shape[1], k=LANGUAGE_K, quick=tour.setting.quick)
    how = {"epochs": scale.token_epochs, "batch": min(LANGUAGE_BATCH, len(language.train) // 8)}
    rows = rows_on_rows(tour, ground, language.train, language.provenance, members, **how)
    if language.model is not None:
        coder = coder_of(language.model, ground.train)
        rows.append(Row(ground.tier, ground.data, "the run named", "given", [measure(coder, ground)]))
    rows += control_rows(tour, ground, lambda seed: pca_controls(ground, (DENSE,)), seeds=(0,), family="PCA")
    return Tier(ground, rows, {}, {})
