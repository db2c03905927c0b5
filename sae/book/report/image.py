"""`sae image report`: one page with all pictures of one finished run on images.

image_report("runs/vae")      # writes runs/vae/report.html
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae.base.progress import Progress
from sae.book.report import codes, dictionary, reconstructions
from sae.book.report.material import Material
from sae.evaluation.words import described, value_at
from sae.pictures.lines import Curve, draw_lines
from sae.pictures.page import Page
from sae.runs.images import open_image_run
from sae.runs.metrics import read_metrics

FILE = "report.html"
WIDE = 20  # largest over least value above which an axis is logarithmic
OF_SPARSE = ("l0", "dead", "densities.never")  # without meaning if every latent always has a value


def write_numbers(material: Material, page: Page) -> None:
    """A table of eval.json."""
    page.section("Numbers", "On held-out images; in brackets the 95% interval over images.")
    measures = described(material.numbers, "image")
    if material.family != "sparse":
        measures = [measure for measure in measures if measure.key not in OF_SPARSE]
    rows = [
        {"Measure": measure.name, "Value": measure.value, "Meaning": measure.meaning}
        for measure in measures
        if not isinstance(measure.value, str)
    ]
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
    heldout = value_at(material.numbers, "fvu")
    if heldout is not None:
        fvu["held out, at the end"] = Curve([seen[-1]], [heldout], "o")
    caption = "Variance not explained; that of training batches is with the noise of inputs and of codes."
    _draw(page, fvu, "FVU", caption)


def _draw(page: Page, curves: dict[str, Curve], y: str, caption: str) -> None:
    """Curves over images seen; on a logarithmic axis if they span more than `WIDE`."""
    values = [v["value"] if isinstance(v, dict) else v for curve in curves.values() for v in curve.y]
    wide = min(values) > 0 and max(values) > WIDE * min(values)
    page.figure(draw_lines(curves, "Images seen", y, log_y=wide), caption)


SECTIONS: tuple[Callable[[Material, Page], None], ...] = (
    write_numbers,
    write_loss,
    reconstructions.write_reconstructions,
    reconstructions.write_denoising,
    reconstructions.write_anomalies,
    codes.write_activity,
    codes.write_traversals,
    codes.write_plane,
    codes.write_scatter,
    codes.write_information,
    codes.write_interpolation,
    codes.write_arithmetic,
    codes.write_samples,
    dictionary.write_atoms,
    dictionary.write_firing,
    dictionary.write_rates,
    dictionary.write_codebook,
    dictionary.write_planted,
    reconstructions.write_spectra,
)
"""Each writes its section, or nothing if it does not apply to the run."""


def image_report(run: str | Path, out: Path | None = None) -> dict[str, Any]:
    """Write the page of a finished run, by default as report.html in its folder.

    Returns:
        JSON values: the run, the page's path, its sections, seconds.

    Raises:
        ConfigError, CorruptError, DataError: the run or its images cannot be used.
    """
    opened = open_image_run(run)
    begun = time.perf_counter()
    material = Material(opened)
    vision, data = opened.vision, opened.config.images.data
    page = Page(
        f"{vision.variant} on {data}",
        f"{opened.folder.name}: {vision.width} latents, {opened.config.epochs} epochs, seed {opened.config.seed}.",
    )
    with Progress() as progress, progress.bar("Drawing", len(SECTIONS), "sections") as bar:
        for write in SECTIONS:
            write(material, page)
            bar.advance(1)
    path = out or opened.folder / FILE
    page.write(path)
    return {
        "run": str(run),
        "report": str(path),
        "sections": list(page.sections),
        "seconds": round(time.perf_counter() - begun, 1),
    }
