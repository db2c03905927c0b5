"""What an autoencoder is: the chapter's 784-256-64-256-784 network, and the linear one, which is PCA."""

from __future__ import annotations

import torch

from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained
from sae.book.chapter.measure import fvu, mean_of, over_seeds, pca_reconstruction, reconstructed, split_images
from sae.book.chapter.networks import CHAPTER_LATENTS, chapter_network
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
    _, held = split_images(setting.data)
    runs = [chapter_network(setting, seed) for seed in setting.seeds]
    found = over_seeds([fvu(held.x, reconstructed(run, held.x)) for run in runs])
    parameters = sum(p.numel() for p in runs[0].model.parameters())
    logged = read_metrics(runs[0].folder)
    steps, losses = ([line[name] for line in logged] for name in ("step", "loss"))
    shown = held.x[:SHOWN]
    rebuilt = reconstructed(runs[0], shown)
    rows = {"original": shown, "reconstruction": rebuilt, "error": (shown - rebuilt).abs()}
    pixels = held.x.shape[1]
    return Finding(
        text=f"The chapter's network, {pixels} pixels to 256 to {CHAPTER_LATENTS} latents and back, has {parameters:,} "
        f"parameters. Trained on nothing but its input for {runs[0].config.epochs} epochs it leaves "
        f"{mean_of(found):.1%} of the variance of held-out images unexplained.",
        numbers={"parameters": parameters, "pixels": pixels, "fvu": found, "loss": [losses[0], losses[-1]]},
        tables=[[{"network": f"{pixels}-256-64-256-{pixels}", "parameters": parameters, "held-out FVU": found}]],
        pictures=[
            Picture(
                draw_lines({"loss": Curve(steps, losses, "-")}, "step", "squared error an image", log_y=True),
                "Training loss: squared error, summed over an image's pixels, mean of a batch.",
                vector=True,
            ),
            Picture(draw_rows(rows, held.shape), "Held-out images, their reconstructions, and the absolute error."),
        ],
    )


@experiment("linear_is_pca", rows=(2,), title="A linear autoencoder is PCA")
def linear_is_pca(setting: Setting) -> Finding:
    """Two matrices trained on squared error find the leading components' subspace (Baldi & Hornik 1989)."""
    train, held = split_images(setting.data)
    pca = PCA.fit([train.x])
    vision = VisionConfig(variant="linear", width=LINEAR_K)
    optim = OptimConfig(lr=5e-3, decay=0.5)
    epochs = setting.pick(60, 40)
    runs = [trained(setting, "linear", vision, epochs=epochs, optim=optim, seed=seed) for seed in setting.seeds]
    rows, numbers = [], {}
    for name, images in (("training", train), ("held-out", held)):
        baseline = fvu(images.x, pca_reconstruction(pca, images.x, LINEAR_K))
        own = over_seeds([fvu(images.x, reconstructed(run, images.x)) for run in runs])
        rows.append({"images": name, "PCA": baseline, "linear autoencoder": own, "ratio": mean_of(own) / baseline})
        numbers[name] = {"pca": baseline, "linear": own, "ratio": mean_of(own) / baseline}
    overlap = over_seeds([subspace_overlap(run.model.dictionary.W, pca) for run in runs])
    nearest = over_seeds([nearest_component(run.model.dictionary.W, pca) for run in runs])
    numbers |= {"overlap": overlap, "nearest_component": nearest}
    atoms = torch.cat([runs[0].model.dictionary.W.detach()[:LINEAR_K], pca.components[:LINEAR_K].float()])
    scaled = 0.5 + 0.5 * atoms / atoms.abs().amax(1, keepdim=True)
    pictures = {"autoencoder": scaled[:LINEAR_K], "PCA": scaled[LINEAR_K:]}
    return Finding(
        text=f"With {LINEAR_K} latents and no non-linearity, the autoencoder's training FVU is "
        f"{numbers['training']['ratio'] - 1:+.2%} of PCA's, and its atoms span the components' subspace up to "
        f"{1 - mean_of(overlap):.2%} (1 - mean squared cosine of the principal angles). Any basis of the subspace "
        f"reconstructs alike: a single atom's cosine with the component nearest to it is {mean_of(nearest):.2f} on "
        "average (1 for a component).",
        numbers=numbers,
        tables=[rows],
        pictures=[
            Picture(draw_rows(pictures, held.shape), "Atoms (any basis of the subspace) and principal components.")
        ],
    )


def subspace_overlap(atoms: torch.Tensor, pca: PCA) -> float:
    """Mean squared cosine of the principal angles between the span of atoms [k, D] and the first k components."""
    basis = torch.linalg.qr(atoms.detach().double().T).Q
    return (pca.components[: len(atoms)] @ basis).square().sum().item() / len(atoms)


def nearest_component(atoms: torch.Tensor, pca: PCA) -> float:
    """Mean cosine of atoms [k, D] with whichever of the first k components each is most alike, signs aside."""
    unit = torch.nn.functional.normalize(atoms.detach().double(), dim=1)
    return (unit @ pca.components[: len(atoms)].T).abs().amax(1).mean().item()
