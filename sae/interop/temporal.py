"""Temporal SAEs (Lubana et al. 2025): a folder with `conf.yaml` and `latest_ckpt.safetensors`, which is refused."""

from __future__ import annotations

from pathlib import Path

from sae.config import ConfigError
from sae.interop import Imported

CANNOT_BE_HELD = (
    "a temporal SAE predicts a part of every code from earlier tokens, by attention; an autoencoder that reads one "
    "token at a time cannot hold it"
)


def recognises(path: Path) -> bool:
    return (path / "conf.yaml").is_file() and (path / "latest_ckpt.safetensors").is_file()


def read(path: Path) -> Imported:
    raise ConfigError(f"{path}: {CANNOT_BE_HELD}")
