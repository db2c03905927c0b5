"""The comparison's pictures, from the table's rows: rate_pictures(rows, ground), sparsity_pictures(rows), ..."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sae.book.chapter.base import Picture
from sae.book.chapter.measure import mean_of
from sae.book.comparison.courses import Moment
from sae.book.comparison.grounds import Ground, Known
from sae.book.comparison.measures import PROBED, Row
from sae.book.measures.rate import RatePoint, hull
from sae.book.pictures.latents import draw_atoms
from sae.models.vision import SPARSE
from sae.pictures.charts import draw_heatmap
from sae.pictures.lines import Curve, draw_lines

LATENTS = 14  # rows of the factor x latent matrix
ATOMS = 36  # of a sheet
FLOOR = 1e-3  # least firing rate drawn
CONTROLS = ("control", "PCA")
ENDS = ("true factors", "shuffled labels")
KINDS = {"Image autoencoders": False, "Sparse autoencoders": True}
"""Title -> whether its models are sparse; dense and sparse ones are drawn apart."""


def is_sparse(row: Row) -> bool:
    """Whether the family is one of the language table's."""
    return row.family in SPARSE


def models(rows: Sequence[Row], sparse: bool | None = None) -> list[Row]:
    """Rows that were trained: all, or the sparse or the dense ones."""
    return [row for row in rows if row.family not in CONTROLS and sparse in (None, is_sparse(row))]


def mean(row: Row, measure: str) -> float:
    """Mean over seeds; NaN if there is none."""
    spread = row.spread(measure)
    return float("nan") if spread is None else mean_of(spread)


