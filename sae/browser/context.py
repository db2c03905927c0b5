"""What every route works with: the runs behind the page and the language worker."""

from __future__ import annotations

from typing import NamedTuple

from sae.browser.opened import BrowsedRun, View
from sae.browser.worker import LanguageWorker


class RequestError(ValueError):
    """A request asks for what is not there, or is malformed; carries the HTTP status."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Context(NamedTuple):
    """The state behind the routes."""

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
        """The run and its features, once the latent is known to exist.

        Raises:
            RequestError: no such run or latent.
            FeatureError: nothing was collected.
        """
        run = self.run(index)
        view = run.view()
        if not 0 <= latent < view.listing.width:
            raise RequestError(f"latent {latent}: the run has 0 to {view.listing.width - 1:,}", status=404)
        return run, view
