"""A self-contained HTML page: sections of text, tables and figures, every picture inside the file.

page = Page("Variational autoencoder, digits")
page.section("Reconstructions", "Originals, reconstructions, errors.")
page.figure(draw_grid(...), "Held-out digits")
page.table([{"k": 2, "FVU": 0.66}])
page.write(out / "report.html")
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sae.files import publish_file
from sae.tables import number

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { font-size: .875rem; opacity: .75; }
.wide { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .875rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
th:first-child, td:first-child, .words { text-align: left; }
td.words { white-space: normal; }
nav ul { columns: 2; padding-left: 1.2rem; }
"""

CSS_DPI, PNG_DPI = 96, 144  # pixels an inch: of the page, and of its pictures, which screens show in finer ones


class Page:
    """Collects parts in the order in which they are given; `write` publishes the file whole."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self._parts: list[str] = []
        self._sections: list[str] = []

    @property
    def sections(self) -> tuple[str, ...]:
        """Titles of the sections so far."""
        return tuple(self._sections)

    def section(self, title: str, text: str = "") -> None:
        """A heading, which the page's list of contents links to, and a paragraph."""
        self._sections.append(title)
        self._parts.append(f'<h2 id="s{len(self._sections)}">{html.escape(title)}</h2>')
        if text:
            self.text(text)

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def figure(self, figure: Figure, caption: str, *, vector: bool = False) -> None:
        """A matplotlib figure: as PNG, or as SVG where it is lines and text alone (`vector`)."""
        # an image of its own, so that names inside one drawing mean nothing in the next
        kind, data = ("svg+xml", _svg(figure)) if vector else ("png", _png(figure))
        # both kinds at the size that figures are laid out for
        width = "" if vector else f' width="{round(int.from_bytes(data[16:20], "big") * CSS_DPI / PNG_DPI)}"'
        says = html.escape(caption)
        image = f'<img alt="{says}"{width} src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
        self._parts.append(f"<figure>{image}<figcaption>{says}</figcaption></figure>")

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table whose columns are the first row's keys; {"value", "low", "high"} is shown as an interval."""
        if not rows:
            return
        names = list(rows[0])
        # words run over several lines, numbers never do
        words = {name: ' class="words"' if isinstance(rows[0][name], str) else "" for name in names}
        head = "".join(f"<th{words[name]}>{html.escape(name)}</th>" for name in names)
        body = "".join(
            "<tr>" + "".join(f"<td{words[name]}>{html.escape(_cell(row.get(name)))}</td>" for name in names) + "</tr>"
            for row in rows
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        self._parts.append(f'<div class="wide">{table}</div>')

    def html(self) -> str:
        """The whole page."""
        title = html.escape(self.title)
        links = "".join(f'<li><a href="#s{i}">{html.escape(s)}</a></li>' for i, s in enumerate(self._sections, 1))
        contents = f"<nav><ul>{links}</ul></nav>" if len(self._sections) > 2 else ""
        under = f"<p>{html.escape(self.subtitle)}</p>" if self.subtitle else ""
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
            f"<body><h1>{title}</h1>{under}{contents}{''.join(self._parts)}</body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Publish the page at `path`."""
        publish_file(path, self.html().encode())


def _cell(value: Any) -> str:
    if isinstance(value, Mapping) and set(value) == {"value", "low", "high"}:
        return f"{number(value['value'])} [{number(value['low'])}, {number(value['high'])}]"
    return number(value)


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=PNG_DPI, bbox_inches="tight")
    return data.getvalue()


def _svg(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(
        data, format="svg", bbox_inches="tight", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    return data.getvalue()
