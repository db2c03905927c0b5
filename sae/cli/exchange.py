"""`sae export`, `sae import` and `sae list`: runs for other tools and from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sae.cli.options import Json
from sae.config import ConfigError, ImportConfig, refuse_ignored


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a run for another tool, its features as a static page or for Neuronpedia, or push it to the hub.

    Weights are written exactly, or refused with what the other format cannot hold.
    """

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder; static and neuronpedia need collected features."""
    to: Literal["saelens", "sparsify", "dictionary_learning", "circuit-tracer", "neuronpedia", "static", "hub"]
    """A tool, whose own loader then reads --out; neuronpedia (JSON of the features); static (a page that opens from the
    disk or any web host); or hub (uploads to --repo)."""
    out: Path | None = None
    """New folder to write; all but hub need it."""
    repo: str | None = None
    """hub: the repository, user/name, which is made if there is none."""
    private: bool = False
    """hub: make a new repository private."""
    licence: str | None = None
    """hub: the licence that the model card names, as the hub spells it, such as mit."""
    latents: tuple[int, ...] = ()
    """static: latents of the page; by default all."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        readers = {"latents": "static", "repo": "hub", "private": "hub", "licence": "hub"}
        unread = {flag: f"applies to --to {to}; --to {self.to} does not read it" for flag, to in readers.items()}
        unread["out"] = "--to hub writes no folder"
        kept = [flag for flag in unread if readers.get(flag) == self.to or (flag == "out" and self.to != "hub")]
        refuse_ignored(self, {flag: why for flag, why in unread.items() if flag not in kept})
        if self.to == "hub":
            if self.repo is None:
                raise ConfigError("--repo: missing; --to hub uploads to a repository, user/name")
            from sae.interop.export.hub import push

            return push(self.run_folder, self.repo, private=self.private, licence=self.licence)
        if self.out is None:
            raise ConfigError(f"--out: missing; --to {self.to} writes a new folder")
        if self.to == "static":
            from sae.browser.export import export_static

            return export_static(self.run_folder, self.out, latents=self.latents or None)
        if self.to == "neuronpedia":
            from sae.interop.neuronpedia import export as export_features

            return export_features(self.run_folder, self.out)
        from sae.interop.export import export

        return export(self.run_folder, self.to, self.out)


@dataclass(frozen=True, kw_only=True)
class Import:
    """Make a run of another tool's autoencoder, which every command then reads like one of ours."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """File or folder, hub id, `hub_id:path`, or a short name of `sae list`."""
    config: ImportConfig
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.interop.importing import import_run

        return import_run(self.source, self.config)


@dataclass(frozen=True, kw_only=True)
class List:
    """List published autoencoders by the short names that `sae import` takes."""

    model: str | None = None
    """Only those on this language model: its hub id, or what stands behind the slash in it."""
    layer: int | None = None
    """Only those of this layer, one a line with its short name; without it, one line a set."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.interop.listing import list_published

        return list_published(**self.given())

    def given(self) -> dict[str, Any]:
        """The flags that were given."""
        return {name: value for name, value in (("model", self.model), ("layer", self.layer)) if value is not None}
