"""Where fetched and converted files are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder for everything fetched: $SAE_CACHE, else $XDG_CACHE_HOME/sparsight, else ~/.cache/sparsight.

    The folder may not exist yet; whoever writes into it creates it.
    """
    if folder := os.environ.get("SAE_CACHE"):
        return Path(folder).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "sparsight"
    return Path.home() / ".cache" / "sparsight"
