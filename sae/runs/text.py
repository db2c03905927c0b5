"""A finished run, opened again: its autoencoder, where it reads and writes, and a harvest like the one it learnt from.

run = open_run("runs/demo")                          # reads no weights of the language model
lm = run.load_language_model(device)
harvest = run.harvest(lm, split="heldout")
for step in harvest.batches():
    codes = run.model.encode(run.inputs_of(step.rows))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.base.files import CorruptError
from sae.config import ConfigError, HarvestConfig, TrainConfig
from sae.data.documents import Split, open_documents
from sae.harvest.beginning import recorded
from sae.harvest.language_model import (
    LanguageModel,
    ModelSource,
    load_language_model,
    locate_model,
    measure_width,
    skeleton,
)
from sae.harvest.rows import Rows
from sae.harvest.sites import Site, resolve_sites
from sae.harvest.stream import Harvest
from sae.models.autoencoder import Autoencoder
from sae.models.saved import CONFIG
from sae.runs.base import open_folder


class Run(NamedTuple):
    """What a run folder holds, checked against the language model's shape."""

    folder: Path
    record: dict[str, Any]
    """config.json."""
    model: Autoencoder
    """The saved autoencoder, in inference form."""
    config: TrainConfig
    """What it was trained with."""
    source: ModelSource
    """The language model."""
    inputs: list[Site]
    """Where the autoencoder reads; several sites are joined, in this order."""
    targets: list[Site]
    """Where its reconstruction belongs: `inputs` again, or other sites for a transcoder."""

    @property
    def sites(self) -> list[Site]:
        """All places that a harvest must capture, each once."""
        return list(dict.fromkeys([*self.inputs, *self.targets]))

    def inputs_of(self, rows: Rows) -> Tensor:
        """The autoencoder's inputs [n, dim], float32, of harvested rows."""
        return joined(rows.activations, self.inputs)

    def targets_of(self, rows: Rows) -> Tensor:
        """What the autoencoder is to reconstruct [n, dim_out], float32, of harvested rows."""
        return joined(rows.activations, self.targets)

    def settings(self, dataset: str | None = None, text_field: str | None = None, **changes: Any) -> HarvestConfig:
        """The harvest's settings, over another data set or with other changes."""
        trained = self.config.harvest
        return dataclasses.replace(
            trained,
            attention="auto",  # what this machine can do, which need not be the one that trained
            dataset=dataset or trained.dataset,
            text_field=text_field or (None if dataset else trained.text_field),
            **changes,
        )

    def load_language_model(self, device: torch.device) -> LanguageModel:
        """The language model with its weights; segments begin as they did in training."""
        lm = load_language_model(self.source, device=device, precision=self.config.harvest.precision)
        return lm._replace(beginning=recorded(self.record["harvest"].get("beginning"), lm.tokenizer))

    def harvest(self, lm: LanguageModel, *, split: Split, settings: HarvestConfig | None = None) -> Harvest:
        """A harvest of this run's sites, tokens sorted into kinds as in training."""
        return harvest_of([self], lm, split=split, settings=settings)


def open_run(run: str | Path, *, device: torch.device | str = "cpu") -> Run:
    """Open a run folder, or a hub repository that holds one; the language model's weights are not read.

    Raises:
        ConfigError, CorruptError, ModelError, SiteError: the run or its model cannot be used.
    """
    folder, record, model, config = open_folder(run, "language", TrainConfig, device=device)
    where = folder / CONFIG
    source = locate_model(config.harvest.model, trust_remote_code=config.harvest.trust_remote_code)
    body = skeleton(source)
    try:
        inputs, targets = (
            [measure_width(body, site) for site in resolve_sites(body, [part["name"] for part in record["sites"][end]])]
            for end in ("inputs", "targets")
        )
    except (KeyError, TypeError) as error:
        raise CorruptError(f"{where}: sites: cannot be read ({error!r})") from error
    for end, sites, expected in (("reads", inputs, model.dim), ("writes", targets, model.dim_out)):
        widths = [site.width or 0 for site in sites]
        if sum(widths) != expected:
            names = ", ".join(site.name for site in sites)
            raise ConfigError(f"{folder}: the autoencoder {end} width {expected}, {names} have {widths}")
    return Run(folder, record, model, config, source, inputs, targets)


def harvest_of(
    runs: Sequence[Run], lm: LanguageModel, *, split: Split, settings: HarvestConfig | None = None
) -> Harvest:
    """One harvest that feeds several runs of the same model and data set: the sites of all of them."""
    settings = settings or runs[0].settings()
    documents = open_documents(
        settings.dataset,
        text_field=settings.text_field,
        split=split,
        heldout=settings.heldout,
        roles=settings.roles,
    )
    sites = list(dict.fromkeys(site for run in runs for site in run.sites))
    limits = {site: limit for run in runs for site, limit in run.record["harvest"]["norm_limits"].items()}
    return Harvest(lm, sites, documents, settings, limits)


def joined(activations: dict[str, Tensor], sites: Sequence[Site]) -> Tensor:
    """Activations [n, d] of several sites side by side [n, Σd], float32."""
    parts = [activations[site.name].float() for site in sites]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
