"""Sections on reconstructions: denoising, spectra, anomalies."""

from __future__ import annotations

import torch

from sae.base import draws
from sae.base.colours import diverging
from sae.book.measures.anomaly import detect, detect_each
from sae.book.pictures.grids import draw_rows
from sae.book.pictures.spectra import checkerboards_of, draw_checkerboards, draw_spectra, spectra_of
from sae.book.report.material import CHUNK, Material
from sae.data.images import ImageSet
from sae.evaluation.variational import bounds
from sae.models.heads import ConvolutionalHead, TwoLevelHead
from sae.modules.corruption import corrupt
from sae.pictures.charts import draw_bars, draw_histograms
from sae.pictures.lines import Curve, draw_lines
from sae.pictures.page import Page
from sae.runs.images import with_labels

SHOWN = 12
STRIDE = 2  # of every stage of the convolutional heads
NOISE, SCORE = range(2)  # keys of the random streams


def write_reconstructions(material: Material, page: Page) -> None:
    """Images, reconstructions, and the signed error."""
    x, y = material.x[:SHOWN], material.reconstruction[:SHOWN]
    page.section("Reconstructions", "Held-out images, the first of the split and not a selection.")
    limit = (y - x).abs().max().item()
    rows = {"Original": material.look(x), "Reconstruction": material.look(y), "Error": diverging(y - x, material.shape)}
    caption = f"Error is reconstruction less original: purple too bright, orange too dark, ±{limit:.2f} at full colour."
    page.figure(draw_rows(rows, material.shape), caption)


def write_denoising(material: Material, page: Page) -> None:
    """Corrupted images and their reconstructions, at the level of training and at others."""
    vision = material.vision
    if vision.corruption == "none" or vision.corruption_level is None:
        return
    level, kind = vision.corruption_level, vision.corruption.replace("_", " ")
    x = material.x[:SHOWN]
    rows = {"Clean": material.look(x)}
    measured = material.numbers["denoising"]
    levels = [row["level"] for row in measured]
    for at in levels:
        noisy = corrupt(vision.corruption, at, x, draws.generator(0, round(1000 * at), NOISE)).x
        with torch.no_grad():
            cleaned = material.model(noisy).reconstruction
        unseen = "" if at == level else ", unseen"
        rows |= {f"{at:g}{unseen}": material.look(noisy), f"{at:g}, denoised": material.look(cleaned)}
    page.section("Denoising", f"Trained on inputs with {kind} noise of level {level:g}; other levels are unseen.")
    page.figure(draw_rows(rows, material.shape), "Rows by noise level, each with its reconstruction.")
    curves = {
        "denoised": Curve(levels, [row["denoised_psnr"] for row in measured]),
        "noisy": Curve(levels, [row["noisy_psnr"] for row in measured]),
    }
    figure = draw_lines(curves, f"Level of {kind} noise", "PSNR (dB)", at={"trained": level})
    page.figure(figure, "Denoising helps wherever its line is the upper one.")
    names = {
        "level": "Level",
        "noisy_psnr": "PSNR, noisy (dB)",
        "denoised_psnr": "PSNR, denoised (dB)",
        "gain": "Gain (dB)",
    }
    page.table([{name: row[key] for key, name in names.items()} for row in measured])


def write_spectra(material: Material, page: Page) -> None:
    """Power by spatial frequency of data, reconstructions and samples, and the checkerboard."""
    sets = {"data": material.x, "reconstructions": material.reconstruction}
    if material.family == "gaussian":
        z = torch.randn(len(material.x), material.model.width, generator=draws.generator(0, 0, SCORE))
        sets["samples of the prior"] = material.decoded(z)
    if any(images.std(0).max() < 1e-6 and images.std(1).max() < 1e-6 for images in sets.values()):
        return
    spectra = spectra_of(sets, material.shape)
    shares = ", ".join(f"{name} {spectrum.high_share:.3f}" for name, spectrum in spectra.items())
    page.section(
        "Spectra",
        f"Blur is missing power at high frequencies. Share of the power beyond 0.25 cycles a pixel: {shares}.",
    )
    page.figure(draw_spectra(spectra), "Mean power over directions, images and channels.")
    # only convolutional heads have strides
    if isinstance(material.model.head, ConvolutionalHead | TwoLevelHead):
        boards = checkerboards_of(sets, material.shape, STRIDE)
        caption = "A checkerboard is a pattern that all images share, repeated every 2 pixels; the data have one, too."
        page.figure(draw_checkerboards(boards, STRIDE), caption)


def write_anomalies(material: Material, page: Page) -> None:
    """Scores of images whose labels the run was not trained on."""
    only = material.run.config.only_label
    if only is None or material.labels is None:
        return
    normal = usual_labels(material.heldout, only)
    score, name = anomaly_scores(material)
    labels, names = material.labels, material.label_names
    unusual = torch.isin(torch.from_numpy(labels), torch.tensor(normal), invert=True).numpy()
    whole = detect(score, unusual)
    page.section(
        "Anomalies",
        f"Trained on the labels {', '.join(names[n] for n in normal)} alone; all others are anomalies. AUROC "
        f"{whole.auroc:.3f} (0.5 is chance, less is the wrong way round), average precision "
        f"{whole.average_precision:.3f} with anomalies {whole.share:.0%} of the images.",
    )
    histograms = {"normal": score[~unusual].numpy(), "anomalous": score[unusual].numpy()}
    page.figure(draw_histograms(histograms, x=name, y="Share of the images"), "Scores of held-out images.")
    each = detect_each(score, labels, normal)
    bars = {f"label {names[label]}": result.auroc for label, result in each.items()}
    figure = draw_bars(bars, label="AUROC against the normal labels", reference=("chance", 0.5))
    page.figure(figure, "One class of anomalies at a time.")


def usual_labels(images: ImageSet, only: str) -> list[int]:
    """The label numbers of `images` that a run with --only-label `only` was trained on."""
    labels = with_labels(images, only).labels
    assert labels is not None
    return sorted(labels.unique().tolist())


def anomaly_scores(material: Material) -> tuple[torch.Tensor, str]:
    """A score of every held-out image, high if it is unlike the training images, and its name with the unit."""
    if material.family == "gaussian":
        parts = [
            bounds(material.model, material.vision, x, samples=0, generator=draws.generator(0, i, SCORE)).elbo
            for i, x in enumerate(material.x.split(CHUNK))
        ]
        return -torch.cat(parts), "-ELBO (nats an image)"
    return (material.x - material.reconstruction).square().sum(1), "Squared error of an image"
