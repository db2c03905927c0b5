"""`sae features`: one pass over a corpus that collects every latent's statistics and examples.

report = collect("runs/demo", CollectConfig(tokens=1_000_000))
FeatureStore("runs/demo").record(17)

The store is rewritten now and then while the pass goes on, so that it can be looked at; a pass that was stopped or
killed goes on from the last writing and ends with what an unbroken one gives. Under torchrun the steps are shared out
among the processes and the result is that of one process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from sae.config import CollectConfig, ConfigError
from sae.data.packing import first_token
from sae.device import pick_device
from sae.features import windows
from sae.features.buffers import NAMES
from sae.features.collection import Collection
from sae.features.lens import Lens
from sae.features.ranks import Ranks
from sae.features.restore import restore
from sae.features.source import LiveSource, Mark, Source, Step, StoredSource, open_store
from sae.features.store import read_info
from sae.features.text import Vocabulary
from sae.features.writer import FORMAT, STORE, write_store
from sae.harvest.language_model import LanguageModel
from sae.progress import Progress, StopSignal
from sae.runs import Run, open_run

LOCK = "features.lock"
PLACE = ("dataset", "text_field", "split", "store", "seed", "tokens")
"""Settings that a pass must be given again to go on."""
DEFAULTS = dataclasses.asdict(CollectConfig())
SHARE = 20  # the work between two writings takes at least this many times as long as the last writing took


def collect(run: str | Path, config: CollectConfig | None = None) -> dict[str, Any]:
    """Collect the features of a finished run into its folder.

    Returns:
        JSON values: tokens, documents, latents that fired, seconds, the store's size.

    Raises:
        ConfigError, CorruptError, ModelError, DataError: the run, its model, the data or a setting cannot be used.
        Interrupted: SIGINT or SIGTERM; what was collected is written, `--resume` goes on.
    """
    config = config or CollectConfig()
    with Ranks.of_process() as ranks:
        opened = open_run(run, device=pick_device(config.device))
        if opened.folder != Path(run).expanduser():
            raise ConfigError(
                f"{run}: features are written into the run's folder, and this one lies on the hub; fetch it first: "
                f"hf download {run} --local-dir DIR"
            )
        with _lock(opened.folder) if ranks.first else contextlib.nullcontext():
            return _Collecting(opened, config, ranks).work()


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{folder}: another process is collecting the features of this run") from None
    try:
        yield
    finally:
        lock.release()


class _Collecting:
    """One pass."""

    def __init__(self, run: Run, config: CollectConfig, ranks: Ranks) -> None:
        self.run, self.config, self.ranks = run, config, ranks
        self.begun = time.perf_counter()
        self.device = next(run.model.parameters()).device
        self.path = run.folder / STORE
        before = read_info(self.path) if self.path.exists() else None
        self.revision = before["revision"] if before else 0
        self.identity = self._identity()
        self.mark: Mark = [0, 0]
        self.open_document: int | None = None
        self.seen = 0
        """Tokens of text gone by, those left out included."""
        self.collection = Collection(run.model.width, config.seed, self.device)
        if config.resume:
            self._check_resume(before)
            assert before is not None
            self.mark, self.seen, self.open_document = before["mark"], before["seen"], before["open_document"]
            if ranks.first:
                self.collection = restore(run.folder, self.device)
        self.finished_before = bool(config.resume and before and before["finished"] and self.seen >= config.tokens)

    def work(self) -> dict[str, Any]:
        """Go through the corpus; see `collect`."""
        if self.ranks.first:
            for path in self.run.folder.glob(".partial-*features*"):  # of a writer that was killed
                path.unlink(missing_ok=True)
        with StopSignal() as stop, Progress() as progress:
            if not self.finished_before:
                lm = self.run.load_language_model(self.device)
                self._pass(lm, stop, progress)
        return self._report()

    def _pass(self, lm: LanguageModel, stop: StopSignal, progress: Progress) -> None:
        vocabulary = Vocabulary.of(lm.tokenizer)
        written, cost = time.perf_counter(), 0.0
        with progress.bar("Collecting", self.config.tokens, "tokens") as bar:
            bar.skip(min(self.seen, self.config.tokens))
            for number, step in enumerate(self._steps(lm)):
                if number % self.ranks.world == self.ranks.rank:
                    self._take(step)
                self.seen += step.tokens
                self.mark, self.open_document = step.after, step.open_document
                bar.advance(min(step.tokens, max(0, self.config.tokens - self.seen + step.tokens)))
                if (number + 1) % self.ranks.world:
                    continue
                due = time.perf_counter() - written > max(self.config.save_every, SHARE * cost)
                if self.ranks.any(stop.requested is not None):
                    progress.say("Writing what was collected.")
                    self._publish(vocabulary, finished=False)
                    stop.requested = stop.requested or 15
                    stop.check(f"continue with: {self._how_to_resume()}")
                if self.ranks.any(due and self.ranks.first):
                    begun = time.perf_counter()
                    self._publish(vocabulary, finished=False)
                    written, cost = time.perf_counter(), time.perf_counter() - begun
            if self.seen < self.config.tokens:
                progress.say(f"The data set is used up: it gave {self.seen:,} of {self.config.tokens:,} tokens.")
        self._finish(lm, vocabulary, progress)

    def _steps(self, lm: LanguageModel) -> Iterator[Step]:
        source = self._source(lm)
        seen = self.seen
        if seen >= self.config.tokens:
            return
        for step in source.steps(self.mark):
            yield step
            seen += step.tokens
            if seen >= self.config.tokens:
                return

    def _source(self, lm: LanguageModel) -> Source:
        if self.config.store is not None:
            store = open_store(self.config.store, self.run)
            names = [site.name for site in self.run.inputs]
            return StoredSource(store, names, lm.special, first_token(lm.tokenizer))
        settings = self.run.settings(self.config.dataset, self.config.text_field)
        return LiveSource(self.run.harvest(lm, split=self.config.split, settings=settings))

    def _take(self, step: Step) -> None:
        read = step.read()
        with torch.no_grad():
            codes = self.run.model.encode(self.run.inputs_of(read.rows).to(self.device))
        self.collection.add(codes, read.tokens, read.text)
        for kind, count in read.left_out.items():
            self.collection.leave_out(kind, count)

    def _publish(self, vocabulary: Vocabulary, *, finished: bool, nearest: np.ndarray | None = None) -> None:
        """Bring the processes' collections together in the first, and write them."""
        self.collection = self.ranks.gather(self.collection, self.open_document)
        if not self.ranks.first:
            return
        self.revision += 1
        norms = self.run.model.dictionary.W.detach().float().norm(dim=1).cpu().numpy()
        write_store(self.run.folder, self.collection, vocabulary, self._info(finished), norms, nearest)

    def _finish(self, lm: LanguageModel, vocabulary: Vocabulary, progress: Progress) -> None:
        nearest = None
        if self.ranks.first:
            lens = Lens(self.run.folder, self.identity["weights"])
            progress.say("Writing the features.")
            lens.prepare_logits(lm.model)
            nearest = lens.nearest_cosines()
        self._publish(vocabulary, finished=True, nearest=nearest)

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a pass to go on."""
        run, config = self.run, self.config
        settings = run.settings(config.dataset, config.text_field)
        return {
            "weights": run.record["autoencoder"]["sha256"],
            "dataset": settings.dataset,
            "split": None if config.store else config.split,
            "store": str(config.store.absolute()) if config.store else None,
            "seed": config.seed,
        }

    def _how_to_resume(self) -> str:
        given = dataclasses.asdict(self.config)
        flags = [f"--{name.replace('_', '-')} {given[name]}" for name in PLACE if given[name] != DEFAULTS[name]]
        return " ".join(["sae features", str(self.run.folder), "--resume", *flags])

    def _check_resume(self, before: dict[str, Any] | None) -> None:
        if before is None:
            raise ConfigError(f"--resume: {self.run.folder} has no features to go on with; leave --resume out")
        for name, value in self.identity.items():
            if before.get(name) != value:
                raise ConfigError(
                    f"--resume: the features were collected with {name} = {before.get(name)!r}, now it is {value!r}; "
                    "leave --resume out to begin anew"
                )

    def _info(self, finished: bool) -> dict[str, Any]:
        collection, config = self.collection, self.run.config
        return {
            "format": FORMAT,
            "kind": "language",
            "model": config.harvest.model,
            "site": "+".join(site.name for site in self.run.inputs),
            "width": collection.width,
            "tokens": collection.tokens,
            "documents": len(collection.documents),
            "left_out": collection.left_out,
            "finished": finished,
            "progress": 1.0 if finished else min(1.0, self.seen / self.config.tokens),
            "window": [windows.BACK, windows.AHEAD],
            "slots": {name: collection.buffers[name].slots for name in NAMES},
            "collected_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "revision": self.revision,
            "seen": self.seen,
            "mark": self.mark,
            "open_document": self.open_document,
            **self.identity,
        }

    def _report(self) -> dict[str, Any]:
        if not self.ranks.first:
            return self.ranks.share(None)
        info = read_info(self.path)
        return self.ranks.share(
            {
                "run": str(self.run.folder),
                "tokens": info["tokens"],
                "left_out": info["left_out"],
                "documents": info["documents"],
                "latents": info["width"],
                "fired": int((self.collection.statistics.count > 0).sum()),
                "megabytes": round(self.path.stat().st_size / 1e6, 1),
                "seconds": round(time.perf_counter() - self.begun, 1),
            }
        )
