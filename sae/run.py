"""A run folder from Python: `sae.Run`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae.base.device import pick_device
from sae.config import ConfigError
from sae.features.store.store import FeatureStore
from sae.harvest.attach import Latents, Mode, Place, Session, attach
from sae.harvest.language_model import LanguageModel
from sae.models.autoencoder import Autoencoder
from sae.models.saved import load, locate_run, read_config, read_report
from sae.runs import open_run
from sae.runs.base import check_language, kind_of
from sae_kernels import SparseCodes


class Run:
    """A run folder, opened: the autoencoder at once, all else when it is first asked for.

    Args:
        path: run folder, or a hub repository that holds one.
        device: of the autoencoder and of the language model.

    Raises:
        ConfigError, CorruptError: it is no run, not finished, or damaged.

    Example:
        >>> import sae
        >>> run = sae.Run("runs/demo")
        >>> run.kind, run.place, run.model.width
        ('language', 'resid_post.1', 128)
        >>> language_model = run.language_model()
        >>> ids = language_model.tokenizer("the river ran past", return_tensors="pt").input_ids
        >>> with run.attach(language_model.model) as session:
        ...     loss = language_model.model(input_ids=ids, labels=ids).loss
        >>> session.dense(run.place).shape == (*ids.shape, 128)
        True
        >>> run.features.record(3)["latent"]
        3
    """

    def __init__(self, path: str | Path, *, device: str = "cpu") -> None:
        self.device = pick_device(device)
        self.folder: Path = locate_run(path)
        """The local folder."""
        self.model: Autoencoder = load(self.folder, device=self.device)
        """The autoencoder, in inference form."""
        self.record: dict[str, Any] = read_config(self.folder)
        """config.json."""
        self.kind: str = kind_of(self.folder)
        """language, image, tensors, ...; see `sae.runs.base.KINDS`."""

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}: {self.kind}, {self.model.width} latents of width {self.model.dim})"

    def encode(self, x: Tensor) -> SparseCodes:
        """Inputs [N, d] -> codes of N samples; ValueError for another shape."""
        return self.model.encode(x)

    def decode(self, codes: SparseCodes, x: Tensor | None = None) -> Tensor:
        """Codes of N samples -> reconstruction [N, d_out]; see `Autoencoder.decode` for `x`."""
        return self.model.decode(codes, x)

    @cached_property
    def opened(self) -> Any:
        """The run as commands open it: its settings, and for a language model its sites; see `sae.runs`."""
        return open_run(self.folder, device=self.device)

    @property
    def config(self) -> Any:
        """What it was trained with, such as a `TrainConfig`."""
        return self.opened.config

    @property
    def place(self) -> Place:
        """Where the autoencoder belongs in the language model, as `sae.attach` takes it."""
        check_language(self.folder, "a place in a language model")
        read, written = ("+".join(s.name for s in sites) for sites in (self.opened.inputs, self.opened.targets))
        return read if read == written else (read, written)

    @cached_property
    def features(self) -> FeatureStore:
        """What `sae.collect` collected: statistics and examples of every latent; FeatureError where it was not run."""
        return FeatureStore(self.folder)

    @property
    def evaluation(self) -> dict[str, Any]:
        """What `sae.evaluate` measured last (eval.json); ConfigError where it was not run."""
        path = self.folder / "eval.json"
        if not path.is_file():
            raise ConfigError(f"{self.folder}: it is not evaluated yet; do so with: sae eval {self.folder}")
        return read_report(self.folder, path.name)

    def language_model(self) -> LanguageModel:
        """The language model and its tokenizer, loaded anew; ModelError where it cannot be."""
        check_language(self.folder, "a language model")
        return self.opened.load_language_model(self.device)

    def attach(
        self,
        model: nn.Module,
        mode: Mode = "read",
        *,
        latents: Mapping[int, float] | list[int] | None = None,
        error: bool = False,
        where: torch.Tensor | None = None,
    ) -> Session:
        """`sae.attach` with this run's autoencoder at its own sites of `model`."""
        values: Latents | None = latents
        return attach(model, {self.place: self.model}, mode, latents=values, error=error, where=where)
