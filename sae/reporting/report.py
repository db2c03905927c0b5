"""`sae report`: one self-contained page about one run or several, its figures as files, and a model card for each run.

report(["runs/demo"], Path("runs/demo/report"))
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sae.base.files import publish_file
from sae.base.progress import Progress
from sae.config import ConfigError
from sae.interop.export import open_finished
from sae.interop.export.hub import card
from sae.reporting import latents
from sae.reporting.added import added
from sae.reporting.course import training
from sae.reporting.dictionary import densities, geometry
from sae.reporting.fidelity import overview, references
from sae.reporting.figures import IllustratedPage
from sae.reporting.naming import naming
from sae.reporting.pairs import pairs
from sae.reporting.provenance import measures, provenance
from sae.reporting.semantic import semantic
from sae.reporting.stability import stability
from sae.reporting.steering import steering
from sae.reporting.subjects import Subject, open_subjects

SECTIONS: tuple[Callable[[IllustratedPage, Sequence[Subject]], None], ...] = (
    overview,
    references,
    pairs,
    added,
    stability,
    steering,
    naming,
    semantic,
    densities,
    geometry,
    training,
    latents.latents,
    measures,
    provenance,
)
"""In the order in which they are read; each leaves itself out where it has nothing to say."""
PAGE, FIGURES, CARD = "report.html", "figures", "model_card.md"


def report(runs: Sequence[str | Path], out: str | Path) -> dict[str, Any]:
    """Write the page, its figures and the model cards into the folder `out`; a run without eval.json is evaluated.

    Args:
        runs: run folders on text, or on files of activations.
        out: a folder; what an earlier report wrote there is replaced.

    Returns:
        Where the page is, and the titles of its sections.

    Raises:
        ConfigError, CorruptError: a run is missing, of another kind, or damaged; nothing was written.

    Example:
        >>> import sae
        >>> result = sae.report(["runs/demo"], "report")
        >>> result["page"]
        'report/report.html'
    """
    out = Path(out).expanduser()
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: a file; expected a folder")
    subjects = open_subjects(runs)
    with Progress() as progress:
        for subject in subjects:
            subject.evaluate(progress.say)
        page = make_page(subjects)
    publish_file(out / PAGE, page.html().encode())
    figures = page.write_figures(out / FIGURES)
    cards = []
    for subject in subjects:
        name = CARD if len(subjects) == 1 else f"{subject.folder.name}_{CARD}"
        publish_file(out / name, model_card(subject).encode())
        cards.append(name)
    return {
        "page": str(out / PAGE),
        "sections": list(page.sections),
        "figures": len(figures),
        "model_cards": cards,
        "next": f"open {out / PAGE} in a browser; it needs no network",
    }


def model_card(subject: Subject) -> str:
    """The card with which the hub would show the run; `sae export --to hub` writes it again under the real name."""
    return card(open_finished(subject.folder), f"user/{subject.folder.name}", subject.numbers)


def make_page(subjects: Sequence[Subject]) -> IllustratedPage:
    """The report's page."""
    names = ", ".join(subject.name for subject in subjects)
    page = IllustratedPage(f"Report: {names}", f"Made on {time.strftime('%Y-%m-%d')}.", latents.STYLE)
    for section in SECTIONS:
        section(page, subjects)
    page.list_left_out()
    return page
