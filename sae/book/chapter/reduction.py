"""What an autoencoder is, and what it is good for: k numbers of an image beside k principal components.

The chapter's 784-256-64-256-784 network; the linear one, which is PCA; dimensionality reduction, clusters and features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained_by_seed
from sae.book.chapter.measure import (
    CHAPTER_LATENTS,
    NOISE,
    Images,
    bottlenecks,
    chapter_networks,
    enumerated,
    fvu,
    fvu_of_runs,
    mean_of,
    over_seeds,
    pca_reconstruction,
    random_codes,
    reconstructed,
    split_images,
    variational_bottlenecks,
)
from sae.book.measures.embedding import clusters, neighbourhood_trust
from sae.book.pictures.grids import draw_rows
from sae.config import OptimConfig, VisionConfig
from sae.evaluation.baselines import PCA
from sae.evaluation.probing import few_label_probe, full_probe, nearest_probe, probing_task
from sae.pictures.charts import draw_scatter
from sae.pictures.lines import Curve, draw_lines
from sae.runs.images import ImageRun, dense_codes
from sae.runs.metrics import read_metrics

SHOWN = 12  # images in a row of a picture
LINEAR_K = 10
SIZES = (2, 10, 32, 64)
SCATTERED = 1000  # points in a scatter plot
LABELS = (10, 100, 1000)
FEATURES = 32
Codes = Callable[[Tensor], Tensor]
"""Images [n, D] -> codes [n, k]."""


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


@experiment("reduction", rows=(3,), title="Like PCA, but not linear: the error that k numbers leave")
def reduction(setting: Setting) -> Finding:
    """FVU on held-out images over k, and how well two dimensions keep neighbourhoods."""
    train, heldout = split_images(setting.data)
    pca = PCA.fit([train.x])
    sizes = reduced(setting.pick(SIZES, SIZES[:2]), train.x.shape[1])
    rows: list[dict[str, Any]] = []
    for k in sizes:
        baseline = fvu(heldout.x, pca_reconstruction(pca, heldout.x, k))
        error = fvu_of_runs(bottlenecks(setting, k), heldout.x)
        rows.append({"latents": k, "PCA": baseline, "autoencoder": error, "less by": 1 - mean_of(error) / baseline})
    epochs = bottlenecks(setting, sizes[0])[0].config.epochs
    recipe = f"{epochs} epochs with Gaussian noise of {NOISE:g} on the inputs"
    planes = {name: [code(heldout.x) for code in codes] for name, codes in encoders(setting, pca, 2).items()}
    trust = {name: over_seeds([neighbourhood_trust(heldout.x, z) for z in codes]) for name, codes in planes.items()}
    curves = {name: Curve(sizes, [row[name] for row in rows]) for name in ("PCA", "autoencoder")}
    text = (
        f"Variance left unexplained by the autoencoder (trained for {recipe}), compared with as many principal "
        f"components: {less_said({row['latents']: row['less by'] for row in rows})}."
    )
    clean = None
    if CHAPTER_LATENTS in sizes:
        runs = chapter_networks(setting)
        clean = fvu_of_runs(runs, heldout.x)
        text += (
            f" {CHAPTER_LATENTS} latents leave FVU {mean_of(rows[-1]['autoencoder']):.3f}, and {mean_of(clean):.3f} if "
            f"trained without that noise for {runs[0].config.epochs} epochs."
        )
    listed = ", ".join(f"{mean_of(value):.3f} ({name})" for name, value in trust.items())
    text += f" In two dimensions the trustworthiness of neighbourhoods is {listed}."
    caption = (
        "Fraction of variance unexplained over the size of the bottleneck; bands: 95% over seeds. The autoencoder was "
        f"trained for {recipe}."
    )
    pictures = [Picture(draw_lines(curves, "latents", "FVU, held-out images", log_x=True), caption)]
    for name, codes in planes.items():
        points, labels = codes[0][:SCATTERED].numpy(), heldout.labels[:SCATTERED].numpy()
        title = f"{name}, trustworthiness {mean_of(trust[name]):.3f}"
        figure = draw_scatter(points, labels, heldout.names, x="latent 0", y="latent 1", title=title)
        pictures.append(Picture(figure, f"Held-out images in the two dimensions of {name}."))
    table = [{"two dimensions of": name, "trustworthiness": value} for name, value in trust.items()]
    return Finding(text, {"fvu": rows, "trustworthiness": trust, "clean_inputs": clean}, [rows, table], pictures)


def reduced(sizes: Sequence[int], pixels: int) -> list[int]:
    """The sizes below the number of pixels: with that many components PCA has no error."""
    return [k for k in sizes if k < pixels]


def less_said(by: Mapping[int, float]) -> str:
    """Where an autoencoder's error is less than PCA's and where more, from shares of PCA's by number of latents."""
    parts = []
    for word, sign in (("less", 1), ("more", -1)):
        at = [f"{k} (by {sign * share:.0%})" for k, share in by.items() if (share > 0) == (sign > 0)]
        parts += [f"{word} at {enumerated(at)}"] if at else []
    return "; ".join(parts) + " latents"


