"""Where another tool's files come from: this machine, or a repository of the hub.

path = fetch("google/gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82", print)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sae.config import ConfigError


def fetch(source: str | Path, tell: Callable[[str], None]) -> Path:
    """The local file or folder of a source; a hub id is downloaded, after its size was told.

    Args:
        source: a path, `hub_id` or `hub_id:path`.
        tell: receives one line before a download.

    Raises:
        ConfigError: no such file, repository or path in it.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    name, _, inside = str(source).partition(":")
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise ConfigError(f"{source}: no such file or folder, and no hub id")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        files = HfApi().list_repo_tree(name, path_in_repo=inside or None, recursive=True)
        sizes = {file.path: file.size for file in files if hasattr(file, "size")}
        tell(f"{name}: {len(sizes)} files, {sum(sizes.values()) / 2**20:,.0f} MiB, are downloaded.")
        folder = snapshot_download(name, allow_patterns=list(sizes))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{source}: cannot be read from the hub ({reason})") from error
    return Path(folder) / inside
