"""Activations of a language model over text, as training data: harvested live, or into a store that is read again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae.base.launcher import world_size
from sae.base.progress import PLAIN_SECONDS, Progress, StopSignal
from sae.base.pulse import PULSE
from sae.config import ConfigError, TrainConfig, refuse_ignored
from sae.data.packing import named_ids
from sae.harvest.attention import check_layout
from sae.harvest.beginning import Beginning, described, recorded, settle
from sae.harvest.buffer import LiveBatches, StoredBatches
from sae.harvest.filling import Filler
from sae.harvest.identity import measured
from sae.harvest.language_model import (
    LanguageModel,
    load_language_model,
    locate_model,
    skeleton,
)
from sae.harvest.model_shape import check_context, parameters_up_to
from sae.harvest.opening import opening
from sae.harvest.store import DiskStore, MemoryStore, Store, fill_store
from sae.harvest.store_disk import read_store
from sae.harvest.stream import PERCENTILES, Harvest
from sae.models.language import find_variant
from sae.models.settings import check_together, refuse_unread
from sae.training import text_checks as checks
from sae.training.distributed.shape import Shape
from sae.training.run_folder import read_record
from sae.training.text_plan import TextPlan


@dataclass
class TextData(TextPlan):
    """Implements `TrainingData`; `open_text` makes it."""

    kind, unit, command, advice = "language", "tokens", "sae train", ""
    available: int | None = None
    left_over: int = 0
    harvest: Harvest | None = None
    """Once prepared."""
    store: Store | None = None
    """Activations that other runs harvested; by default this one harvests its own."""
    hint: str = ""
    """How to go on after a stop; by default the command that resumes this run."""

    @property
    def harvested(self) -> dict[str, int]:
        return {} if self.harvest is None else dict(self.harvest.counts)

    def prepare(self, progress: Progress) -> None:
        """Load the language model, look at its first forward pass, and settle the precision of activations.

        A store that holds all rows, and what else must be known of the model, makes this needless.
        """
        if self.complete and self.opened is not None and "measured" in self.opened.identity:
            rows = min(self.opened.rows, self.config.tokens)
            progress.say(f"Activations of {rows:,} tokens are read from {self.config.store}; the model is not loaded.")
            return
        harvest = self.open_harvest(progress)
        progress.say(norm_report(harvest))
        self.use(harvest, progress)

    def open_harvest(self, progress: Progress) -> Harvest:
        """Load the language model; what is read is said, and no forward pass made yet."""
        lm = self._load_model(progress)
        limits = None if self.opened is None else self.opened.identity.get("measured", {}).get("norm_limits")
        if limits is not None and not limits.keys() <= {site.name for site in self.sites}:
            limits = None
        harvest = Harvest(
            lm, self.sites, self.documents, self.config.harvest, limits, tell=progress.say, spare=self.spare_bytes
        )
        progress.say(opening(harvest.documents, lm.tokenizer, self.config.harvest, beginning=lm.beginning))
        progress.say(harvest.attention.line())
        if self.opened is not None:
            check_layout(self.config.store, self.opened.identity.get("measured"), harvest.attention)
        return harvest

    def use(self, harvest: Harvest, progress: Progress) -> None:
        """Take rows from this harvest, and settle the precision of activations."""
        self.harvest = harvest
        self.use_contexts(harvest.contexts_in_a_pass)
        if self.precision == "auto":
            precision, reason = harvest.first_pass.precision
            progress.say(f"Activations are kept in {precision}: {reason}.")
            self.settle_precision(precision)
        elif self.config.harvest.store_precision == "auto":
            progress.say(f"Activations are kept in {self.precision}, as they were before.")

    def use_contexts(self, contexts: int) -> None:
        """Take forward passes of this many contexts, whatever was asked for."""
        settings = dataclasses.replace(self.config.harvest, contexts=contexts)
        self.config = dataclasses.replace(self.config, harvest=settings)

    def settle_precision(self, precision: str) -> None:
        """Keep activations in this precision.

        Raises:
            ConfigError: it takes more memory or disk than there is.
        """
        before, self.precision = self.row_bytes, precision
        if self.row_bytes > before:
            self.check_space()

    def _load_model(self, progress: Progress) -> LanguageModel:
        """The language model; segments begin as in the resumed run or the store, where there is one."""
        config = self.config
        lm = load_language_model(self.source, device=self.device, precision=config.harvest.precision)
        identity = None if self.opened is None else self.opened.identity
        if config.resume:
            kept = read_record(config.out).get("harvest") or {}
            beginning = Beginning(recorded(kept.get("beginning"), lm.tokenizer), "as the run began")
        elif identity is not None and config.harvest.bos == "auto":
            beginning = Beginning(recorded(identity.get("beginning"), lm.tokenizer), f"as in {config.store}")
        else:
            beginning = settle(lm, config.harvest, self.documents)
        progress.say(beginning.line(lm.tokenizer))
        return lm._replace(beginning=beginning.ids)

    @property
    def stop_hint(self) -> str:
        """How to go on after a stop."""
        return self.hint or f"continue with: {self.command} --resume --out {self.config.out}"

    @property
    def _harvest(self) -> Harvest:
        assert self.harvest is not None, "prepare() first"
        return self.harvest

    @property
    def _stream(self) -> dict[str, Any]:
        """The model and its stream, as the harvest or the store that was read knows them."""
        if self.harvest is not None:
            return {**measured(self.harvest), "beginning": described(self.harvest.lm)}
        store = self.store or self.opened
        assert store is not None, "prepare() first"
        return {**store.identity["measured"], "beginning": store.identity["beginning"]}

    def record(self) -> dict[str, Any]:
        stream = self._stream
        view = {"store_view": self.opened.view} if self.complete and self.opened is not None else {}
        attention = {"attention": stream["attention"]} if "attention" in stream else {}  # stores of earlier versions
        return {
            "sites": {
                "inputs": [site.describe() for site in self.inputs],
                "targets": [site.describe() for site in self.targets],
            },
            "model": stream["model"],
            "harvest": {"beginning": stream["beginning"], "store_precision": self.precision, **attention, **view},
        }

    def batches(self, stop: StopSignal, progress: Progress) -> StoredBatches | LiveBatches:
        if not self.cached:
            return self.live(stop, progress)
        store = self.store or self.open_store(stop, progress)
        batches = StoredBatches(store, epochs=self.config.epochs, device=self.device, **self.cut())
        self.available, self.left_over = batches.tokens, batches.left_over
        return batches

    def open_store(self, stop: StopSignal, progress: Progress) -> Store:
        """The run's activations, in memory or on disk, after harvesting what is missing."""
        config = self.config
        if config.store is None:
            store = self._fill(MemoryStore(self.store_identity, config.tokens), stop, progress)
        elif self.complete and self.opened is not None:
            store = DiskStore(config.store, self.store_identity, view=self.opened.view)
            store.limit = config.tokens
        else:
            store = DiskStore(config.store, self.store_record())
            with store.writing():
                self._fill(store, stop, progress)
        if store.rows < config.tokens:
            progress.say(f"The data set is used up: it gave {store.rows:,} of the {config.tokens:,} tokens asked for.")
        return store

    def store_record(self) -> dict[str, Any]:
        """What a store records, with how segments begin; one from before that was recorded has BOS, else CLS, first."""
        if self.harvest is None:
            return self.store_identity  # a complete store was read instead of the model
        lm = self._harvest.lm
        if self.opened is None:
            return {**self.store_identity, "beginning": described(lm), "measured": measured(self._harvest)}
        if "beginning" not in self.opened.identity and lm.beginning == named_ids(lm.tokenizer):
            return self.store_identity
        return {**self.store_identity, "beginning": described(lm)}

    def _fill(self, store: Store, stop: StopSignal, progress: Progress) -> Store:
        """Harvest what a store lacks, with a bar."""
        config = self.config
        kept = f"harvested rows on disk stay in {config.store}; " if config.store else ""
        with progress.bar("Harvesting", config.tokens, "tokens") as bar:

            def advance(rows: int) -> None:
                bar.advance(rows)
                stop.check(kept + self.stop_hint)

            return fill_store(store, self._harvest, tokens=config.tokens, progress=advance)

    def memory_filler(self) -> Filler:
        """Fills one block with all that this run keeps in memory."""
        tokens, names = self.config.tokens, [site.name for site in self.sites]
        dtype = getattr(torch, self.precision)
        return Filler(self._harvest, names, dtype, total=tokens, block=tokens, repeats=False, on_cpu=True)

    def live(
        self, stop: StopSignal, progress: Progress, kind: type[LiveBatches] = LiveBatches, **more: Any
    ) -> LiveBatches:
        """Batches straight from the model, of one `kind` with `more` of its arguments."""
        spoken = time.perf_counter()
        rows_harvested = 0

        def advance(rows: int) -> None:
            nonlocal spoken, rows_harvested
            rows_harvested += rows
            PULSE.beat()
            # a buffer can take minutes to fill, while no step is taken
            if time.perf_counter() - spoken > PLAIN_SECONDS:
                spoken = time.perf_counter()
                progress.say(f"Harvested {rows_harvested:,} tokens.")
            stop.check(self.stop_hint)

        batches = kind(
            self._harvest,
            tokens=self.config.tokens,
            dtype=getattr(torch, self.precision),
            overlap=self.device.type == "cuda",
            device=self.device,
            on_restart=lambda n: progress.say(f"The data set is used up: pass {n} over it begins."),
            progress=advance,
            **self.cut(),
            **more,
        )
        self.left_over = batches.left_over
        return batches

    def cut(self) -> dict[str, Any]:
        """How batches are cut, live or stored."""
        return {
            "inputs": [site.name for site in self.inputs],
            "targets": [site.name for site in self.targets],
            "batch": self.batch,
            "buffer_bytes": self.config.buffer_mb << 20,
            "seed": self.config.seed,
            "pairs": find_variant(self.config.sae).neighbours,
        }

    def first_inputs(self, count: int) -> Iterator[Tensor]:
        return iter(())

    def finished(self) -> dict[str, Any]:
        stream = self._stream
        names = {site.name for site in self.sites}  # a harvest that feeds other runs too knows more
        limits = {name: limit for name, limit in stream["norm_limits"].items() if name in names}
        known = {"norm_limits": limits}
        known |= {name: stream[name] for name in ("isolation", "attention", "beginning") if name in stream}
        view = {"store_view": self.opened.view} if self.complete and self.opened is not None else {}
        return {"harvest": {**known, "store_precision": self.precision, **view}}


