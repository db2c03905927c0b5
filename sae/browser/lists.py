"""Routes without a language model: the table, a latent, search, documents, images, report, exports, annotation."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path
from typing import Annotated, Any

import fastapi
from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from sae.browser import listing
from sae.browser.context import Answer, Context, RequestError
from sae.browser.opened import BrowsedRun, View
from sae.browser.records import full_record, match, with_briefs
from sae.features.store import related
from sae.features.store.search import search as find_latents

WINDOW = 500
# the page names the revision in the address, so that another collection's images have other addresses
CACHE = {"Cache-Control": "private, max-age=86400, immutable"}
ZIPPED = 2000  # latents in one download of a static page


class Annotation(BaseModel):
    """A person's annotation of a latent; a field that is left out stays as it is, null removes it."""

    model_config = ConfigDict(extra="forbid")
    label: Annotated[str, Field(max_length=500)] | None = None
    note: Annotated[str, Field(max_length=20_000)] | None = None
    bookmark: bool = False


def add_routes(app: FastAPI, context: Context) -> None:

    @app.get("/api/runs")
    def runs() -> Response:
        return Answer([run.info() for run in context.runs])

    @app.get("/api/runs/{index}/report")
    def report(index: int) -> Response:
        return Answer(context.run(index).report())

    @app.get("/api/runs/{index}/latents")
    def latents(
        index: int,
        filter: str = "",
        text: str = "",
        mark: str = "",
        sort: str = "latent",
        start: Annotated[int, Query(ge=0, le=2**31)] = 0,
        count: Annotated[int, Query(ge=0, le=WINDOW)] = 100,
        find: int | None = None,
    ) -> Response:
        view = context.run(index).view()
        query = listing.Query.parse(filter=filter, text=text, mark=mark, sort=sort)
        selected = view.listing.select(query, view.marks)
        return Answer(
            {
                "total": len(selected),
                "of": view.listing.width,
                "revision": [view.store.info["revision"], view.marks.revision],
                "start": start,
                "rows": [view.listing.row(i, view.marks) for i in selected[start : start + count].tolist()],
                "found": None if find is None else view.listing.place_of(find, query, view.marks),
            }
        )

    @app.get("/api/runs/{index}/latents/{latent}")
    def record(index: int, latent: int) -> Response:
        _, view = context.latent(index, latent)
        return Answer(full_record(view, latent))

    @app.get("/api/runs/{index}/latents/{latent}/logits")
    def logits(index: int, latent: int) -> Response:
        _, view = context.latent(index, latent)
        return Answer(view.store.logits(latent))

    @app.get("/api/runs/{index}/latents/{latent}/neighbours")
    def neighbours(index: int, latent: int) -> Response:
        _, view = context.latent(index, latent)
        return Answer(with_briefs(view, view.store.neighbours(latent)))

    @app.get("/api/runs/{index}/latents/{latent}/coactive")
    def coactive(index: int, latent: int) -> Response:
        _, view = context.latent(index, latent)
        return Answer(with_briefs(view, related.coactive(view.store, latent)))

    @app.get("/api/runs/{index}/latents/{latent}/matches")
    def matches(index: int, latent: int) -> Response:
        run, _ = context.latent(index, latent)
        others = [(i, other) for i, other in enumerate(context.runs) if i != index]
        return Answer([match(run, latent, i, other) for i, other in others])

    @app.put("/api/runs/{index}/latents/{latent}/annotation")
    def annotate(index: int, latent: int, annotation: Annotation) -> Response:
        run, _ = context.latent(index, latent)
        run.annotate(latent, **annotation.model_dump(exclude_unset=True))
        return Answer(full_record(run.view(), latent)["annotation"])

    @app.get("/api/runs/{index}/search")
    def search(index: int, text: Annotated[str, Query(max_length=200)]) -> Response:
        view = context.run(index).view()
        return Answer(with_briefs(view, [hit._asdict() for hit in find_latents(view.store, text, limit=50)]))

    @app.get("/api/runs/{index}/documents/{document}")
    def document(index: int, document: Annotated[int, fastapi.Path(ge=0, lt=2**53)]) -> Response:
        return Answer(context.run(index).view().store.document(document))

    @app.get("/api/runs/{index}/images/{document}.png")
    def image(index: int, document: int) -> Response:
        pictures = context.run(index).pictures()
        if pictures is None:
            raise RequestError(f"run {index}: its features are of text, it has no images", status=404)
        if not 0 <= document < pictures.count:
            raise RequestError(f"image {document}: the run has 0 to {pictures.count - 1:,}", status=404)
        return Response(pictures.image(document), media_type="image/png", headers=CACHE)

    @app.get("/api/runs/{index}/atoms/{latent}.png")
    def atom(index: int, latent: int) -> Response:
        run, view = context.latent(index, latent)
        pictures = run.pictures()
        if pictures is None:
            raise RequestError(f"run {index}: its features are of text, its atoms are no images", status=404)
        return Response(pictures.atom(latent, view.strength(latent)), media_type="image/png", headers=CACHE)

    @app.get("/api/runs/{index}/export/{kind}")
    def export(
        index: int, kind: str, filter: str = "", text: str = "", mark: str = "", sort: str = "latent", latents: str = ""
    ) -> Response:
        run = context.run(index)
        view = run.view()
        query = listing.Query.parse(filter=filter, text=text, mark=mark, sort=sort)
        selected = view.listing.select(query, view.marks).tolist()
        if latents:
            selected = _listed(latents, view.listing.width)
        if kind == "csv":
            return _download(table_csv(view, selected), f"{run.name}.csv", "text/csv")
        if kind == "python":
            return _download(python_snippet(run, selected), f"{run.name}_latents.py", "text/x-python")
        if kind == "static":
            return _download(zipped_page(run, selected), f"{run.name}.zip", "application/zip")
        raise RequestError(f"export {kind!r}: expected csv, python or static", status=404)


