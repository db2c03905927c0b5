"""Sections on atoms and how often they are used."""

from __future__ import annotations

import numpy as np
import torch

from sae.base.colours import diverging
from sae.book.pictures.grids import draw_rows, draw_tiles
from sae.book.pictures.latents import codebook_images, contributions, draw_atoms
from sae.book.report.material import Material
from sae.evaluation.synthetic.metrics import RECOVERED, match
from sae.pictures.charts import draw_histograms, draw_ranked
from sae.pictures.page import Page

ATOMS = 160  # shown at most
PLANTED = 12


def write_atoms(material: Material, page: Page) -> None:
    """Atoms as images, the most used first."""
    if material.family == "quantised":
        return
    use, measure = usage(material)
    order = use.argsort(descending=True, stable=True)
    order = order[use[order] > 0][:ATOMS]
    if not len(order):
        return
    strengths = typical_strengths(material)
    images = contributions(material.model, strengths)[order]
    text = "An atom is what one latent adds to the image."
    if material.model.head is not None:
        text = "What one latent changes in a decoded code of zeros; with other latents active it may differ."
    page.section("Atoms", f"{text} Ordered by {measure}; each on its own scale, purple brighter, orange darker.")
    page.figure(draw_atoms(images, material.shape), f"{len(order)} of {material.model.width} atoms.")


def usage(material: Material) -> tuple[torch.Tensor, str]:
    """How much every latent is used [F], and the measure's name."""
    if material.family == "sparse":
        return material.firing, "firing rate"
    if material.family == "rate":
        return material.codes.double().mean(0), "mean value"
    carried, name = material.ranking
    return carried, name


def typical_strengths(material: Material) -> torch.Tensor:
    """The value at which each latent is shown [F]: mean when it fires, 1 for a rate, else standard deviation."""
    codes = material.codes
    if material.family == "sparse":
        return codes.clamp_min(0).sum(0) / (codes > 0).sum(0).clamp_min(1)
    return torch.ones(codes.shape[1]) if material.family == "rate" else codes.std(0)


def write_firing(material: Material, page: Page) -> None:
    """How often latents fire; how many never do."""
    if material.family != "sparse":
        return
    rate = material.firing.numpy()
    dead = float((rate == 0).mean())
    page.section(
        "Firing rates",
        f"{dead:.1%} of the {len(rate)} latents are dead: they fire in none of {len(material.x):,} held-out images. "
        f"An image has {rate.sum():.1f} active latents on average.",
    )
    live = np.log10(rate[rate > 0])
    if len(live):
        edges = np.linspace(min(-3.0, float(live.min())), 0, 31)
        figure = draw_histograms(
            {"live latents": live}, x="Firing rate (log10 of the share of images)", y="Latents", bins=edges, counts=True
        )
        page.figure(figure, "Live latents by firing rate.")
    figure = draw_ranked(rate, label="Firing rate (share of images)", rank="Latent, by its firing rate")
    page.figure(figure, "All latents.")


def write_rates(material: Material, page: Page) -> None:
    """Mean values of sigmoid latents, which a penalty keeps near a rate."""
    if material.family != "rate":
        return
    rho, rates = material.vision.rate, material.codes.mean(0).numpy()
    page.section(
        "Rates",
        f"The penalty asks every latent for a mean value of ρ = {rho:g}; the median latent has {np.median(rates):.3f}.",
    )
    top = max(3 * rho, float(rates.max()))
    width = max(rho / 10, top / 100)
    edges = np.arange(-0.5, top / width + 1) * width  # ρ in the middle of a bin
    figure = draw_histograms(
        {"latents": rates}, x="Mean value over images", y="Latents", bins=edges, at={f"ρ = {rho:g}": rho}, counts=True
    )
    page.figure(figure, "Latents by their mean value.")
    values = material.codes.flatten().numpy()
    figure = draw_histograms(
        {"values": values}, x="Value of a latent in an image", y="Share", bins=np.linspace(0, 1, 51)
    )
    page.figure(figure, "Single values: a sparse code has most near 0 and few near 1.")


def write_codebook(material: Material, page: Page) -> None:
    """How evenly a codebook is used, and its atoms."""
    if material.family != "quantised":
        return
    book = material.numbers["codebook"]
    shares = torch.tensor(book["shares"])
    page.section(
        "Codebook",
        f"Perplexity {book['perplexity']:.1f} of {book['atoms']} atoms: so many equally used atoms have the same "
        f"entropy. {int((shares == 0).sum())} atoms are never used. An image is {material.model.positions} atoms.",
    )
    figure = draw_ranked(shares.numpy(), label="Share of the places", rank="Atom, by its share")
    page.figure(figure, "Usage of atoms.")
    order = shares.argsort(descending=True, stable=True)[:ATOMS]
    images = material.look(codebook_images(material.model)[order])
    page.figure(
        draw_tiles(images, material.shape, min(16, len(order)), inches=7.0),
        "Every atom in all places at once, decoded, the most used first.",
    )


def write_planted(material: Material, page: Page) -> None:
    """True atoms beside learned ones, if those of the data are known."""
    truth = material.heldout.atoms
    if truth is None or material.model.head is not None or material.family == "quantised":
        return
    pairs = match(material.model.dictionary.W, truth)
    cosine = pairs.cosines.abs()
    page.section(
        "Planted atoms",
        f"The data are sums of {len(truth)} known atoms. Matched one to one: mean |cosine| (MCC) {pairs.mcc:.3f}, "
        f"{(cosine > RECOVERED).float().mean():.0%} over {RECOVERED}.",
    )
    figure = draw_histograms(
        {"pairs": cosine.numpy()}, x="|cosine| of the pair", y="Pairs", bins=np.linspace(0, 1, 41),
        at={f"recovered: over {RECOVERED}": RECOVERED}, counts=True,
    )  # fmt: skip
    page.figure(figure, "Pairs of a planted and a learned atom.")
    order = cosine.argsort(descending=True, stable=True)
    shown = order[torch.linspace(0, len(order) - 1, min(PLANTED, len(order))).long()]
    learned = material.model.dictionary.W[pairs.latents[shown]].detach()
    # an atom and its negative are the same direction: shown with the sign of the planted one
    learned = learned * pairs.cosines[shown].sign().float().unsqueeze(1)
    atoms = {"Planted": truth[pairs.features[shown]], "Learned": learned}
    rows = {name: diverging(a, material.shape, limit=a.abs().amax(1)) for name, a in atoms.items()}
    headings = [f"{value:.2f}" for value in cosine[shown].tolist()]
    page.figure(draw_rows(rows, material.shape, headings=headings, x="|cosine|"), "From the best pair to the worst.")
