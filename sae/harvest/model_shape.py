"""What the skeleton of a model tells before its weights are read: the places that flags name, its limit, its size."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sae.config import ConfigError, HarvestConfig
from sae.harvest.language_model import measure_width
from sae.harvest.sites import Site, resolve_sites
from sae.harvest.traits import known_limit


def check_context(config: HarvestConfig, model: torch.nn.Module) -> None:
    """Refuse contexts that are longer than the model reads.

    Raises:
        ConfigError: names the limit.
    """
    limit = known_limit(model)
    if limit is not None and limit < config.context:
        raise ConfigError(f"--context {config.context}: this model reads at most {limit} tokens")


def named_sites(model: torch.nn.Module, flag: str, names: str, layer: int | None) -> list[Site]:
    """The places that a flag names, with commas between them, their widths measured.

    Raises:
        ConfigError, SiteError: there is no such place, or one is named twice.
    """
    spelled = [name.strip() for name in names.replace("+", ",").split(",")]
    if not all(spelled):
        raise ConfigError(f"--{flag.replace('_', '-')} {names}: expected names with one comma (or +) between two")
    sites = resolve_sites(model, spelled, layer=layer)
    if len(set(spelled)) < len(spelled):
        raise ConfigError(f"--{flag.replace('_', '-')} {names}: names one place twice")
    return [measure_width(model, site) for site in sites]


def parameters_up_to(model: torch.nn.Module, sites: Sequence[Site]) -> int:
    """Parameters of the modules that run before the last site, embeddings left out (they are looked up)."""
    paths = [name for name, _ in model.named_modules()]
    last = max(paths.index(site.path) for site in sites)
    inside = {name for name in paths[: last + 1]}
    inside |= {name for name in paths for site in sites if name.startswith(site.path + ".")}
    embeddings = {id(m) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    return sum(
        parameter.numel()
        for name, module in model.named_modules()
        if name in inside and id(module) not in embeddings
        for parameter in module.parameters(recurse=False)
    )
