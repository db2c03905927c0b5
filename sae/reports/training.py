"""The run's numbers with their intervals, and how its loss fell."""

from __future__ import annotations

from typing import Any

from sae.pictures.lines import Curve, draw_lines
from sae.pictures.page import Page
from sae.reports.material import Material
from sae.training.logging import read_metrics

MEANINGS = {
    "fvu": ("FVU", "share of the pixels' variance that is not explained; 0 is exact, 1 is the mean image"),
    "psnr": ("PSNR", "peak signal to noise ratio, dB"),
    "cosine": ("Cosine", "mean cosine of image and reconstruction"),
    "norm_ratio": ("Norm ratio", "mean length of a reconstruction over its image's"),
    "reconstruction_bias": ("Reconstruction bias", "1 where reconstructions are not shrunk"),
    "relative_error": ("Relative error", "squared error over squared pixels"),
    "l0": ("L0", "latents other than zero, an image"),
    "dead": ("Dead", "share of the latents that never fired"),
    "baselines.pca_fvu": ("FVU of PCA", "with as many components as the next row says"),
    "baselines.pca_components": ("PCA components", "as many as a code has numbers"),
    "baselines.pca_components_for_same_fvu": ("PCA components for the same FVU", "as many as PCA needs"),
    "bounds.nll": ("-log p(x|z)", "nats an image, one draw"),
    "bounds.kl": ("KL from the prior", "nats an image"),
    "bounds.elbo": ("ELBO", "nats an image, below log p(x)"),
    "bounds.importance": ("Importance-weighted bound", "nats an image, between the ELBO and log p(x)"),
    "bounds.bits_per_dim": ("Bits a number", "of the better bound"),
    "latents.active": ("Active latents", "whose mean has a variance over 0.01"),
    "codebook.perplexity": ("Perplexity", "atoms in use, were all used alike"),
    "codebook.atoms": ("Atoms", ""),
    "parameters": ("Parameters", ""),
    "images": ("Images", "held out, behind these numbers"),
}
WIDE = 20  # largest value over least, from which on an axis is logarithmic
OF_SPARSE = ("l0", "dead")  # say nothing where every latent always has a value


def write_numbers(material: Material, page: Page) -> None:
    """A table of eval.json."""
    page.section("Numbers", "On held-out images; in brackets the 95% interval over images.")
    rows = []
    for key, (name, meaning) in MEANINGS.items():
        value = _at(material.numbers, key)
        if value is not None and (key not in OF_SPARSE or material.family == "sparse"):
            rows.append({"Measure": name, "Value": value, "Meaning": meaning})
    page.table(rows)


def write_loss(material: Material, page: Page) -> None:
    """The loss by images seen, whole and in its terms, and the training batches' FVU."""
    lines = read_metrics(material.run.folder)
    if not lines:
        return
    seen = [line["images"] for line in lines]
    page.section("Training", "Means over batches, between two lines of the log.")
    unit = "Squared error" if material.vision.likelihood == "squared_error" else "Nats"
    loss = {"loss": Curve(seen, [line["loss"] for line in lines], "-")}
    _draw(page, loss, f"{unit} an image", "Loss: the sum of its terms by their weights.")
    parts = {
        name.replace("_", " "): Curve(seen, [line["parts"][name] for line in lines], "-") for name in lines[0]["parts"]
    }
    if len(parts) > 1:
        _draw(page, parts, "Term, an image", "Its terms, before their weights.")
    fvu = {"training batches": Curve(seen, [line["fvu"] for line in lines], "-")}
    held = _at(material.numbers, "fvu")
    if held is not None:
        fvu["held out, at the end"] = Curve([seen[-1]], [held], "o")
    caption = "Variance not explained; training batches have their noise in, of inputs and of codes."
    _draw(page, fvu, "FVU", caption)


def _draw(page: Page, curves: dict[str, Curve], y: str, caption: str) -> None:
    """Curves over images seen; on a logarithmic axis where they span more than that."""
    values = [v["value"] if isinstance(v, dict) else v for curve in curves.values() for v in curve.y]
    wide = min(values) > 0 and max(values) > WIDE * min(values)
    page.figure(draw_lines(curves, "Images seen", y, log_y=wide), caption, vector=True)


def _at(numbers: dict[str, Any], key: str) -> Any:
    found: Any = numbers
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found
