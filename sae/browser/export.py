"""The page as a folder of files, for a static host or to be opened from the disk without a server.

    export_static(Path("runs/demo"), Path("page"), latents=[3, 17])

A page on file:// may neither fetch nor import, so its modules are joined into one classic script (`bundle`), and the
records are in scripts of `PER_SHARD` latents. `data/records.bin` has the same shards, packed and a quarter smaller, for
hosts that answer range requests. For a run on images, the examples' images and the atoms are PNG files.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sae.base.disk import append, copy_from
from sae.base.files import publish_folder, write_file
from sae.base.progress import Progress
from sae.browser.bundle import bundle
from sae.browser.opened import BrowsedRun, View
from sae.browser.pictures import Pictures
from sae.browser.records import exported_record
from sae.config import ConfigError

STATIC = Path(__file__).resolve().parent / "static"
PER_SHARD = 16
# the server's policy, but for what only a header can say
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'"
)


def export_static(run: Path, out: Path, *, latents: Sequence[int] | None = None) -> dict[str, Any]:
    """Write the page of a run's latents, by default of all of them, to the new folder `out`.

    Returns:
        JSON values: "out", "latents", "files", "bytes" and the page to "open".

    Raises:
        ConfigError: `out` exists, or a latent does not.
        FeatureError: the features are not collected.
    """
    if out.exists():
        raise ConfigError(f"--out {out}: exists already; give a new folder")
    browsed = BrowsedRun(run)
    view = browsed.view()
    exported = list(range(view.listing.width)) if latents is None else list(dict.fromkeys(latents))
    for latent in exported:
        if not 0 <= latent < view.listing.width:
            raise ConfigError(f"latent {latent}: the run has 0 to {view.listing.width - 1:,}")
    with (
        publish_folder(out) as folder,
        Progress() as progress,
        progress.bar("Exporting", len(exported), "latents") as bar,
    ):
        _write_page(folder)
        _write_data(folder / "data", browsed, view, exported, bar.advance)
    files = [path for path in out.rglob("*") if path.is_file()]
    return {
        "out": str(out),
        "latents": len(exported),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "open": str(out / "index.html"),
    }


def _write_page(folder: Path) -> None:
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    page = re.sub(r' *<link rel="modulepreload"[^>]*>\n', "", page)
    page = page.replace(
        '<script type="module" src="static/main.js"></script>',
        '<script defer src="data/index.js"></script>\n    <script defer src="static/app.js"></script>',
    )
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}" />'
    page = page.replace('<meta charset="utf-8" />', f'<meta charset="utf-8" />\n    {policy}')
    write_file(folder / "index.html", page)
    vendor = folder / "static" / "vendor"
    vendor.mkdir(parents=True)
    write_file(folder / "static" / "app.js", bundle(STATIC / "main.js"))
    for style in ("base.css", "style.css"):
        write_file(folder / "static" / style, copy_from(STATIC / style))
    # the chart library is loaded when a chart is drawn; licences and versions go with the code
    for source in (STATIC / "vendor").iterdir():
        if source.name.startswith(("uPlot", "LICENSE", "README")):
            write_file(vendor / source.name, copy_from(source))


def _write_data(folder: Path, run: BrowsedRun, view: View, latents: list[int], advance: Callable[[int], None]) -> None:
    folder.mkdir()
    rows = [view.listing.row(latent, view.marks) for latent in latents]
    logits: list[str] = []
    offsets = [0]
    documents: set[int] = set()
    atoms = set(latents)
    write_file(folder / "records.bin", b"")
    for number, start in enumerate(range(0, len(latents), PER_SHARD)):
        shard = [exported_record(view, latent) for latent in latents[start : start + PER_SHARD]]
        logits += [_top_tokens(record) for record in shard]
        documents.update(example["document"] for each in shard for example in each["record"]["examples"])
        atoms.update(item["latent"] for each in shard for item in (*each["neighbours"], *each["coactive"]))
        # without a time in the header the same run gives the same bytes
        data = gzip.compress(_json(shard), mtime=0)
        append(folder / "records.bin", data)
        offsets.append(offsets[-1] + len(data))
        text = f'SPARSIGHT_SHARD({number},"{base64.b64encode(data).decode()}");\n'
        write_file(folder / f"shard-{number:05d}.js", text)
        advance(len(shard))
    numbers = [name for name in rows[0] if name not in ("latent", "token", "name", "label", "bookmark")] if rows else []
    index = {
        "info": without_places(run.info()),
        "report": without_places(run.report()),
        "latents": latents,
        "columns": {name: [row[name] for row in rows] for name in numbers},
        "tokens": [row["token"] for row in rows],
        "logits": logits,
        "marks": _marks(view, rows),
        "per_shard": PER_SHARD,
        "offsets": offsets,
    }
    write_file(folder / "index.js", b"globalThis.SPARSIGHT=" + _json(index) + b";\n")
    if (pictures := run.pictures()) is not None:
        _write_pictures(folder, pictures, documents, {latent: view.strength(latent) for latent in atoms})


def _write_pictures(folder: Path, pictures: Pictures, documents: set[int], strengths: dict[int, float]) -> None:
    """The images of the examples, and the atoms at these strengths, including those of linked latents."""
    for name in ("images", "atoms"):
        (folder / name).mkdir()
    for document in documents:
        write_file(folder / "images" / f"{document}.png", pictures.image(document))
    for latent, strength in strengths.items():
        write_file(folder / "atoms" / f"{latent}.png", pictures.atom(latent, strength))


def without_places(value: Any) -> Any:
    """JSON values with every absolute path cut to its last name: a page does not tell about the machine's folders."""
    if isinstance(value, dict):
        return {name: without_places(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_places(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _top_tokens(record: dict[str, Any]) -> str:
    """The tokens that a latent makes most likely, to be searched."""
    return " ".join(entry["token"] for entry in record["logits"]["top"]) if record["logits"] else ""


def _marks(view: View, rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    marks = {}
    for row in rows:
        said = {name: row[name] for name in ("name", "label", "bookmark")}
        said["note"] = view.marks.notes.get(row["latent"], {}).get("note")
        if any(said.values()):
            marks[row["latent"]] = said
    return marks


def _json(value: Any) -> bytes:
    # ASCII alone, so that no encoding or line separator can change a script
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # and nothing that could end a script element, should someone put it into one
    return text.replace("<", "\\u003c").encode("ascii")
