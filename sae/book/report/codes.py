"""Sections on latents and the space of codes.

Which are active, what each changes, where images lie, what they tell about factors; interpolation, arithmetic, samples.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor

from sae.base import draws
from sae.base.tables import number
from sae.book.measures.disentanglement import live_latents, mig_of, modularity_of, mutual_information
from sae.book.pictures.grids import draw_rows, draw_tiles
from sae.book.pictures.latents import (
    arithmetic,
    draw_interpolation,
    draw_plane,
    draw_traversals,
    normal_quantiles,
    sample_quantiles,
    typical,
)
from sae.book.report.material import Material
from sae.evaluation.variational import ACTIVE_VARIANCE
from sae.pictures.charts import draw_activity, draw_heatmap, draw_scatter
from sae.pictures.page import Page

ROWS = 12  # latents shown
STEPS = 9  # images a traversal
SIDE = 20  # of the plane of two latents
SPREAD = 3.0  # standard deviations of the prior, to both sides
PAIRS = 2
EXAMPLES = 3  # of arithmetic
SAMPLES = 60
COMPONENTS = 10  # of the mixture fitted to an autoencoder's codes
PRIOR, MIXTURE = range(2)  # keys of the random streams


def write_activity(material: Material, page: Page) -> None:
    """KL by latent of Gaussian codes."""
    if material.family != "gaussian":
        return
    latents = material.activity
    page.section(
        "Active latents",
        f"{latents.active} of {len(latents.kl)} latents are active: the variance of their mean over images is more "
        f"than {ACTIVE_VARIANCE}; others have collapsed onto the prior. Together they have {latents.kl.sum():.2f} "
        "nats.",
    )
    page.figure(draw_activity(latents), "Mean KL of every latent from the prior.")


def write_traversals(material: Material, page: Page) -> None:
    """One latent at a time, those that carry the most first."""
    if material.family == "quantised" or not material.decodes_codes:
        return
    latents = traversed(material)
    if not latents:
        return
    values, headings, x = traversal_values(material, latents)
    carried, unit = material.ranking
    names = [f"z {latent}  ({number(carried[latent].item())})" for latent in latents]
    code = material.codes[typical(material.codes)]
    figure = draw_traversals(
        material.model, material.shape, code, latents, values,
        names=names, headings=headings, x=x, look=material.look,
    )  # fmt: skip
    page.section(
        "Traversals",
        "Each row changes one latent of the held-out image whose code is nearest to the mean code. "
        f"Rows are ordered by the latent's {unit}, in brackets.",
    )
    page.figure(figure, f"{len(latents)} of {material.codes.shape[1]} latents.")


def traversed(material: Material) -> list[int]:
    """The latents to traverse: of those that vary at all, those that carry the most."""
    carried, _ = material.ranking
    order = carried.argsort(descending=True, stable=True)[:ROWS].tolist()
    return [latent for latent in order if carried[latent] > 0]


def traversal_values(material: Material, latents: list[int]) -> tuple[torch.Tensor, list[str], str]:
    """The values that latents are set to [L, STEPS], with the columns' headings and their name."""
    if material.family == "gaussian":
        line = torch.linspace(-SPREAD, SPREAD, STEPS)
        headings = [f"{value:g}" for value in line.tolist()]
        return line.repeat(len(latents), 1), headings, "Value (standard deviations of the prior)"
    codes = material.codes[:, latents]
    if material.family == "sparse":
        # from off to a value exceeded by one active image in a hundred
        top = torch.stack([torch.quantile(column[column > 0], 0.99) for column in codes.T])
        share = torch.linspace(0, 1, STEPS)
        return top.unsqueeze(1) * share, [f"{s:.0%}" for s in share.tolist()], "Value (share of the 99% quantile)"
    share = torch.linspace(0.01, 0.99, STEPS)
    return torch.quantile(codes, share, dim=0).T, [f"{s:.0%}" for s in share.tolist()], "Value (quantile over images)"


def write_plane(material: Material, page: Page) -> None:
    """The plane of two latents, decoded at equal shares of the prior or of the codes."""
    if material.codes.shape[1] != 2 or material.family == "quantised" or not material.decodes_codes:
        return
    if material.family == "gaussian":
        across = down = normal_quantiles(SIDE)
        of, text = "quantiles of the prior", "Equal steps are equal shares of N(0, 1)."
    else:
        across, down = (sample_quantiles(column, SIDE) for column in material.codes.T)
        of, text = "quantiles of the codes", "Equal steps are equal shares of the held-out codes, latent by latent."
    figure = draw_plane(
        material.model, material.shape, across, down, x=f"z 0 ({of}) →", y=f"z 1 ({of}) →", look=material.look
    )
    page.section("The plane of codes", text)
    page.figure(figure, f"{SIDE} x {SIDE} codes, decoded.")


def write_scatter(material: Material, page: Page) -> None:
    """Codes of images: both latents if there are two, else the first two principal components."""
    codes = material.codes
    if codes.shape[1] < 2 or material.family == "quantised" or codes.std(0).max() == 0:
        return
    if codes.shape[1] == 2:
        points, x, y, text = codes.numpy(), "z 0", "z 1", "The two latents of held-out images."
    else:
        pca = PCA(2, random_state=0).fit(codes.numpy())
        points = pca.transform(codes.numpy())
        x, y = (f"Principal component {i + 1} ({share:.0%} of the codes' variance)"
                for i, share in enumerate(pca.explained_variance_ratio_))  # fmt: skip
        text = "Codes of held-out images on their first two principal components."
    page.section("Where images lie", text)
    figure = draw_scatter(points, material.labels, material.label_names, x=x, y=y, legend_title="Label")
    page.figure(figure, "One mark per image." if material.labels is None else "One mark per image, by its label.")


def write_information(material: Material, page: Page) -> None:
    """The information of latents about factors."""
    images = material.heldout
    if images.factors is None or images.factor_values is None:
        return
    values = images.factor_values(torch.arange(images.count)).numpy()
    varying = [k for k in range(values.shape[1]) if len(np.unique(values[:, k])) > 1]
    if len(varying) < 2:
        return
    factors, names = values[:, varying], [images.factors.names[k] for k in varying]
    matrix, entropies = mutual_information(material.codes, factors)
    share = matrix / entropies
    shuffled = factors[np.random.default_rng(0).permutation(len(factors))]
    chance = (mutual_information(material.codes, shuffled).matrix / entropies).mean(0)
    best = np.argsort(-share.max(1), kind="stable")[:ROWS]
    live = matrix[live_latents(material.codes)]
    page.section(
        "What latents tell about factors",
        "Mutual information of latent and factor over the factor's entropy, in 20 bins (Locatello et al. 2019). "
        f"MIG {mig_of(matrix, entropies):.3f}, modularity of the latents that vary {modularity_of(live):.3f}, from "
        f"{images.count:,} held-out images.",
    )
    figure = draw_heatmap(
        np.concatenate([share[best], chance[None]]),
        rows=[*(f"z {latent}" for latent in best), "shuffled"],
        columns=names,
        label="Share of the factor's entropy",
        limits=(0.0, max(0.5, float(share.max()))),
    )
    page.figure(figure, "Rows by their largest share; the last is a mean latent against factors of other images.")


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
