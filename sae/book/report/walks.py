"""Sections on the space of codes: interpolation, arithmetic with labels, samples."""

from __future__ import annotations

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
PRIOR, MIXTURE = range(2)  # keys of the random streams


def write_interpolation(material: Material, page: Page) -> None:
    """The chapter's five steps between pairs of images of different labels."""
    if material.family == "quantised" or not material.decodes_codes:
        return
    page.section(
        "Interpolation",
        "From one held-out image to another at the chapter's five α, along a line and along an arc between the two "
        "codes' means. Compare it with blended pixels: two faint images on top of each other.",
    )
    for start, end in pairs(material, PAIRS):
        rows, names = [start, end], ""
        if material.labels is not None:
            names = f", labels {' and '.join(material.label_names[label] for label in material.labels[rows])}"
        x, codes = material.x[rows], material.codes[rows]
        figure = draw_interpolation(material.model, material.shape, x, codes, look=material.look)
        page.figure(figure, f"Held-out images {start} and {end}{names}.")


def pairs(material: Material, count: int) -> list[tuple[int, int]]:
    """The first image and the next one of another label, the first after it, and so on."""
    labels = np.arange(len(material.x)) if material.labels is None else material.labels
    chain: list[tuple[int, int]] = []
    start = 0
    while len(chain) < count and start < len(labels) - 1:
        others = np.flatnonzero(labels[start + 1 :] != labels[start])
        if not len(others):
            break
        end = start + 1 + int(others[0])
        chain.append((start, end))
        start = end + 1
    return chain


def write_arithmetic(material: Material, page: Page) -> None:
    """z_a - z_b + z_c, with the mean codes of two labels and one image of label b."""
    labels = [] if material.labels is None else np.unique(material.labels).tolist()
    if material.family == "quantised" or not material.decodes_codes or len(labels) < 2:
        return
    kinds, names, codes = torch.as_tensor(material.labels), material.label_names, material.codes
    rows = {}
    for a, b in list(zip(labels[1:] + labels[:1], labels, strict=True))[:EXAMPLES]:
        c = codes[kinds == b][0]
        sums = [codes[kinds == a].mean(0), codes[kinds == b].mean(0), c, arithmetic(codes, kinds, c, b, a)]
        rows[f"a = {names[a]}, b = {names[b]}"] = material.look(material.decoded(torch.stack(sums)))
    page.section(
        "Arithmetic on codes",
        "Mean code of label a, less that of label b, plus the code of one image c of label b: if directions have a "
        "meaning, c turns into label a and keeps its style.",
    )
    figure = draw_rows(rows, material.shape, headings=["mean a", "− mean b", "+ c", "= result"])
    page.figure(figure, "All four are decoded codes.")


def write_samples(material: Material, page: Page) -> None:
    """New images: from the prior, or, if there is none, from a density fitted to the codes."""
    if material.family not in ("gaussian", "dense") or not material.decodes_codes:
        return
    z = torch.randn(SAMPLES, material.model.width, generator=draws.generator(0, PRIOR))
    if material.family == "gaussian":
        page.section("Samples", "Codes drawn from the prior N(0, 1), decoded.")
        _draw(material, page, z, "Samples of the prior.")
        return
    page.section(
        "Samples",
        "This autoencoder has no prior: its codes need not be distributed as N(0, 1). Beside N(0, 1), codes are drawn "
        "from a mixture of Gaussians fitted to them.",
    )
    _draw(material, page, z, "Codes from N(0, 1).")
    _draw(material, page, from_mixture(material.codes, SAMPLES), "Codes from the fitted mixture.")


def from_mixture(codes: Tensor, count: int) -> Tensor:
    """`count` draws from a mixture of full Gaussians fitted to codes [n, F] (expectation maximisation): [count, F]."""
    spread = codes.var(0).mean().item()
    components = max(1, min(COMPONENTS, len(codes) // (2 * codes.shape[1])))
    # a floor on the variances keeps a component from collapsing onto one image
    mixture = GaussianMixture(components, reg_covar=max(1e-3 * spread, 1e-9), random_state=MIXTURE)
    points, _ = mixture.fit(codes.double().numpy()).sample(count)
    order = np.random.default_rng(0).permutation(count)  # scikit-learn sorts them by component
    return torch.from_numpy(points[order]).float()


def _draw(material: Material, page: Page, codes: Tensor, caption: str) -> None:
    page.figure(draw_tiles(material.look(material.decoded(codes)), material.shape, 15, inches=7.0), caption)
