"""Our runs as other tools' files: exact, or refused with what the format cannot hold.

    export("runs/demo", "saelens", "out/saelens")         # SAE.load_from_disk("out/saelens") then reads it

A format that can be written is a module with `write(run, out)`, and its line in `WRITERS`. A writer gets a `Finished`
run and an empty folder, and returns what to show the user; it calls `Finished.refuse` for what its format cannot hold.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from sae.base.files import CorruptError, publish_folder
from sae.config import ConfigError
from sae.harvest.sites import LENS_HOOKS, Site
from sae.models.autoencoder import Autoencoder
from sae.models.saved import CONFIG, load, locate_run, read_config
from sae.runs.base import check_kind, kind_of
from sae.runs.text import open_run

WRITERS: dict[str, str] = {
    "saelens": "sae.interop.export.saelens",
    "sparsify": "sae.interop.export.sparsify",
    "dictionary_learning": "sae.interop.export.dictionary_learning",
    "circuit-tracer": "sae.interop.export.circuit_tracer",
}
"""Format -> the module that writes it, imported when it is needed."""

DEMO = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Hub id of the model that `--model demo` stands for."""
HOOKS = {kind: hook for hook, kind in reversed(LENS_HOOKS.items())}
"""Kind of site -> the TransformerLens hook there."""


class Place(NamedTuple):
    """One site, in the spellings of other tools."""

    name: str
    """In our spelling."""
    hook: str | None
    """TransformerLens hook, where it has one."""
    module: str | None
    """Path of the module in the transformers model; None for a run without a model."""
    side: str
    """"output" of the module, or its "input"."""
    layer: int | None

    @property
    def path(self) -> str | None:
        """The module's path, with `:in` for its input."""
        return self.module if self.module is None or self.side == "output" else f"{self.module}:in"


class Finished(NamedTuple):
    """A finished run, as writers need it."""

    folder: Path
    record: dict[str, Any]
    """config.json."""
    model: Autoencoder
    """In inference form, float32, on the CPU."""
    inputs: tuple[Place, ...]
    """Where it reads; empty for a run on a file of activations."""
    targets: tuple[Place, ...]
    """Where its reconstruction belongs: `inputs` again, or other sites for a transcoder."""
    language_model: str | None
    """Hub id or folder."""
    context: int | None
    """Tokens a context."""
    bos: bool | None
    """Whether a token such as BOS began every segment; None where nothing says so."""
    keeps_special: bool
    """Whether it was trained on special tokens too."""
    dataset: str | None
    variant: str

    def refuse(self, format: str, what: str) -> NoReturn:
        """Say that a format cannot hold this run.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"--to {format}: cannot hold {what}; {self.folder} is a {self.variant} run")

    @property
    def described(self) -> str:
        """The code and what surrounds it, in words."""
        parts = [f"a {self.model.code.name} code"]
        if self.model.transcodes:
            parts.append("between two sites (a transcoder)")
        if self.model.W_skip is not None:
            parts.append("with a skip connection")
        return " ".join(parts)


def export(run: str | Path, to: str, out: str | Path) -> dict[str, Any]:
    """Write a run as another tool's folder.

    Args:
        run: run folder, or a hub repository that holds one.
        to: a key of `WRITERS`.
        out: folder to write; it must not exist yet.

    Returns:
        JSON values: "out", "format", what the tool calls it, and how the tool loads it.

    Raises:
        ConfigError: the format is unknown or cannot hold the run (nothing is written then), or `out` exists.
        CorruptError: the run is damaged.
    """
    if to not in WRITERS:
        raise ConfigError(f"--to {to}: unknown; known: {', '.join(WRITERS)}")
    out = Path(out).expanduser()
    if out.exists():
        raise ConfigError(f"--out {out}: exists already; give a new folder")
    finished = open_finished(run)
    if len(finished.inputs) > 1 or len(finished.targets) > 1:
        names = dict.fromkeys(place.name for place in (*finished.inputs, *finished.targets))
        finished.refuse(to, f"several sites ({', '.join(names)})")
    with publish_folder(out) as folder:
        shown = importlib.import_module(WRITERS[to]).write(finished, folder)
    return {"out": str(out), "format": to, **{name: str(v).replace("OUT", str(out)) for name, v in shown.items()}}


def open_finished(run: str | Path) -> Finished:
    """A finished run of activations, with its sites.

    Raises:
        ConfigError, CorruptError, ModelError, SiteError: it is no such run, or its model is out of reach.
    """
    folder = locate_run(run)
    check_kind(folder, "language", "weights", "tensors")
    if kind_of(folder) == "language":
        return _of_language(folder)
    model = load(folder)
    record = read_config(folder)
    origin = record.get("imported") or {}
    inputs = tuple(_spelled(name) for name in origin.get("sites", ()))
    return Finished(
        folder,
        record,
        model,
        inputs,
        tuple(_spelled(name) for name in origin.get("targets", ())) or inputs,
        language_model=origin.get("model"),
        context=origin.get("context"),
        bos=origin.get("bos"),
        keeps_special=True,
        dataset=origin.get("dataset"),
        variant=record.get("train", {}).get("sae", {}).get("variant") or model.code.name,
    )


def _of_language(folder: Path) -> Finished:
    opened = open_run(folder)
    harvest = opened.config.harvest
    for site in (*opened.inputs, *opened.targets):
        if site.scale != 1:
            raise ConfigError(
                f"--to: {site.name} is {site.scale:g} times what {site.path} puts out; no other tool's file can say so"
            )
    beginning = opened.record.get("harvest", {}).get("beginning")
    if not isinstance(beginning, dict) or not isinstance(beginning.get("ids"), list):
        raise CorruptError(f"{folder / CONFIG}: harvest.beginning is missing")
    return Finished(
        folder,
        opened.record,
        opened.model,
        tuple(_placed(site) for site in opened.inputs),
        tuple(_placed(site) for site in opened.targets),
        language_model=DEMO if harvest.model == "demo" else harvest.model,
        context=harvest.context,
        bos=bool(beginning["ids"]),
        keeps_special=harvest.keep_special,
        dataset=harvest.dataset,
        variant=opened.config.sae.variant,
    )


def _placed(site: Site) -> Place:
    hook = f"blocks.{site.layer}.{HOOKS[site.kind]}" if site.kind in HOOKS else None
    return Place(site.name, hook, site.path, site.side, site.layer)


def _spelled(name: str) -> Place:
    """A place of which only the name is known."""
    kind, _, layer = name.rpartition(".")
    if kind in HOOKS and layer.isdigit():
        return Place(name, f"blocks.{layer}.{HOOKS[kind]}", None, "output", int(layer))
    parts = name.split(".")
    number = next((int(part) for part in parts if part.isdigit()), None)
    if parts[0] == "blocks" and ".hook_" in name:
        return Place(name, name, None, "output", number)
    side = "input" if name.endswith(":in") else "output"
    return Place(name, None, name.removesuffix(":in"), side, number)
