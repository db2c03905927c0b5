"""The thread that runs language models for the page: they are loaded when needed; one job at a time, few wait.

worker = LanguageWorker(device)
answer = await worker.do(folder, lambda run, lm: examine(run, lm, "The river"))
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from sae.config import Device
from sae.harvest.language_model import LanguageModel
from sae.runs.text import Run, open_run

Job = Callable[[Run, LanguageModel], Any]
WAITING = 4


class BusyError(ValueError):
    """Too many prompts are waiting."""


class LanguageWorker:
    """Runs jobs with runs' language models in its own thread."""

    def __init__(self, device: Device = "auto") -> None:
        self._device: Device = device
        self._jobs: queue.Queue[tuple[Path, Job, Future[Any]]] = queue.Queue(WAITING)
        self._runs: dict[Path, Run] = {}
        self._models: dict[tuple[str, str], LanguageModel] = {}
        self._thread: threading.Thread | None = None

    async def do(self, folder: Path, job: Job) -> Any:
        """The result of `job` for the run in `folder` and its language model.

        Raises:
            BusyError: `WAITING` jobs wait already.
            ConfigError, CorruptError, ModelError, ...: the run or its model cannot be used, or the job refuses.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="language model", daemon=True)
            self._thread.start()
        future: Future[Any] = Future()
        try:
            self._jobs.put_nowait((folder, job, future))
        except queue.Full:
            raise BusyError(f"{WAITING} prompts wait already; try again when one is done") from None
        return await asyncio.wrap_future(future)

    def _work(self) -> None:
        while True:
            folder, job, future = self._jobs.get()
            # cancelled: the page has been closed
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job(*self._open(folder)))
            except BaseException as error:  # raised where the result is awaited
                future.set_exception(error)

    def _open(self, folder: Path) -> tuple[Run, LanguageModel]:
        from sae.base.device import pick_device

        device = pick_device(self._device)
        if folder not in self._runs:
            self._runs[folder] = open_run(folder, device=device)
        run = self._runs[folder]
        key = (run.source.place, run.config.harvest.precision)
        if key not in self._models:
            self._models[key] = run.load_language_model(device)
        return run, self._models[key]
