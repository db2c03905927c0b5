"""The report's pictures, from the table's rows.

rate_figures(rows, ground), sparsity_figure(rows), ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sae.book.chapter.base import Picture
from sae.book.chapter.measure import mean_of
from sae.book.comparison.courses import Moment
from sae.book.comparison.grounds import Ground, Known
from sae.book.comparison.measures import PROBED
from sae.book.comparison.table import Row
from sae.book.measures.rate_curve import RatePoint, hull
from sae.book.pictures.atoms import draw_atoms
from sae.book.pictures.charts import draw_heatmap
from sae.book.pictures.lines import Curve, draw_lines
from sae.models.vision import SPARSE

LATENTS = 14  # rows of the factor x latent matrix
ATOMS = 36  # of a sheet
FLOOR = 1e-3  # least firing rate drawn
CONTROLS = ("control", "PCA")
ENDS = ("true factors", "shuffled labels")


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
        lines = {
            family: _line(hull(p for row in chosen if row.family == family for p in mean_curve(row)))
            for family in dict.fromkeys(row.family for row in chosen)
        }
        lines = {family: line for family, line in lines.items() if line.x}
        floor = min((min(line.y) for line in lines.values()), default=0.0)
        # PCA goes on to any fidelity; what no model reaches is left out
        curves = {"PCA": _line([p for p in hull(ground.pca) if p.fvu > floor / 2]), **lines}
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
    """A hull, up to where finer quantisers gain less than a hundredth of what is left."""
    least = min((point.fvu for point in points), default=0.0)
    enough = next((point.bits for point in points if point.fvu <= 1.01 * least), 0.0)
    shown = [point for point in points if point.fvu < 0.98 and point.bits <= enough]
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


def probe_pictures(rows: Sequence[Row]) -> list[Picture]:
    """Accuracy of probes against the number of latents: of every family, the model with the largest at the most.

    Dense and sparse models apart, controls in both.
    """
    most = f"probe_{PROBED[-1]}"
    pictures = []
    for title, sparse in (("Image autoencoders", False), ("Sparse autoencoders", True)):
        chosen = [row for row in models(rows) if is_sparse(row) == sparse]
        curves: dict[str, Curve] = {}
        for family in dict.fromkeys(row.family for row in (*chosen, *(row for row in rows if row.family in CONTROLS))):
            mine = [row for row in rows if row.family == family and row.spread(most) is not None]
            mine = [row for row in mine if row.name not in ENDS]
            if mine:
                best = max(mine, key=lambda row: mean_of(row.spread(most) or 0.0))
                curves[best.name] = Curve(PROBED, [best.spread(f"probe_{k}") for k in PROBED])
        if not chosen or not curves:
            continue
        x, y = "latents a class", "balanced accuracy, one class against the rest"
        figure = draw_lines(curves, x, y, log_x=True, title=title, size=(7.8, 4.4))
        text = (
            f"{title}: linear probes on few latents, chosen by class-mean difference; .5 is chance. Of every family, "
            f"the setting that does best here with {PROBED[-1]} latents: families of more settings have more chances."
        )
        pictures.append(Picture(figure, text, True))
    return pictures


def atom_pictures(found: Mapping[str, tuple[Row, Tensor]], shape: Sequence[int], fvu: float) -> list[Picture]:
    """Sheets of what latents put into an image, for models near one FVU: [F, D] by name, busiest first."""
    pictures = []
    for name, (row, atoms) in found.items():
        rates = torch.tensor(row.seeds[0].rates)
        weight = rates if is_sparse(row) else atoms.norm(dim=1)
        order = weight.argsort(descending=True)[:ATOMS]
        figure = draw_atoms(atoms[order], shape, columns=12)
        own = mean_of(row.spread("fvu") or float("nan"))
        which = "fire most" if is_sparse(row) else "move the image most"
        text = f"{name}: the {len(order)} latents that {which} (FVU {own:.3f}, near {fvu:.3f})."
        pictures.append(Picture(figure, text))
    return pictures


def firing_pictures(courses: Mapping[str, Sequence[Moment]]) -> list[Picture]:
    """Firing rates over time: of every model, quantiles over its latents along the training."""
    pictures = []
    for name, moments in courses.items():
        seen = [moment.images for moment in moments]
        levels = {"busiest": 1.0, "90th percentile": 0.9, "median": 0.5, "10th percentile": 0.1}
        curves = {
            label: Curve(seen, [max(moment.rates.quantile(q).item(), FLOOR) for moment in moments], "-o")
            for label, q in levels.items()
        }
        silent = [100 * (moment.rates == 0).double().mean().item() for moment in moments]
        figure = draw_lines(curves, "images seen", "share of held-out images", log_y=True, title=name)
        pictures.append(
            Picture(
                figure,
                f"{name}, seed 0: how often latents fire over training, in the saved form (rates under {FLOOR} are "
                f"drawn at it). Never firing: {silent[0]:.1f}% at the first mark, {silent[-1]:.1f}% at the last.",
                True,
            )
        )
    return pictures


def training_picture(courses: Mapping[str, Sequence[Mapping[str, float]]], widths: Mapping[str, int]) -> Picture:
    """Mean firing rate L0 / F of every sparse family over its training, from the metrics that trainings write."""
    curves = {
        name: Curve([line["images"] for line in lines], [line["l0"] / widths[name] for line in lines], "-")
        for name, lines in courses.items()
    }
    figure = draw_lines(curves, "images seen", "mean firing rate L0 / F", log_y=True, size=(7.4, 3.6))
    return Picture(figure, "Mean firing rate of the latents over training, seed 0, in training form.", True)
