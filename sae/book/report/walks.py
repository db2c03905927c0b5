"""Moves through the space of codes: interpolation, arithmetic with labels, samples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from sae.base import draws
from sae.book.pictures.grids import draw_rows, draw_tiles
from sae.book.pictures.latents import arithmetic, draw_interpolation
from sae.book.pictures.page import Page
from sae.book.report.material import Material

PAIRS = 2
EXAMPLES = 3  # of arithmetic
SAMPLES = 60
COMPONENTS = 10  # of the mixture fitted to an autoencoder's codes
PRIOR, MIXTURE = range(2)  # what random numbers are drawn for


def write_interpolation(material: Material, page: Page) -> None:
    """The chapter's five steps between pairs of images of different labels."""
    if material.family == "quantised" or not material.decodes_codes:
        return
    page.section(
        "Interpolation",
        "From one held-out image to another at the chapter's five α, along a line and along an arc between the two "
        "codes' means. Blended pixels are what an interpolation has to beat: two faint images on top of each other.",
    )
    for start, end in pairs(material, PAIRS):
        chosen = [start, end]
        figure = draw_interpolation(
            material.model, material.shape, material.x[chosen], material.codes[chosen], look=material.look
        )
        page.figure(figure, f"Held-out images {start} and {end}{_labels_of(material, chosen)}.")


def pairs(material: Material, count: int) -> list[tuple[int, int]]:
    """The first image and the next one of another label, the first after it, and so on."""
    labels = np.arange(len(material.x)) if material.labels is None else material.labels
    found: list[tuple[int, int]] = []
    start = 0
    while len(found) < count:
        others = np.flatnonzero(labels[start + 1 :] != labels[start])
        if not len(others):
            break
        end = start + 1 + int(others[0])
        found.append((start, end))
        start = end + 1
        if start >= len(labels) - 1:
            break
    return found


class Example(NamedTuple):
    """One sum of codes: the mean of label `plus`, less that of `minus`, plus the code of an image of `minus`."""

    plus: int
    minus: int
    image: int


def write_arithmetic(material: Material, page: Page) -> None:
    """z_a - z_b + z_c, with the mean codes of two labels and one image."""
    found = examples(material)
    if material.family == "quantised" or not material.decodes_codes or not found:
        return
    assert material.labels is not None
    kinds, names, codes = torch.from_numpy(material.labels), material.label_names, material.codes
    rows = {}
    for plus, minus, image in found:
        sums = torch.stack(
            [
                codes[kinds == plus].mean(0),
                codes[kinds == minus].mean(0),
                codes[image],
                arithmetic(codes, kinds, codes[image], minus, plus),
            ]
        )
        rows[f"a = {names[plus]}, b = {names[minus]}"] = material.look(material.decoded(sums))
    page.section(
        "Arithmetic on codes",
        "Mean code of label a, less that of label b, plus the code of one image c of label b: where directions "
        "mean something, c turns into label a and keeps its style.",
    )
    figure = draw_rows(rows, material.shape, headings=["mean a", "− mean b", "+ c", "= result"])
    page.figure(figure, "All four are decoded codes.")


def examples(material: Material) -> list[Example]:
    """Sums over labels next to each other, each with the first image of the label that is taken away."""
    if material.labels is None:
        return []
    there = np.unique(material.labels).tolist()
    if len(there) < 2:
        return []
    found = zip(there[1:] + there[:1], there, strict=True)
    return [Example(a, b, int(np.flatnonzero(material.labels == b)[0])) for a, b in found][:EXAMPLES]


def write_samples(material: Material, page: Page) -> None:
    """New images: from the prior, or, where there is none, from what is fitted to the codes."""
    if material.family not in ("gaussian", "dense") or not material.decodes_codes:
        return
    z = torch.randn(SAMPLES, material.model.width, generator=draws.generator(0, PRIOR))
    if material.family == "gaussian":
        page.section("Samples", "Codes drawn from the prior N(0, 1), decoded.")
        _draw(material, page, z, "Samples of the prior.")
        return
    page.section(
        "Samples",
        "This autoencoder has no prior: nothing makes its codes lie as N(0, 1) does. A mixture of Gaussians fitted to "
        "the codes is drawn from beside it.",
    )
    _draw(material, page, z, "Codes from N(0, 1), which nothing made fit.")
    _draw(material, page, from_mixture(material.codes, SAMPLES), "Codes from the fitted mixture.")


def from_mixture(codes: Tensor, count: int) -> Tensor:
    """`count` draws from a mixture of full Gaussians fitted to codes [n, F] (expectation maximisation): [count, F]."""
    spread = codes.var(0).mean().item()
    components = max(1, min(COMPONENTS, len(codes) // (2 * codes.shape[1])))
    # a floor on the variances keeps a component from closing in on one image
    mixture = GaussianMixture(components, reg_covar=max(1e-3 * spread, 1e-9), random_state=MIXTURE)
    points, _ = mixture.fit(codes.double().numpy()).sample(count)
    order = np.random.default_rng(0).permutation(count)  # they come sorted by component
    return torch.from_numpy(points[order]).float()


def _draw(material: Material, page: Page, codes: Tensor, caption: str) -> None:
    page.figure(draw_tiles(material.look(material.decoded(codes)), material.shape, 15, inches=7.0), caption)


def _labels_of(material: Material, chosen: list[int]) -> str:
    if material.labels is None:
        return ""
    return f", labels {' and '.join(material.label_names[material.labels[i]] for i in chosen)}"