def encoders(setting: Setting, pca: PCA, k: int) -> dict[str, list[Codes]]:
    """Encoders to k numbers, one a seed if seeds make a difference."""
    return {
        "PCA": [lambda x: pca.codes(x, k).float()],
        "the autoencoder": _encoders(bottlenecks(setting, k)),
        "the VAE": _encoders(variational_bottlenecks(setting, k)),
    }


def _encoders(runs: Sequence[ImageRun]) -> list[Codes]:
    return [lambda x, run=run: dense_codes(run.model, x) for run in runs]


def features_of(setting: Setting, train: Images) -> dict[str, list[Codes]]:
    """The inputs of classifiers and clusters: frozen codes of `FEATURES` numbers, and the raw pixels."""
    pca, plain, vae = encoders(setting, PCA.fit([train.x]), FEATURES).values()
    runs = zip(bottlenecks(setting, FEATURES), setting.seeds, strict=True)
    return {
        "raw pixels": [lambda x: x],
        f"PCA-{FEATURES}": pca,
        "autoencoder": plain,
        "VAE": vae,
        "random encoder": [lambda x, run=run, seed=seed: random_codes(run, x, seed) for run, seed in runs],
    }


@experiment("features", rows=(20,), title="The encoder's output as features for a classifier")
def features(setting: Setting) -> Finding:
    """Logistic regression and nearest neighbours on frozen codes, with few labels and with all."""
    train, heldout = split_images(setting.data)
    counts = [n for n in LABELS if len(heldout.names) <= n <= len(train.x)]
    rows: list[dict[str, Any]] = []
    for name, codes in features_of(setting, train).items():
        tasks = [probing_task(code(train.x), train.labels, code(heldout.x), heldout.labels) for code in codes]
        few = {str(n): over_seeds([few_label_probe(task, n) for task in tasks]) for n in counts}
        full = over_seeds([full_probe(task) for task in tasks])
        nearest = over_seeds([nearest_probe(task) for task in tasks])
        rows.append({"features": name, **few, "all": full, "5 neighbours": nearest})
    by_name = {row["features"]: row for row in rows}

    def accuracies(name: str) -> str:
        return f"{mean_of(by_name[name][str(counts[0])]):.1%} and {mean_of(by_name[name]['all']):.1%}"

    text = (
        f"Logistic regression on {FEATURES} frozen latents classifies held-out images with accuracies of "
        f"{accuracies('autoencoder')} from {counts[0]} and from all labels; raw pixels give "
        f"{accuracies('raw pixels')}, {FEATURES} principal components {accuracies(f'PCA-{FEATURES}')}, the same "
        f"encoder untrained {accuracies('random encoder')}."
    )
    curves = {name: Curve(counts, [row[str(n)] for n in counts]) for name, row in by_name.items()}
    picture = Picture(
        draw_lines(curves, "labels", "accuracy, held-out images", log_x=True),
        "Accuracy of logistic regression on frozen features over the number of labels (5 draws of each).",
    )
    return Finding(text, {"labels": counts, "accuracy": by_name}, [rows], [picture])


@experiment("clusters", rows=(21,), title="Do similar inputs lie together? Clusters of codes against classes")
def clustering(setting: Setting) -> Finding:
    """k-means on held-out codes, with as many clusters as classes."""
    train, heldout = split_images(setting.data)
    rows = []
    for name, codes in features_of(setting, train).items():
        results = [clusters(code(heldout.x), heldout.labels) for code in codes]
        nmi, ari = over_seeds([c.nmi for c in results]), over_seeds([c.ari for c in results])
        rows.append({"codes": name, "NMI": nmi, "ARI": ari})
    best = max(rows, key=lambda row: mean_of(row["NMI"]))
    listed = ", ".join(f"{row['codes']} NMI {mean_of(row['NMI']):.3f}, ARI {mean_of(row['ARI']):.3f}" for row in rows)
    text = (
        f"Agreement of k-means clusters, which use no labels, with the classes (1 is perfect, 0 chance): {listed}. "
        f"The best by NMI are those of {best['codes']}."
    )
    return Finding(text, {"clusters": {r["codes"]: {"nmi": r["NMI"], "ari": r["ARI"]} for r in rows}}, [rows])
