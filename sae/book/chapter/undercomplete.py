"""What an autoencoder is: the chapter's 784-256-64-256-784 network, and the linear one, which is PCA."""

from __future__ import annotations

import torch

from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained_by_seed
from sae.book.chapter.measure import (
    fvu,
    fvu_of_runs,
    mean_of,
    over_seeds,
    pca_reconstruction,
    reconstructed,
    split_images,
)
from sae.book.chapter.networks import CHAPTER_LATENTS, chapter_networks
from sae.book.pictures.grids import draw_rows
from sae.book.pictures.lines import Curve, draw_lines
from sae.config import OptimConfig, VisionConfig
from sae.evaluation.baselines import PCA
from sae.training.logging import read_metrics

SHOWN = 12  # images in a row of a picture
LINEAR_K = 10


@experiment("undercomplete", rows=(1,), title="An autoencoder copies its input through a bottleneck")
def undercomplete(setting: Setting) -> Finding:
    """784-256-64-256-784, squared error (the chapter's figure)."""
    _, heldout = split_images(setting.data)
    runs = chapter_networks(setting)
    error = fvu_of_runs(runs, heldout.x)
    parameters = sum(p.numel() for p in runs[0].model.parameters())
    steps, losses = ([line[name] for line in read_metrics(runs[0].folder)] for name in ("step", "loss"))
    shown, pixels = heldout.x[:SHOWN], heldout.x.shape[1]
    rebuilt = reconstructed(runs[0], shown)
    images = {"original": shown, "reconstruction": rebuilt, "error": (shown - rebuilt).abs()}
    text = (
        f"The chapter's network, {pixels} pixels to 256 to {CHAPTER_LATENTS} latents and back, has {parameters:,} "
        f"parameters. Trained for {runs[0].config.epochs} epochs to reproduce its input, it leaves "
        f"{mean_of(error):.1%} of the variance of held-out images unexplained."
    )
    numbers = {"parameters": parameters, "pixels": pixels, "fvu": error, "loss": [losses[0], losses[-1]]}
    table = [{"network": f"{pixels}-256-64-256-{pixels}", "parameters": parameters, "held-out FVU": error}]
    pictures = [
        Picture(
            draw_lines({"loss": Curve(steps, losses, "-")}, "step", "squared error an image", log_y=True),
            "Training loss: squared error, summed over an image's pixels, mean of a batch.",
        ),
        Picture(draw_rows(images, heldout.shape), "Held-out images, their reconstructions, and the absolute error."),
    ]
    return Finding(text, numbers, [table], pictures)


@experiment("linear_is_pca", rows=(2,), title="A linear autoencoder is PCA")
def linear_is_pca(setting: Setting) -> Finding:
    """Two matrices trained on squared error find the leading components' subspace (Baldi & Hornik 1989)."""
    train, heldout = split_images(setting.data)
    pca = PCA.fit([train.x])
    vision, optim = VisionConfig(variant="linear", width=LINEAR_K), OptimConfig(lr=5e-3, decay=0.5)
    runs = trained_by_seed(setting, "linear", vision, epochs=setting.pick(60, 40), optim=optim)
    rows, numbers = [], {}
    for name, images in (("training", train), ("held-out", heldout)):
        baseline = fvu(images.x, pca_reconstruction(pca, images.x, LINEAR_K))
        error = fvu_of_runs(runs, images.x)
        ratio = mean_of(error) / baseline
        rows.append({"images": name, "PCA": baseline, "linear autoencoder": error, "ratio": ratio})
        numbers[name] = {"pca": baseline, "linear": error, "ratio": ratio}
    overlap = over_seeds([subspace_overlap(run.model.dictionary.W, pca) for run in runs])
    nearest = over_seeds([nearest_component(run.model.dictionary.W, pca) for run in runs])
    numbers |= {"overlap": overlap, "nearest_component": nearest}
    directions = {"autoencoder": runs[0].model.dictionary.W.detach(), "PCA": pca.components[:LINEAR_K].float()}
    images = {name: 0.5 + 0.5 * rows / rows.abs().amax(1, keepdim=True) for name, rows in directions.items()}
    text = (
        f"With {LINEAR_K} latents and no non-linearity, the autoencoder's training FVU is "
        f"{numbers['training']['ratio'] - 1:+.2%} of PCA's, and its atoms span the components' subspace up to "
        f"{1 - mean_of(overlap):.2%} (1 - mean squared cosine of the principal angles). Every basis of the subspace "
        f"gives the same reconstructions: an atom's cosine with its nearest component is {mean_of(nearest):.2f} on "
        "average (1 for a component)."
    )
    caption = "Atoms (some basis of the subspace) and principal components."
    return Finding(text, numbers, [rows], [Picture(draw_rows(images, heldout.shape), caption)])


def subspace_overlap(atoms: torch.Tensor, pca: PCA) -> float:
    """Mean squared cosine of the principal angles between the span of atoms [k, D] and the first k components."""
    basis = torch.linalg.qr(atoms.detach().double().T).Q
    return (pca.components[: len(atoms)] @ basis).square().sum().item() / len(atoms)


def nearest_component(atoms: torch.Tensor, pca: PCA) -> float:
    """Mean absolute cosine of atoms [k, D] with their nearest of the first k components."""
    unit = torch.nn.functional.normalize(atoms.detach().double(), dim=1)
    return (unit @ pca.components[: len(atoms)].T).abs().amax(1).mean().item()
