"""The report's pictures, from the table's rows.

rate_figures(rows, ground), sparsity_figure(rows), ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sae.chapter.base import Picture
from sae.chapter.measure import mean_of
from sae.comparison.grounds import Ground, Known
from sae.comparison.measures import PROBED
from sae.comparison.table import Row
from sae.evaluation.rate_curve import RatePoint, hull
from sae.models.vision import SPARSE
from sae.pictures.atoms import draw_atoms
from sae.pictures.charts import draw_heatmap
from sae.pictures.lines import Curve, draw_lines

LATENTS = 14  # rows of the factor x latent matrix
ATOMS = 36  # of a sheet
CONTROLS = ("control", "PCA")


def is_sparse(row: Row) -> bool:
    """Whether the family is one of the language table's."""
    return row.family in SPARSE


def models(rows: Sequence[Row]) -> list[Row]:
    """Rows that were trained."""
    return [row for row in rows if row.family not in CONTROLS]


def rate_pictures(rows: Sequence[Row], ground: Ground) -> list[Picture]:
    """FVU against bits: each family's hull over its widths, k and beta, beside PCA's; dense and sparse ones apart."""
    pictures = []
    for title, sparse in (("Image autoencoders", False), ("Sparse autoencoders", True)):
        chosen = [row for row in models(rows) if is_sparse(row) == sparse]
        if not chosen:
            continue
        curves = {"PCA": _line(hull(ground.pca))}
        for family in dict.fromkeys(row.family for row in chosen):
            curves[family] = _line(hull(p for row in chosen if row.family == family for p in mean_curve(row)))
        figure = draw_lines(curves, "bits a sample", "FVU, held out", log_y=True, title=title, size=(7.4, 3.8))
        pictures.append(
            Picture(
                figure,
                f"{title} on {ground.tier} ({ground.data}): the least FVU a family reaches at a rate, over all of its "
                "settings, means over seeds; time-sharing between two settings is allowed. PCA: all components, "
                "each paying only where it is worth it.",
                vector=True,
            )
        )
    return pictures


def mean_curve(row: Row) -> list[RatePoint]:
    """Mean over seeds of bits and FVU at each step, which the ground gives to all alike."""
    stacked = np.array([seed.curve for seed in row.seeds])
    return [RatePoint(*point) for point in stacked.mean(0).tolist()]


def _line(points: Sequence[RatePoint]) -> Curve:
    shown = [point for point in points if point.fvu < 0.98]
    return Curve([p.bits for p in shown], [p.fvu for p in shown], "-")


def sparsity_picture(rows: Sequence[Row]) -> Picture | None:
    """FVU against L0: a curve for every family and width, over k."""
    chosen = [row for row in models(rows) if is_sparse(row)]
    curves: dict[str, Curve] = {}
    for family, width in dict.fromkeys((row.family, _width(row)) for row in chosen):
        mine = [row for row in chosen if (row.family, _width(row)) == (family, width)]
        mine.sort(key=lambda row: mean_of(row.spread("l0") or 0.0))
        curves[f"{family} {width}"] = Curve(
            [mean_of(row.spread("l0") or 0.0) for row in mine], [row.spread("fvu") for row in mine]
        )
    if not curves:
        return None
    figure = draw_lines(curves, "L0, held out", "FVU, held out", log_x=True, size=(7.4, 4.2))
    return Picture(figure, "FVU against L0: families and widths, over k; bands are 95% intervals over seeds.", True)


def _width(row: Row) -> int:
    return (row.settings or {}).get("width", 0)


def disentanglement_picture(rows: Sequence[Row]) -> Picture | None:
    """DCI-D against bits, a mark for every model."""
    curves: dict[str, Curve] = {}
    for family in dict.fromkeys(row.family for row in rows):
        pairs = [(row.spread("bits"), row.spread("disentanglement")) for row in rows if row.family == family]
        pairs = [(bits, score) for bits, score in pairs if bits is not None and score is not None]
        if pairs:
            curves[family] = Curve([mean_of(bits) for bits, _ in pairs], [score for _, score in pairs], "o")
    if not curves:
        return None
    figure = draw_lines(curves, "bits a sample at own FVU + 0.01", "DCI-D, live latents", size=(7.4, 4.2))
    return Picture(figure, "DCI-D against rate: a mark is a model or control, with its interval over seeds.", True)