def _families(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {family: [r for r in rows if r.family == family] for family in dict.fromkeys(row.family for row in rows)}


def rate_pictures(rows: Sequence[Row], ground: Ground) -> list[Picture]:
    """FVU against bits: each family's hull over its widths, k and beta, beside PCA's."""
    pictures = []
    for title, sparse in KINDS.items():
        families = _families(models(rows, sparse))
        if not families:
            continue
        lines = {name: _line(hull(p for row in of for p in mean_curve(row))) for name, of in families.items()}
        lines = {family: line for family, line in lines.items() if line.x}
        floor = min((min(line.y) for line in lines.values()), default=0.0)
        # PCA reaches every fidelity; its curve ends a little below the best model
        curves = {"PCA": _line([p for p in hull(ground.pca) if p.fvu > floor / 2]), **lines}
        figure = draw_lines(curves, "bits a sample", "FVU, held out", log_y=True, title=title, size=(7.4, 3.8))
        caption = (
            f"{title} on {ground.tier} ({ground.data}): the least FVU that a family reaches at a rate, over all of its "
            "settings, means over seeds; time-sharing between two settings is allowed. PCA: all components, each coded "
            "only if it is worth its bits."
        )
        pictures.append(Picture(figure, caption))
    return pictures


def mean_curve(row: Row) -> list[RatePoint]:
    """Mean over seeds of bits and FVU at each step; the steps are those of the ground, the same for all."""
    stacked = np.array([seed.curve for seed in row.seeds])
    return [RatePoint(*point) for point in stacked.mean(0).tolist()]


def _line(points: Sequence[RatePoint]) -> Curve:
    """A hull, up to where finer quantisers gain less than a hundredth of the remaining error."""
    least = min((point.fvu for point in points), default=0.0)
    enough = next((point.bits for point in points if point.fvu <= 1.01 * least), 0.0)
    shown = [point for point in points if point.fvu < 0.98 and point.bits <= enough]
    return Curve([p.bits for p in shown], [p.fvu for p in shown], "-")


def sparsity_pictures(rows: Sequence[Row]) -> list[Picture]:
    """FVU against L0: a curve for every family and width, over k."""
    by_width: dict[str, list[Row]] = {}
    for row in models(rows, True):
        by_width.setdefault(f"{row.family} {(row.settings or {}).get('width', 0)}", []).append(row)
    curves = {}
    for name, of_width in by_width.items():
        of_width.sort(key=lambda row: mean(row, "l0"))
        curves[name] = Curve([mean(row, "l0") for row in of_width], [row.spread("fvu") for row in of_width])
    if not curves:
        return []
    figure = draw_lines(curves, "L0, held out", "FVU, held out", log_x=True, size=(7.4, 4.2))
    return [Picture(figure, "FVU against L0: families and widths, over k; bands are 95% intervals over seeds.")]


def disentanglement_pictures(rows: Sequence[Row], known: Known | None) -> list[Picture]:
    """DCI-D against bits, a mark for every model; and the importances of the best sparse and the best dense model."""
    pictures = []
    curves = {}
    for family, of_family in _families(rows).items():
        pairs = [(row.spread("bits"), row.spread("disentanglement")) for row in of_family]
        pairs = [(bits, score) for bits, score in pairs if bits is not None and score is not None]
        if pairs:
            curves[family] = Curve([mean_of(bits) for bits, _ in pairs], [score for _, score in pairs], "o")
    if curves:
        figure = draw_lines(curves, "bits a sample at own FVU + 0.01", "DCI-D, live latents", size=(7.4, 4.2))
        caption = "DCI-D against rate: a mark is a model or control, with its interval over seeds."
        pictures.append(Picture(figure, caption))
    for sparse in (True, False):
        scored = [row for row in models(rows, sparse) if row.seeds[0].importance]
        if known is None or not scored:
            continue
        best = max(scored, key=lambda row: mean(row, "disentanglement"))
        matrix = np.array(best.seeds[0].importance)
        top = np.argsort(-matrix.sum(1), kind="stable")[:LATENTS]
        # ordered by the factor that a latent serves
        shown = sorted(top.tolist(), key=lambda i: (int(matrix[i].argmax()), -float(matrix[i].max())))
        figure = draw_heatmap(
            matrix[shown],
            rows=[f"live latent {i}" for i in shown],
            columns=known.names,
            label="share of a factor's importance",
            title=best.name,
        )
        caption = (
            f"{best.name}, seed 0: importance of the {len(shown)} most important of {len(matrix)} live latents for the "
            f"{'class indicators' if known.indicators else 'factors'} (a column sums to 1 over all latents). A row "
            "with one bright cell is a latent that means one thing; a column with many is shared by many latents."
        )
        pictures.append(Picture(figure, caption))
    return pictures


def probe_pictures(rows: Sequence[Row]) -> list[Picture]:
    """Accuracy of probes against the number of latents: of every family the best model, controls in both pictures."""
    most = f"probe_{PROBED[-1]}"
    controls = [row for row in rows if row.family in CONTROLS and row.name not in ENDS]
    pictures = []
    for title, sparse in KINDS.items():
        trained = models(rows, sparse)
        curves = {}
        for of_family in _families([*trained, *controls]).values():
            probed = [row for row in of_family if row.spread(most) is not None]
            if probed:
                best = max(probed, key=lambda row: mean(row, most))
                curves[best.name] = Curve(PROBED, [best.spread(f"probe_{k}") for k in PROBED])
        if not trained or not curves:
            continue
        x, y = "latents a class", "balanced accuracy, one class against the rest"
        figure = draw_lines(curves, x, y, log_x=True, title=title, size=(7.8, 4.4))
        caption = (
            f"{title}: linear probes on few latents, selected by class-mean difference; .5 is chance. Of every family, "
            f"the setting that is best here with {PROBED[-1]} latents: families with more settings have more chances."
        )
        pictures.append(Picture(figure, caption))
    return pictures


def atom_pictures(rows: Sequence[Row], atoms_of: Callable[[Row], Tensor | None], shape: Sequence[int]) -> list[Picture]:
    """Sheets of atoms [F, D] of models near one FVU, two sparse and two dense, each of another family."""
    errors = {kind: [mean(row, "fvu") for row in models(rows, kind)] for kind in (True, False)}
    if not any(errors.values()):
        return []
    # of the sparse models' FVUs the one nearest to a dense model's
    common = (errors[True] or errors[False])[0]
    if all(errors.values()):
        common = min(errors[True], key=lambda fvu: min(abs(fvu - other) for other in errors[False]))
    nearest: dict[str, Row] = {}
    for row in sorted(models(rows), key=lambda row: abs(mean(row, "fvu") - common)):
        nearest.setdefault(row.family, row)
    pictures = []
    for sparse in (True, False):
        for row in models(list(nearest.values()), sparse)[:2]:
            atoms = atoms_of(row)
            if atoms is None:
                continue
            order = (torch.tensor(row.seeds[0].rates) if sparse else atoms.norm(dim=1)).argsort(descending=True)[:ATOMS]
            which = "fire most" if sparse else "move the image most"
            caption = (
                f"{row.name}: the {len(order)} latents that {which} (FVU {mean(row, 'fvu'):.3f}, near {common:.3f})."
            )
            pictures.append(Picture(draw_atoms(atoms[order], shape, columns=12), caption))
    return pictures


def firing_pictures(courses: Mapping[str, Sequence[Moment]]) -> list[Picture]:
    """Firing rates over time: of every model, quantiles over its latents along the training."""
    levels = {"busiest": 1.0, "90th percentile": 0.9, "median": 0.5, "10th percentile": 0.1}
    pictures = []
    for name, moments in courses.items():
        seen = [moment.images for moment in moments]
        curves = {
            label: Curve(seen, [max(moment.rates.quantile(q).item(), FLOOR) for moment in moments], "-o")
            for label, q in levels.items()
        }
        silent = [100 * (moment.rates == 0).double().mean().item() for moment in moments]
        figure = draw_lines(curves, "images seen", "share of held-out images", log_y=True, title=name)
        caption = (
            f"{name}, seed 0: firing rates of latents over training, in the saved form (rates under {FLOOR} are drawn "
            f"at it). Never firing: {silent[0]:.1f}% at the first mark, {silent[-1]:.1f}% at the last."
        )
        pictures.append(Picture(figure, caption))
    return pictures


def training_picture(courses: Mapping[str, Sequence[Mapping[str, float]]], widths: Mapping[str, int]) -> Picture:
    """Mean firing rate L0 / F of every sparse family over its training, from the metrics that trainings write."""
    curves = {
        name: Curve([line["images"] for line in lines], [line["l0"] / widths[name] for line in lines], "-")
        for name, lines in courses.items()
    }
    figure = draw_lines(curves, "images seen", "mean firing rate L0 / F", log_y=True, size=(7.4, 3.6))
    return Picture(figure, "Mean firing rate of the latents over training, seed 0, in training form.")
