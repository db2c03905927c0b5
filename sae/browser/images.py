"""Routes of a run on images: its images, and its atoms as images."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import Response

from sae.browser.context import Context, RequestError

# the page names the revision in the address, so that another collection's images have other addresses
CACHE = {"Cache-Control": "private, max-age=86400, immutable"}


def add_routes(app: FastAPI, context: Context) -> None:
    """Add them to `app`."""

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