def factor_pictures(rows: Sequence[Row], known: Known) -> list[Picture]:
    """Which latents tell of which factor: the sparse and the dense model with the largest DCI-D."""
    pictures = []
    for sparse in (True, False):
        chosen = [row for row in models(rows) if is_sparse(row) == sparse and row.seeds[0].importance]
        if not chosen:
            continue
        best = max(chosen, key=lambda row: mean_of(row.spread("disentanglement") or 0.0))
        matrix = np.array(best.seeds[0].importance)
        shown = _by_factor(matrix)
        figure = draw_heatmap(
            matrix[shown],
            rows=[f"live latent {i}" for i in shown],
            columns=known.names,
            label="share of a factor's importance",
            title=best.name,
        )
        what = "class indicators" if known.indicators else "factors"
        pictures.append(
            Picture(
                figure,
                f"{best.name}, seed 0: importance of the {len(shown)} most telling of {len(matrix)} live latents for "
                f"the {what} (a column sums to 1 over all latents). A row with one bright cell is a latent that means "
                "one thing; a column with many is a thing that many latents share.",
            )
        )
    return pictures


def _by_factor(matrix: np.ndarray) -> list[int]:
    """The latents of most importance, ordered by the factor they serve."""
    top = np.argsort(-matrix.sum(1), kind="stable")[:LATENTS]
    return sorted(top.tolist(), key=lambda i: (int(matrix[i].argmax()), -float(matrix[i].max())))


def probe_picture(rows: Sequence[Row]) -> Picture | None:
    """Accuracy of probes against the number of latents: of every family, the model with the largest at the most."""
    curves: dict[str, Curve] = {}
    for family in dict.fromkeys(row.family for row in rows):
        mine = [row for row in rows if row.family == family and row.spread(f"probe_{PROBED[-1]}") is not None]
        if mine:
            best = max(mine, key=lambda row: mean_of(row.spread(f"probe_{PROBED[-1]}") or 0.0))
            curves[best.name] = Curve(PROBED, [best.spread(f"probe_{k}") for k in PROBED])
    if not curves:
        return None
    figure = draw_lines(
        curves, "latents a class", "balanced accuracy, one class against the rest", log_x=True, size=(7.8, 4.4)
    )
    return Picture(figure, "Linear probes on few latents, chosen by class-mean difference; .5 is chance.", True)


def atom_pictures(found: Mapping[str, tuple[Row, Tensor]], shape: Sequence[int], fvu: float) -> list[Picture]:
    """Sheets of what latents put into an image, for models near one FVU: [F, D] by name, busiest first."""
    pictures = []
    for name, (row, atoms) in found.items():
        rates = torch.tensor(row.seeds[0].rates)
        energy = rates * atoms.square().sum(1) if is_sparse(row) else atoms.square().sum(1)
        order = energy.argsort(descending=True)[:ATOMS]
        figure = draw_atoms(atoms[order], shape, columns=12)
        own = mean_of(row.spread("fvu") or float("nan"))
        pictures.append(
            Picture(
                figure, f"{name}: the {len(order)} latents that move the image most (FVU {own:.3f}, near {fvu:.3f})."
            )
        )
    return pictures


def training_pictures(courses: Mapping[str, Sequence[Mapping[str, float]]], widths: Mapping[str, int]) -> list[Picture]:
    """Firing over time, from the metrics of the trainings: mean firing rate L0 / F, and the share of dead latents."""
    rate, dead = {}, {}
    for name, lines in courses.items():
        seen = [line["images"] for line in lines]
        rate[name] = Curve(seen, [line["l0"] / widths[name] for line in lines], "-")
        dead[name] = Curve(seen, [line["dead"] for line in lines], "-")
    return [
        Picture(
            draw_lines(rate, "images seen", "mean firing rate L0 / F", log_y=True),
            "Mean firing rate of the latents over training, seed 0, in training form.",
            True,
        ),
        Picture(
            draw_lines(dead, "images seen", "share of latents dead"),
            "Dead latents over training: none of the last tenth of the run's images fired them.",
            True,
        ),
    ]
