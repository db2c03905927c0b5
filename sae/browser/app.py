"""The HTTP side of the page: requests of the browser are answered from run folders.

    app = create_app([Path("runs/demo")], token="...")
    uvicorn.run(app, host="127.0.0.1")

Every answer is JSON; a refusal is {"error": message} with a 4xx status. GET changes nothing.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response

from sae.browser import lists, models
from sae.browser.context import Answer, Context, RequestError
from sae.browser.guard import HOSTS, Guard
from sae.browser.opened import BrowsedRun
from sae.browser.worker import BusyError, LanguageWorker
from sae.config import Device
from sae.features.store.keys import FeatureError

STATIC = Path(__file__).resolve().parent / "static"
# by suffix, so that a machine's table of types cannot turn a script into text
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def create_app(folders: Sequence[Path], *, token: str, device: Device = "auto") -> FastAPI:
    """The application that serves the page for these run folders to a browser that has `token`."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    context = Context([BrowsedRun(folder) for folder in folders], LanguageWorker(device))
    for run in context.runs:
        run.info()  # reads the stores now, so that the first page does not wait for them
        threading.Thread(target=run.prepare, name="images", daemon=True).start()
    lists.add_routes(app, context)
    models.add_routes(app, context)

    files = page_files()

    @app.get("/")
    def index() -> Response:
        return files["index.html"]

    @app.get("/static/{path:path}")
    def static(path: str) -> Response:
        if path not in files:
            raise RequestError(f"no such file: {path[:100]}", status=404)
        return files[path]

    app.add_exception_handler(Exception, _answer_fault)
    for kind in (ValueError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer_refusal)
    # the last one added is the first to see a request
    app.add_middleware(Guard, token=token)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)
    return app


def page_files() -> dict[str, Response]:
    """The page's files by their path below `static`, read once: no request can name another file."""
    return {
        path.relative_to(STATIC).as_posix(): Response(path.read_bytes(), media_type=TYPES[path.suffix])
        for path in STATIC.rglob("*")
        if path.suffix in TYPES and path.is_file() and not path.is_symlink()
    }


async def _answer_refusal(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return Answer({"error": str(error.detail)}, error.status_code)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return Answer({"error": f"{where}: {first['msg']}"}, 422)
    # refusals are exceptions defined in sae; any other exception is a bug of ours
    if not type(error).__module__.startswith("sae."):
        return await _answer_fault(request, error)
    status = getattr(error, "status", 400)
    if isinstance(error, BusyError):
        status = 429
    if isinstance(error, FeatureError):
        status = 409
    return Answer({"error": str(error)}, status)


async def _answer_fault(request: Request, error: Exception) -> Response:
    traceback.print_exception(error)
    return Answer({"error": f"{type(error).__name__} in the server; the terminal shows where"}, 500)