def table_csv(view: View, latents: list[int]) -> bytes:
    """The table as CSV, one row a latent."""
    out = io.StringIO()
    writer: Any = None
    for latent in latents:
        row = view.listing.row(latent, view.marks)
        if writer is None:
            writer = csv.DictWriter(out, list(row))
            writer.writeheader()
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return out.getvalue().encode("utf-8", "replace")


def python_snippet(run: BrowsedRun, latents: list[int]) -> bytes:
    """Python code that opens the run and reads these latents."""
    listed = ", ".join(map(str, latents[:10_000]))
    return f"""import sae
from sae.features.store.store import FeatureStore

folder = {str(run.folder.resolve())!r}
latents = [{listed}]
model = sae.load(folder)
store = FeatureStore(folder)

atoms = model.dictionary.W[latents]  # [{len(latents[:10_000])}, d]
for latent in latents:
    record = store.record(latent)
    print(latent, record["density"], record["examples"][:1])
""".encode()


def zipped_page(run: BrowsedRun, latents: list[int]) -> bytes:
    """The static page of these latents as a .zip."""
    import shutil

    from sae.browser.export import export_static

    if len(latents) > ZIPPED:
        raise RequestError(
            f"export: {len(latents):,} latents are selected, a download has at most {ZIPPED:,}; filter them, or run "
            f"`sae export {run.folder} --to static --out DIR`"
        )
    with tempfile.TemporaryDirectory() as folder:
        export_static(run.folder, Path(folder) / "page", latents=latents)
        return Path(shutil.make_archive(f"{folder}/page", "zip", f"{folder}/page")).read_bytes()


def _cell(value: Any) -> Any:
    # a spreadsheet runs text that begins like a formula
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _listed(latents: str, width: int) -> list[int]:
    try:
        selected = [int(part[:12]) for part in latents.split(",")]
    except ValueError:
        raise RequestError(f"latents {latents[:60]!r}: expected numbers with commas between them") from None
    if any(not 0 <= latent < width for latent in selected):
        raise RequestError(f"latents {latents[:60]!r}: the run has 0 to {width - 1:,}")
    return selected


def _download(content: bytes, name: str, media_type: str) -> Response:
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
    return Response(content, media_type=media_type, headers={"Content-Disposition": f'attachment; filename="{safe}"'})
