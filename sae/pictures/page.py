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

import numpy as np
from matplotlib.figure import Figure

from sae.base.files import publish_file
from sae.base.tables import number

STYLE = Path(__file__).parents[1] / "browser" / "static" / "base.css"
"""The style of all pages, the browser's included."""
LAYOUT = """
body { margin: 0; }
header, main { max-width: 1180px; margin: 0 auto; padding: 16px 18px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 14px; padding-bottom: 0; }
header .brand { align-self: center; }
header h1 { margin: 0; font-size: 17px; }
header p { flex-basis: 100%; }
main { display: flex; flex-direction: column; gap: 14px; padding-bottom: 40px; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px 16px; }
section > * + * { margin-top: 10px; }
section > p { max-width: 90ch; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 4px; }
nav a { padding: 3px 10px; border: 1px solid var(--line); border-radius: 14px; background: var(--paper); }
nav a:hover { background: var(--hover); text-decoration: none; }
figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
/* a drawing has dark lines on white; in the dark its lightness is turned round and its black becomes the paper */
@media (prefers-color-scheme: dark) {
  figure img.drawing { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
}
details > summary { cursor: pointer; padding: 4px 0; }
figcaption { font-size: 13px; color: var(--muted); max-width: 90ch; }
td.words { min-width: 9em; }
th { white-space: nowrap; }
/* in a wide table a row's name stays visible, and an interval stands under its number */
.many th:first-child, .many td:first-child { position: sticky; left: 0; background: var(--paper); }
.many .interval { display: block; font-size: 12px; }
"""
MARK = '<span class="brand"><span class="mark" aria-hidden="true"><i></i><i></i><i></i></span>Sparsight</span>'
MANY = 8  # columns above which a table counts as wide
CLOUD = 200  # points of one scatter plot up to which a figure is an SVG
CSS_DPI, PNG_DPI = 96, 144  # pixels an inch: of the page, and of its pictures, for screens with finer pixels


class Page:
    """Collects sections, texts, tables and figures in order; `write` publishes the whole file at once.

    Args:
        title: of the page.
        subtitle: a line under it.
        style: CSS of what `insert` adds.
    """

    def __init__(self, title: str, subtitle: str = "", style: str = "") -> None:
        self.title, self.subtitle, self.style = title, subtitle, style
        self._parts: list[str] = []
        self._sections: list[str] = []

    @property
    def sections(self) -> tuple[str, ...]:
        """Titles of the sections so far."""
        return tuple(self._sections)

    def section(self, title: str, text: str = "") -> None:
        """Begin a section with a heading, to which the list of contents links, and a paragraph."""
        end = "</section>" if self._sections else ""
        self._sections.append(title)
        self._parts.append(f'{end}<section><h2 id="s{len(self._sections)}">{html.escape(title)}</h2>')
        if text:
            self.text(text)

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def figure(self, figure: Figure, caption: str) -> None:
        """A matplotlib figure: as SVG if it has lines and text alone, else as PNG."""
        if _is_raster(figure):
            kind, data = "png", _saved(figure, format="png", dpi=PNG_DPI)
            # at the size for which the figure was laid out, as SVG is
            size = f' width="{round(int.from_bytes(data[16:20], "big") * CSS_DPI / PNG_DPI)}"'
        else:
            kind, size = "svg+xml", ' class="drawing"'
            data = _saved(figure, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        alt = html.escape(caption)
        # an <img>, so that ids inside one drawing do not clash with those of the next
        image = f'<img alt="{alt}"{size} src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
        self._parts.append(f"<figure>{image}<figcaption>{alt}</figcaption></figure>")

    def fold(self, title: str, text: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table with a paragraph above it, closed until its title is clicked."""
        self._parts.append(f"<details><summary>{html.escape(title)}</summary>")
        self.text(text)
        self.table(rows)
        self._parts.append("</details>")

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table whose columns are the first row's keys; {"value", "low", "high"} is shown as an interval."""
        if not rows:
            return
        names = list(rows[0])
        # words wrap, numbers do not
        kind = {name: "words" if isinstance(rows[0][name], str) else "num" for name in names}
        head = "".join(f'<th class="{kind[name]}">{html.escape(name)}</th>' for name in names)
        body = "".join(
            "<tr>" + "".join(f'<td class="{kind[name]}">{_cell(row.get(name))}</td>' for name in names) + "</tr>"
            for row in rows
        )
        many = " many" if len(names) > MANY else ""
        table = f'<table class="plain{many}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        # tabindex: reached by the Tab key and scrolled by arrow keys
        self._parts.append(f'<div class="wide" tabindex="0" role="region" aria-label="Table">{table}</div>')

    def inner(self) -> str:
        """The HTML added so far, which `insert` puts into another page."""
        return "".join(self._parts)

    def insert(self, inner: str) -> None:
        """HTML from another page's `inner`."""
        self._parts.append(inner)

    def html(self) -> str:
        """The whole page."""
        title = html.escape(self.title)
        links = "".join(f'<a href="#s{i}">{html.escape(s)}</a>' for i, s in enumerate(self._sections, 1))
        contents = f'<nav aria-label="Contents">{links}</nav>' if len(self._sections) > 2 else ""
        under = f'<p class="muted">{html.escape(self.subtitle)}</p>' if self.subtitle else ""
        end = "</section>" if self._sections else ""
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{STYLE.read_text(encoding='utf-8')}{LAYOUT}{self.style}</style></head>"
            f"<body><header>{MARK}<h1>{title}</h1>{under}</header>"
            f"<main>{contents}{self.inner()}{end}</main></body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Publish the page at `path`."""
        publish_file(path, self.html().encode())


def _cell(value: Any) -> str:
    if isinstance(value, Mapping) and set(value) == {"value", "low", "high"}:
        interval = f"[{number(value['low'])}, {number(value['high'])}]"
        return f'{html.escape(number(value["value"]))} <span class="interval">{html.escape(interval)}</span>'
    return html.escape(number(value))


def _is_raster(figure: Figure) -> bool:
    """Whether a figure has an image, or a cloud of more points than an SVG should have."""
    return any(
        axis.images or any(np.size(collection.get_offsets()) > 2 * CLOUD for collection in axis.collections)
        for axis in figure.axes
    )


def _saved(figure: Figure, **options: Any) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, bbox_inches="tight", **options)
    return data.getvalue()
