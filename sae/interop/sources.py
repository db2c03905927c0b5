"""Where another tool's files come from: this machine, a repository of the hub, or a short name of a published one.

fetched = fetch("gemma-scope-2b-pt-res/layer_12/width_16k/canonical", print)
imported = read(fetched.path, fetched.format)
origin = fetched.completed(imported.origin)
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sae.config import ConfigError
from sae.interop import READERS, Origin
from sae.interop.files import TORCH
from sae.interop.registry import Published, at, named, near

WEIGHTS = (".safetensors", ".npz", *TORCH)
SETTINGS = ("config.json", "cfg.json", "config.yaml", "hyperparams.json", "wandb-config.yaml", "wanb-config.yaml")
"""Files above an autoencoder that say more of it. The last name is misspelt so in some repositories."""
MOST = 2
"""Files of weights of one autoencoder in a folder: itself and, in SAELens' folders, how often latents fire."""


class Fetched(NamedTuple):
    """Files on this machine, and what is known of them beside what they say."""

    path: Path
    format: str = "auto"
    """The format that the table of published sets gives; "auto" for other files."""
    published: Published | None = None
    licence: str | None = None
    """As the model card says."""

    def completed(self, origin: Origin) -> Origin:
        """What the files say, with what is known of the published set in its place."""
        if self.published is not None:
            origin = self.published.completed(origin)
        return origin if origin.licence else origin._replace(licence=self.licence)


def fetch(source: str | Path, tell: Callable[[str], None]) -> Fetched:
    """The local file or folder of a source; what is on the hub is downloaded, after its size was told.

    Args:
        source: a path, `hub_id`, `hub_id:path`, or a short name of `sae list`.
        tell: receives one line before a download.

    Raises:
        ConfigError: no such file, short name, repository or path in it; several autoencoders are there; the download
            fails; or the published set is in a format that cannot be held.
    """
    path = Path(source).expanduser()
    if path.exists():
        published = _at_path(path)
        return Fetched(path, "auto" if published is None else published.of.format, published)
    text = str(source)
    if text.startswith((".", "~", "/")):
        raise ConfigError(f"{source}: no such file or folder")
    published = None if ":" in text else named(text)
    if published is not None:
        repository, inside = published.repository, published.path
    else:
        repository, _, inside = text.partition(":")
        if repository.count("/") != 1:
            raise ConfigError(f"{source}: no such file or folder, and no hub id")
        inside = inside.strip("/")
        published = at(repository, inside)
    if published is not None:
        _refuse_what_cannot_be_held(published)
    folder, licence = _downloaded(repository, inside, published, tell)
    return Fetched(folder / inside, "auto" if published is None else published.of.format, published, licence)


def _at_path(path: Path) -> Published | None:
    """The published autoencoder of a local path in a clone of its repository, or in the hub's cache."""
    parts = path.absolute().parts
    for depth, name in enumerate(parts):
        inside = parts[depth + 1 :]
        if name.startswith("models--"):
            # models--ORGANISATION--NAME/snapshots/REVISION/...
            name, inside = name.rpartition("--")[2], inside[2:]
        if (published := at(name, "/".join(inside))) is not None:
            return published
    return None


def _refuse_what_cannot_be_held(published: Published) -> None:
    format = published.of.format
    module = importlib.import_module(READERS[format])
    if hasattr(module, "CANNOT_BE_HELD"):
        raise ConfigError(f"{published.name}: {module.CANNOT_BE_HELD}")


def _downloaded(
    repository: str, inside: str, published: Published | None, tell: Callable[[str], None]
) -> tuple[Path, str | None]:
    """The folder of a repository's snapshot with the files at a path, and the licence of its model card."""
    from huggingface_hub import HfApi, RepoFile, constants, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    shown = f"{repository}:{inside}" if inside else repository
    try:
        info = HfApi().model_info(repository)
        files = [sibling.rfilename for sibling in info.siblings or []]
        wanted = _wanted(shown, files, inside, () if published is None else published.also)
        entries = HfApi().get_paths_info(repository, wanted)
        total = sum(entry.size for entry in entries if isinstance(entry, RepoFile)) / 2**20
        files_told = f"{len(wanted)} file{'s' if len(wanted) > 1 else ''}"
        tell(f"{shown}: {files_told}, {total:,.1f} MiB, from {constants.ENDPOINT}/{repository}.")
        local = [Path(hf_hub_download(repository, name)) for name in wanted]
    except ConfigError:
        raise
    except GatedRepoError as error:
        raise ConfigError(
            f"{shown}: its terms must be accepted on the hub first, then log in (`hf auth login`)"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        hint = "" if published else f"; near short names: {', '.join(near(repository))}"
        raise ConfigError(
            f"{shown}: no such file or folder, and the hub has no such repository (a private one needs `hf auth "
            f"login`){hint}"
        ) from error
    except Exception as error:  # network libraries share no base class
        if (snapshot := _cached(repository, inside)) is not None:
            tell(f"{shown}: the hub cannot be reached; what was downloaded before is read.")
            return snapshot, None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{shown}: cannot be read from the hub ({reason})") from error
    depth = len(PurePosixPath(wanted[0]).parts)
    return local[0].parents[depth - 1], _licence(info)


def _wanted(shown: str, files: list[str], inside: str, also: Iterable[str]) -> list[str]:
    """The files of one autoencoder: those at the path, those that belong to it, and settings above it.

    Raises:
        ConfigError: nothing is at the path, or several autoencoders; names what is there.
    """
    here = [name for name in files if name == inside or not inside or name.startswith(f"{inside}/")]
    if not here:
        places = sorted({*files, *(str(parent) for name in files for parent in PurePosixPath(name).parents)} - {"."})
        raise ConfigError(f"{shown}: nothing is there; nearest: {_nearest(inside, places)}")
    weights = [name for name in here if name.endswith(WEIGHTS)]
    folders = sorted({str(PurePosixPath(name).parent) for name in weights})
    if len(folders) > 1 or len(weights) > MOST:
        places = folders if len(folders) > 1 else weights
        some = ", ".join(places[:5]) + (" ..." if len(places) > 5 else "")
        raise ConfigError(f"{shown}: holds {len(places)} autoencoders; name one as hub_id:path, path one of: {some}")
    above = {str(parent / name) for parent in PurePosixPath(inside).parents for name in SETTINGS}
    return list(dict.fromkeys([*here, *also, *(name for name in files if name in above)]))


def _nearest(name: str, places: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, places, n=3, cutoff=0.0))


def _cached(repository: str, inside: str) -> Path | None:
    """The snapshot of an earlier download, if it has weights at the path."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    place = folder / inside
    files = [place] if place.is_file() else place.rglob("*")
    return folder if any(file.suffix in WEIGHTS and file.is_file() for file in files) else None


def _licence(info: Any) -> str | None:
    """The licence in a repository's model card."""
    licence = getattr(info.card_data, "license", None)
    return licence if isinstance(licence, str) else None
