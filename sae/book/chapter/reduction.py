"""Dimensionality reduction, clusters and features: what k numbers of an autoencoder are worth beside k of PCA's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from sae.book.chapter.base import Finding, Picture, Setting, experiment
from sae.book.chapter.measure import (
    Images,
    Spread,
    enumerated,
    fvu,
    mean_of,
    over_seeds,
    pca_reconstruction,
    reconstructed,
    split_images,
)
from sae.book.chapter.networks import CHAPTER_LATENTS, NOISE, bottleneck, chapter_network, random_codes, variational
from sae.book.measures.embedding import clusters, neighbourhoods
from sae.book.pictures.charts import draw_scatter
from sae.book.pictures.lines import Curve, draw_lines
from sae.evaluation.baselines import PCA
from sae.evaluation.probing import few_label_probe, full_probe, nearest_probe, probing_task
from sae.runs.images import dense_codes

SIZES = (2, 10, 32, 64)
SCATTERED = 1000  # points in a scatter plot
LABELS = (10, 100, 1000)
FEATURES = 32

Codes = Callable[[Tensor], Tensor]
"""Images [n, D] -> codes [n, k]."""


@experiment("reduction", rows=(3,), title="Like PCA, but not linear: the error that k numbers leave")
def reduction(setting: Setting) -> Finding:
    """FVU on held-out images over k, and how well two dimensions keep neighbourhoods."""
    train, held = split_images(setting.data)
    pca = PCA.fit([train.x])
    rows: list[dict[str, Any]] = []
    for k in reduced(setting.pick(SIZES, SIZES[:2]), train.x.shape[1]):
        baseline = fvu(held.x, pca_reconstruction(pca, held.x, k))
        runs = [bottleneck(setting, k, seed) for seed in setting.seeds]
        own = over_seeds([fvu(held.x, reconstructed(run, held.x)) for run in runs])
        rows.append({"latents": k, "PCA": baseline, "autoencoder": own, "less by": 1 - mean_of(own) / baseline})
    clean = (
        clean_inputs(setting, held, mean_of(rows[-1]["autoencoder"]))
        if CHAPTER_LATENTS in [row["latents"] for row in rows]
        else None
    )
    trained_for = bottleneck(setting, rows[0]["latents"], setting.seeds[0]).config.epochs
    recipe = f"{trained_for} epochs with Gaussian noise of {NOISE:g} on the inputs"
    embeddings = {name: [code(held.x) for code in codes] for name, codes in planes(setting, pca).items()}
    kept = {name: trust(held.x, found) for name, found in embeddings.items()}
    k = [row["latents"] for row in rows]
    curves = {name: Curve(k, [row[name] for row in rows]) for name in ("PCA", "autoencoder")}
    points = [
        Picture(
            draw_scatter(
                found[0][:SCATTERED].numpy(),
                held.labels[:SCATTERED].numpy(),
                held.names,
                x="latent 0",
                y="latent 1",
                title=f"{name}, trustworthiness {mean_of(kept[name]):.3f}",
            ),
            f"Held-out images in the two dimensions of {name}.",
        )
        for name, found in embeddings.items()
    ]
    return Finding(
        text=f"Variance left unexplained by the autoencoder (trained for {recipe}), beside PCA with as many numbers an "
        f"image: {less_said({row['latents']: row['less by'] for row in rows})}."
        + ("" if clean is None else f" {clean.text}")
        + " In two dimensions the trustworthiness of neighbourhoods is "
        + ", ".join(f"{mean_of(value):.3f} ({name})" for name, value in kept.items())
        + ".",
        numbers={"fvu": rows, "trustworthiness": kept, "clean_inputs": None if clean is None else clean.fvu},
        tables=[rows, [{"two dimensions of": name, "trustworthiness": value} for name, value in kept.items()]],
        pictures=[
            Picture(
                draw_lines(curves, "latents", "FVU, held-out images", log_x=True),
                "Fraction of variance unexplained over the size of the bottleneck; bands: 95% over seeds. The "
                f"autoencoder was trained for {recipe}.",
                vector=True,
            ),
            *points,
        ],
    )


def reduced(sizes: Sequence[int], pixels: int) -> list[int]:
    """Those of the sizes at which anything is reduced: PCA's error is zero from as many components as pixels on."""
    return [k for k in sizes if k < pixels]


def less_said(by: Mapping[int, float]) -> str:
    """Shares of PCA's error by which an autoencoder's is less, by number of latents: where it is less, where not."""
    said = []
    for word, sign in (("less", 1), ("more", -1)):
        at = [f"{k} (by {sign * share:.0%})" for k, share in by.items() if (share > 0) == (sign > 0)]
        said += [f"{word} at {enumerated(at)}"] if at else []
    return "; ".join(said) + " latents"


class Clean(NamedTuple):
    """The chapter's network, which was trained without noise on its inputs."""

    fvu: Spread
    text: str


def clean_inputs(setting: Setting, held: Images, noisy: float) -> Clean:
    """The runs of `undercomplete`, beside the FVU of those of the same size with noise."""
    runs = [chapter_network(setting, seed) for seed in setting.seeds]
    found = over_seeds([fvu(held.x, reconstructed(run, held.x)) for run in runs])
    epochs = runs[0].config.epochs
    return Clean(
        found,
        f"{CHAPTER_LATENTS} latents leave FVU {noisy:.3f}, and {mean_of(found):.3f} where they were trained without "
        f"that noise for {epochs} epochs.",
    )


