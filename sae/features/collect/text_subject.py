"""Text as the subject of a pass: a language model's activations, computed on the way or read from the disk."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base.storage import is_url
from sae.config import CollectConfig
from sae.features.collect.subject import Chunk, Mark
from sae.features.collect.text_chunks import live_chunks, open_store, stored_chunks
from sae.features.store.lens import Lens
from sae.features.store.text import Vocabulary
from sae.harvest.language_model import LanguageModel
from sae.harvest.opening import opening
from sae.harvest.rows import Rows
from sae.harvest.stream import Harvest
from sae.runs.text import open_run


class TextSubject:
    """A run on a language model's activations, as a `Subject`.

    Raises:
        ConfigError, CorruptError, ModelError, SiteError: the run, its model or a setting cannot be used.
    """

    def __init__(self, run: str | Path, config: CollectConfig, device: torch.device) -> None:
        self.run, self.config, self.device = open_run(run, device=device), config, device
        self.folder, self.model, self.limit = self.run.folder, self.run.model, config.tokens

    @cached_property
    def lm(self) -> LanguageModel:
        """The language model, loaded when it is first needed."""
        return self.run.load_language_model(self.device)

    def identity(self) -> dict[str, Any]:
        config = self.config
        return {
            "weights": self.run.record["autoencoder"]["sha256"],
            "dataset": self.run.settings(config.dataset, config.text_field).dataset,
            "split": None if config.store else config.split,
            "store": _named(config.store),
            "seed": config.seed,
        }

    def info(self) -> dict[str, Any]:
        """Also "no_next_token", the reason why the model predicts no next token, where it predicts none."""
        site = "+".join(site.name for site in self.run.inputs)
        info = {"kind": "language", "model": self.run.config.harvest.model, "site": site}
        if (reason := self.lm.traits.no_next_token) is not None:
            info["no_next_token"] = reason  # why there is no steering
        return info

    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.lm.tokenizer)

    def chunks(self, mark: Mark) -> Iterator[Chunk]:
        if self.config.store is not None:
            store = open_store(self.config.store, self.run)
            names = [site.name for site in self.run.inputs]
            return stored_chunks(store, names, self.lm.traits.special, self.lm.beginning, mark)
        return live_chunks(self._harvest, mark)

    def opening(self) -> str:
        if self.config.store is not None:
            return ""  # a store of activations has no text
        return opening(self._harvest.documents, self.lm.tokenizer, self._harvest.config, beginning=self.lm.beginning)

    @cached_property
    def _harvest(self) -> Harvest:
        settings = self.run.settings(self.config.dataset, self.config.text_field)
        return self.run.harvest(self.lm, split=self.config.split, settings=settings)

    def inputs_of(self, rows: Rows) -> Tensor:
        return self.run.inputs_of(rows)

    def prepare(self, lens: Lens) -> None:
        lens.prepare_logits(self.lm)


def _named(store: str | Path | None) -> str | None:
    """A store's URL, or its absolute path."""
    return store if store is None or (isinstance(store, str) and is_url(store)) else str(Path(store).absolute())
