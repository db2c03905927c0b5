"""A page whose figures are also files: SVG for papers, PNG for slides."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sae.base.files import publish_file
from sae.pictures.page import Page

PNG_DPI = 200


class IllustratedPage(Page):
    """A page that keeps its figures by name, for `write_figures`."""

    def __init__(self, title: str, subtitle: str = "", style: str = "") -> None:
        super().__init__(title, subtitle, style)
        self.figures: dict[str, Figure] = {}
        self.left_out: dict[str, str] = {}
        """Title of a section that is not there -> the command that measures what it shows."""

    def illustrate(self, name: str, figure: Figure, caption: str) -> None:
        """A figure with a caption; `name` is that of its files."""
        self.figures[name] = figure
        self.figure(figure, caption)

    def leave_out(self, title: str, command: str) -> None:
        """Note that a section is missing, because a command has not been run."""
        self.left_out[title] = command

    def list_left_out(self) -> None:
        """A section with one line for each section that is missing."""
        if self.left_out:
            self.section("Not in this report", "What was not measured, and the command that measures it.")
            self.table([{"section": title, "command": command} for title, command in self.left_out.items()])

    def write_figures(self, folder: Path) -> list[str]:
        """Write every figure as NAME.svg and NAME.png into `folder`; the names of the files."""
        return [file for name, figure in self.figures.items() for file in write_figure(folder, name, figure)]


def write_figure(folder: Path, name: str, figure: Figure) -> list[str]:
    """Write a figure as NAME.svg and NAME.png into `folder`; the names of the files."""
    written = []
    for kind in ("svg", "png"):
        data = io.BytesIO()
        # no date and no random ids, so that the same figure has the same bytes
        about: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": PNG_DPI}
        figure.savefig(data, format=kind, bbox_inches="tight", **about)
        publish_file(folder / f"{name}.{kind}", _numbered(data.getvalue()) if kind == "svg" else data.getvalue())
        written.append(f"{name}.{kind}")
    return written


def _numbered(svg: bytes) -> bytes:
    """The same drawing with numbers for ids, which matplotlib draws, or hashes from positions whose last bits vary."""
    for number, name in enumerate(dict.fromkeys(re.findall(rb'id="\w*?([0-9a-f]{10})"', svg))):
        svg = svg.replace(name, b"%d" % number)
    return svg
