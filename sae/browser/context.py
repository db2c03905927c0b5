"""What every route works with: the runs behind the page, the language worker, answers and refusals."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from starlette.responses import JSONResponse

from sae.browser.opened import BrowsedRun, View
from sae.browser.worker import LanguageWorker


class Answer(JSONResponse):
    """Compact JSON from plain values; NaN is a bug of ours and raises."""

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")


class RequestError(ValueError):
    """A request is malformed, or asks for something that does not exist; carries the HTTP status."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Context(NamedTuple):
    """The state shared by the routes."""

    runs: list[BrowsedRun]
    worker: LanguageWorker

    def run(self, index: int) -> BrowsedRun:
        """The run of that number.

        Raises:
            RequestError: there is none.
        """
        if not 0 <= index < len(self.runs):
            raise RequestError(f"run {index}: runs 0 to {len(self.runs) - 1} are open", status=404)
        return self.runs[index]

    def latent(self, index: int, latent: int) -> tuple[BrowsedRun, View]:
        """The run and its features, where the latent exists.

        Raises:
            RequestError: no such run or latent.
            FeatureError: nothing was collected.
        """
        run = self.run(index)
        view = run.view()
        if not 0 <= latent < view.listing.width:
            raise RequestError(f"latent {latent}: the run has 0 to {view.listing.width - 1:,}", status=404)
        return run, view