def open_text(config: TrainConfig, device: torch.device) -> TextData:
    """Check the settings, the model's shape and the data set, without reading weights.

    Raises:
        ConfigError, ModelError, SiteError, DataError: a setting is wrong; the message says what exists.
    """
    variant = find_variant(config.sae)
    if not config.resume:  # a run keeps the settings that it was begun with
        refuse_unread(config.sae, config.optim, variant)
        refuse_ignored(config, checks.ignored_by_batches(config))
    Shape.of(config.mesh, world_size())
    check_together(config.sae, config.optim, variant, config.harvest.target_site)
    checks.check_same_store(config)
    config = checks.with_contexts(config)
    batch = config.optim.batch or (4096 if device.type == "cuda" else 2048)
    if config.tokens < batch:
        raise ConfigError(f"--tokens {config.tokens}: less than one batch; expected at least --batch {batch}")
    source = locate_model(config.harvest.model, trust_remote_code=config.harvest.trust_remote_code)
    model = skeleton(source)
    check_context(config.harvest, model)
    inputs = checks.input_sites(config, variant, model)
    targets = checks.target_sites(config, inputs, model)
    data = TextData(
        config=config,
        source=source,
        inputs=inputs,
        targets=targets,
        documents=checks.training_documents(config, source, model),
        device=device,
        batch=batch,
        layer_parameters=parameters_up_to(model, [*inputs, *targets]),
        precision=checks.known_precision(config),
    )
    if data.precision == "int8" and config.store is None:
        raise ConfigError("--store-precision int8: a precision of stores, and no --store is given; leave it out")
    if config.store is not None and read_store(config.store, data.store_identity) is not None:
        view = (read_record(config.out).get("harvest") or {}).get("store_view") if config.resume else None
        data.opened = DiskStore(config.store, data.store_identity, view=view, verify=False)
        checks.check_rows(config, data.opened)
        checks.check_beginning(config, data.opened)
        if data.complete and "measured" in data.opened.identity:
            checks.refuse_route(config)
    return data


def norm_report(harvest: Harvest) -> str:
    """The percentiles of activation norms over the first forward pass, and what was left out for it."""
    lines = []
    for site, values in harvest.first_pass.norm_percentiles.items():
        shown = "  ".join(f"p{p} {value:.4g}" for p, value in zip(PERCENTILES, values, strict=True))
        limit = harvest.norm_limits.get(site)
        left_out = f"; tokens over {limit:.4g} are left out as sinks" if limit else ""
        lines.append(f"Activation norms at {site}: {shown}{left_out}.")
    return "\n".join(lines)
