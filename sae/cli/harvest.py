"""`sae harvest`: activations of several layers and places into a store, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae.cli.options import Json
from sae.config import ConfigError, StoreConfig


@dataclass(frozen=True, kw_only=True)
class Harvest:
    """Store a model's activations, of one or several places in one pass, for `sae train` and `sae sweep` --store.

    --layer and --site take several values with commas: `--layer 6,9 --site resid_post,mlp_out` stores four places. Run
    again, it continues where it stopped; with a larger --tokens it appends.
    """

    config: StoreConfig
    dry_run: bool = False
    """Print places, tokens, bytes and time; harvest nothing, write nothing."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.harvest.harvesting import dry_run, harvest_store

        return dry_run(self.config) if self.dry_run else harvest_store(self.config)._asdict()


def with_layers(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--layer 6,9 --site A,B` written as `--site A.6,A.9,B.6,B.9`; others as they are.

    Raises:
        ConfigError: a layer is no number.
    """
    values: dict[str, str] = {}
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name in ("--layer", "--site"):
            values[name] = value if equals else next(waiting, "")
        else:
            rest.append(argument)
    layers = [layer.strip() for layer in values.get("--layer", "").split(",")]
    if len(layers) < 2:
        return list(arguments)
    if not all(layer.isdecimal() for layer in layers):
        raise ConfigError(f"--layer {values['--layer']}: expected layers counted from 0 with one comma between two")
    sites = [site.strip() for site in values.get("--site", "resid_post").replace("+", ",").split(",")]
    whole = [site if "." in site else ",".join(f"{site}.{layer}" for layer in layers) for site in sites]
    return [*rest, "--site", ",".join(whole)]