def planes(setting: Setting, pca: PCA) -> dict[str, list[Codes]]:
    """Encoders into two dimensions, one a seed where seeds make a difference."""
    own = [bottleneck(setting, 2, seed).model for seed in setting.seeds]
    variant = [variational(setting, 2, seed).model for seed in setting.seeds]
    return {
        "PCA": [lambda x: pca.codes(x, 2).float()],
        "the autoencoder": [lambda x, model=model: dense_codes(model, x) for model in own],
        "the VAE": [lambda x, model=model: dense_codes(model, x) for model in variant],
    }


def trust(x: Tensor, embedded: list[Tensor]) -> Spread:
    """Trustworthiness of embeddings [n, 2] of images [n, D], over seeds."""
    return over_seeds([neighbourhoods(x, z).trustworthiness for z in embedded])


def encoders(setting: Setting, train: Images) -> dict[str, list[Codes]]:
    """What classifiers and clusters are given: frozen codes of `FEATURES` numbers, and the raw pixels."""
    pca = PCA.fit([train.x])
    own = [bottleneck(setting, FEATURES, seed) for seed in setting.seeds]
    variant = [variational(setting, FEATURES, seed) for seed in setting.seeds]
    return {
        "raw pixels": [lambda x: x],
        f"PCA-{FEATURES}": [lambda x: pca.codes(x, FEATURES).float()],
        "autoencoder": [lambda x, run=run: dense_codes(run.model, x) for run in own],
        "VAE": [lambda x, run=run: dense_codes(run.model, x) for run in variant],
        "random encoder": [
            lambda x, run=run, seed=seed: random_codes(run, x, seed)
            for run, seed in zip(own, setting.seeds, strict=True)
        ],
    }


@experiment("features", rows=(20,), title="The encoder's output as features for a classifier")
def features(setting: Setting) -> Finding:
    """Logistic regression and nearest neighbours on frozen codes, with few labels and with all."""
    train, held = split_images(setting.data)
    counts = [n for n in LABELS if len(held.names) <= n <= len(train.x)]
    rows: list[dict[str, Any]] = []
    for name, codes in encoders(setting, train).items():
        tasks = [probing_task(code(train.x), train.labels, code(held.x), held.labels) for code in codes]
        few = {str(n): over_seeds([few_label_probe(task, n).mean for task in tasks]) for n in counts}
        full = over_seeds([full_probe(task) for task in tasks])
        rows.append(
            {"features": name, **few, "all": full, "5 neighbours": over_seeds([nearest_probe(task) for task in tasks])}
        )
    by_name = {row["features"]: row for row in rows}
    curves = {name: Curve(counts, [row[str(n)] for n in counts]) for name, row in by_name.items()}
    fewest, own = str(counts[0]), by_name["autoencoder"]
    return Finding(
        text=f"Logistic regression on {FEATURES} frozen latents names {mean_of(own[fewest]):.1%} of held-out images "
        f"from {fewest} labels and {mean_of(own['all']):.1%} from all; raw pixels give "
        f"{mean_of(by_name['raw pixels'][fewest]):.1%} and {mean_of(by_name['raw pixels']['all']):.1%}, "
        f"{FEATURES} principal components {mean_of(by_name[f'PCA-{FEATURES}'][fewest]):.1%} and "
        f"{mean_of(by_name[f'PCA-{FEATURES}']['all']):.1%}, the same encoder untrained "
        f"{mean_of(by_name['random encoder'][fewest]):.1%} and {mean_of(by_name['random encoder']['all']):.1%}.",
        numbers={"labels": counts, "accuracy": by_name},
        tables=[rows],
        pictures=[
            Picture(
                draw_lines(curves, "labels", "accuracy, held-out images", log_x=True),
                "Accuracy of logistic regression on frozen features over the number of labels (5 draws of each).",
                vector=True,
            )
        ],
    )


@experiment("clusters", rows=(21,), title="Do similar inputs lie together? Clusters of codes against classes")
def clustering(setting: Setting) -> Finding:
    """k-means on held-out codes, as many clusters as classes."""
    train, held = split_images(setting.data)
    rows = []
    for name, codes in encoders(setting, train).items():
        found = [clusters(code(held.x), held.labels) for code in codes]
        nmi, ari = over_seeds([c.nmi for c in found]), over_seeds([c.ari for c in found])
        rows.append({"codes": name, "NMI": nmi, "ARI": ari})
    best = max(rows, key=lambda row: mean_of(row["NMI"]))
    return Finding(
        text="Agreement of k-means clusters, found without labels, with the classes (1 is the same, 0 chance): "
        + ", ".join(f"{row['codes']} NMI {mean_of(row['NMI']):.3f}, ARI {mean_of(row['ARI']):.3f}" for row in rows)
        + f". The best by NMI are those of {best['codes']}.",
        numbers={"clusters": {row["codes"]: {"nmi": row["NMI"], "ari": row["ARI"]} for row in rows}},
        tables=[rows],
        pictures=[],
    )
