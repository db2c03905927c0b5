"""`sae image report`: one page with everything that can be shown of one finished run on images.

image_report("runs/vae")      # writes runs/vae/report.html
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae.base.progress import Progress
from sae.book.pictures.page import Page
from sae.book.report.codes import write_activity, write_information, write_plane, write_scatter, write_traversals
from sae.book.report.dictionary import write_atoms, write_codebook, write_firing, write_planted, write_rates
from sae.book.report.material import Material
from sae.book.report.reconstructions import write_anomalies, write_denoising, write_reconstructions, write_spectra
from sae.book.report.training import write_loss, write_numbers
from sae.book.report.walks import write_arithmetic, write_interpolation, write_samples
from sae.runs.images import open_image_run

FILE = "report.html"
SECTIONS: tuple[Callable[[Material, Page], None], ...] = (
    write_numbers,
    write_loss,
    write_reconstructions,
    write_denoising,
    write_anomalies,
    write_activity,
    write_traversals,
    write_plane,
    write_scatter,
    write_information,
    write_interpolation,
    write_arithmetic,
    write_samples,
    write_atoms,
    write_firing,
    write_rates,
    write_codebook,
    write_planted,
    write_spectra,
)
"""Each writes its section, or nothing where the run has nothing of the kind."""


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
