"""`sae features`: one pass over a corpus, or over images, that collects every latent's statistics and examples.

report = collect("runs/demo", CollectConfig(tokens=1_000_000))
FeatureStore("runs/demo").record(17)

The store is rewritten from time to time during the pass, so that it can be browsed. A pass that was stopped or killed
resumes from the last writing and gives what an uninterrupted one gives. Under torchrun the processes share out the
chunks, and the result is that of a single process.
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

from sae.base.device import pick_device
from sae.base.files import remove_leftovers
from sae.base.locks import locked
from sae.base.progress import Progress, StopSignal
from sae.base.pulse import PULSE
from sae.base.ranks import Ranks
from sae.config import CollectConfig, ConfigError
from sae.features.collect.subject import Chunk, Mark, Subject
from sae.features.store import windows
from sae.features.store.buffers import NAMES
from sae.features.store.collection import Collection
from sae.features.store.lens import Lens
from sae.features.store.restore import restore
from sae.features.store.store import read_info
from sae.features.store.text import Vocabulary
from sae.features.store.writer import FORMAT, STORE, write_store
from sae.runs.base import kind_of

WHAT = "collecting the features of this run"
PLACE = ("dataset", "text_field", "split", "store", "seed", "tokens")
"""Settings that must be given again to resume a pass."""
DEFAULTS = dataclasses.asdict(CollectConfig())
SHARE = 20  # between two writings passes at least this many times the time that the last writing took


def collect(run: str | Path, config: CollectConfig | None = None) -> dict[str, Any]:
    """Collect the features of a finished run into its folder.

    Returns:
        JSON values: tokens, documents, latents that fired, seconds, the store's size.

    Raises:
        ConfigError, CorruptError, ModelError, DataError: the run, its model, the data or a setting cannot be used.
        Interrupted: SIGINT or SIGTERM; what was collected is written, and `--resume` continues.

    Example:
        >>> import sae
        >>> sae.collect("runs/demo", sae.CollectConfig(tokens=2_048))["fired"] > 0
        True
        >>> record = sae.Run("runs/demo").features.record(3)
        >>> record["count"] >= len(record["examples"])
        True
    """
    config = config or CollectConfig()
    with Ranks.of_process(config.device) as ranks:
        subject = open_subject(run, config)
        if subject.folder != Path(run).expanduser():
            raise ConfigError(
                f"{run}: features are written into the run's folder, and this one lies on the hub; fetch it first: "
                f"hf download {run} --local-dir DIR"
            )
        with locked(subject.folder, "features", WHAT) if ranks.first else contextlib.nullcontext():
            return _Collecting(subject, config, ranks).work()


def open_subject(run: str | Path, config: CollectConfig) -> Subject:
    """The run with the data that its features are collected over; a new kind of run is another case here."""
    device = pick_device(config.device)
    if kind_of(run) == "image":
        from sae.features.collect.image_subject import ImageSubject

        return ImageSubject(run, config, device)
    # late: it imports packages for language models, which runs on images do without
    from sae.features.collect.text_subject import TextSubject

    return TextSubject(run, config, device)


class _Collecting:
    """One pass."""

    def __init__(self, subject: Subject, config: CollectConfig, ranks: Ranks) -> None:
        self.subject, self.config, self.ranks = subject, config, ranks
        self.begun = time.perf_counter()
        self.device = next(subject.model.parameters()).device
        self.path = subject.folder / STORE
        before = read_info(self.path) if self.path.exists() else None
        self.revision = before["revision"] if before else 0
        self.identity = subject.identity()
        self.mark: Mark = [0, 0]
        self.open_document: int | None = None
        self.seen = 0
        """Tokens read so far, those left out included."""
        self.collection = Collection(subject.model.width, config.seed, self.device)
        if config.resume:
            self._check_resume(before)
            assert before is not None
            self.mark, self.seen, self.open_document = before["mark"], before["seen"], before["open_document"]
            if ranks.first:
                self.collection = restore(subject.folder, self.device)
        self.finished_before = bool(config.resume and before and before["finished"] and self.seen >= subject.limit)

    def work(self) -> dict[str, Any]:
        """Read what is left of the corpus; returns the report of `collect`."""
        if self.ranks.first:
            remove_leftovers(self.subject.folder, "features")
        with StopSignal() as stop, Progress() as progress:
            if not self.finished_before:
                self._pass(stop, progress)
        return self._report()

    def _pass(self, stop: StopSignal, progress: Progress) -> None:
        limit, vocabulary = self.subject.limit, self.subject.vocabulary()
        if self.ranks.first and (shown := self.subject.opening()):
            progress.say(shown)
        written, cost = time.perf_counter(), 0.0
        with progress.bar("Collecting", limit, "tokens") as bar:
            bar.skip(min(self.seen, limit))
            for number, chunk in enumerate(self._chunks()):
                if self.ranks.takes(number):
                    self._collect(chunk)
                self.seen += chunk.tokens
                self.mark, self.open_document = chunk.after, chunk.open_document
                bar.advance(min(chunk.tokens, max(0, limit - self.seen + chunk.tokens)))
                if not self.ranks.ends_round(number):
                    continue
                due = time.perf_counter() - written > max(self.config.save_every, SHARE * cost)
                if self.ranks.stopping(stop):
                    progress.say("Writing what was collected.")
                    with PULSE.without_steps("Writing what was collected."):
                        self._publish(vocabulary, finished=False)
                    stop.check(f"continue with: {self._how_to_resume()}")
                if self.ranks.any(due and self.ranks.first):
                    begun = time.perf_counter()
                    with PULSE.without_steps("Writing what was collected."):
                        self._publish(vocabulary, finished=False)
                    written, cost = time.perf_counter(), time.perf_counter() - begun
            if self.seen < limit:
                progress.say(f"The data set has ended after {self.seen:,} of {limit:,} tokens.")
        self._finish(vocabulary, progress)

    def _chunks(self) -> Iterator[Chunk]:
        seen, chunks = self.seen, self.subject.chunks(self.mark)
        while seen < self.subject.limit and (chunk := next(chunks, None)):
            yield chunk
            seen += chunk.tokens

    def _collect(self, chunk: Chunk) -> None:
        read = chunk.read()
        with torch.no_grad():
            codes = self.subject.model.encode(self.subject.inputs_of(read.rows).to(self.device))
        self.collection.add(codes, read.tokens, read.text)
        for kind, count in read.left_out.items():
            self.collection.leave_out(kind, count)

    def _publish(self, vocabulary: Vocabulary, *, finished: bool, nearest: np.ndarray | None = None) -> None:
        """Merge the processes' collections in the first process, which writes them."""
        self.collection.finish(self.open_document)
        mine = None if self.ranks.first else self.collection.to("cpu")
        self.ranks.merge(mine, self.collection.merge)
        if not self.ranks.first:
            self.collection = Collection(self.collection.width, self.collection.seed, self.device)
            return
        if self.ranks.world > 1:
            self.collection.finish(self.open_document)
        self.revision += 1
        norms = self.subject.model.dictionary.W.detach().float().norm(dim=1).cpu().numpy()
        write_store(self.subject.folder, self.collection, vocabulary, self._info(finished), norms, nearest)

    def _finish(self, vocabulary: Vocabulary, progress: Progress) -> None:
        nearest = None
        if self.ranks.first:
            lens = Lens(self.subject.folder, self.identity["weights"])
            progress.say("Writing the features.")
            self.subject.prepare(lens)
            nearest = lens.nearest_cosines()
        self._publish(vocabulary, finished=True, nearest=nearest)

    def _how_to_resume(self) -> str:
        given = dataclasses.asdict(self.config)
        flags = [f"--{name.replace('_', '-')} {given[name]}" for name in PLACE if given[name] != DEFAULTS[name]]
        return " ".join(["sae features", str(self.subject.folder), "--resume", *flags])

    def _check_resume(self, before: dict[str, Any] | None) -> None:
        if before is None:
            raise ConfigError(f"--resume: {self.subject.folder} has no features to resume; leave --resume out")
        for name, value in self.identity.items():
            if before.get(name) != value:
                raise ConfigError(
                    f"--resume: the features were collected with {name} = {before.get(name)!r}, now it is {value!r}; "
                    "leave --resume out to begin anew"
                )

    def _info(self, finished: bool) -> dict[str, Any]:
        collection = self.collection
        return {
            "format": FORMAT,
            **self.subject.info(),
            "width": collection.width,
            "tokens": collection.tokens,
            "documents": len(collection.documents),
            "left_out": collection.left_out,
            "finished": finished,
            "progress": 1.0 if finished else min(1.0, self.seen / self.subject.limit),
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
                "run": str(self.subject.folder),
                "tokens": info["tokens"],
                "left_out": info["left_out"],
                "documents": info["documents"],
                "latents": info["width"],
                "fired": int((self.collection.statistics.count > 0).sum()),
                "megabytes": round(self.path.stat().st_size / 1e6, 1),
                "seconds": round(time.perf_counter() - self.begun, 1),
            }
        )
