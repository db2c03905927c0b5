"""From a data set's name to its rows: the demo's text, a file, a folder, a saved data set, or one on the hub.

open_table("corpus.jsonl", revision=None).columns
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sae.data.columns import TEXT, Column, DataError
from sae.data.rows import READERS, FileTable, Row, Table, kind_of

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?")


class _DemoTable:
    """The demo's text, in a fixed shuffled order: the file is sorted by topic, so that any part of it is one-sided."""

    columns = {"text": Column(TEXT, ())}  # noqa: RUF012
    labels = ("topic",)

    def __init__(self, language: str) -> None:
        from sae.data.demo import LANGUAGES, TEXT_WHEEL, demo_text

        if language not in LANGUAGES:
            raise DataError(f"demo:{language}: the demo text comes in {', '.join(LANGUAGES)}")
        self._path = demo_text(language)
        self.provenance = {
            "language": language,
            "from": f"{TEXT_WHEEL.name}=={TEXT_WHEEL.version}",
            "sha256": next(digest for name, digest in TEXT_WHEEL.files.items() if name.endswith(LANGUAGES[language])),
        }

    def read(self, names: Sequence[str], start: int) -> Iterator[Row]:
        articles = json.loads(self._path.read_text(encoding="utf-8"))
        order = sorted(articles, key=lambda title: hashlib.blake2b(title.encode(), digest_size=8).digest())
        for title in order[start:]:
            yield {"text": articles[title]["extract"], "topic": articles[title]["topic"]}


def open_table(spec: str, revision: str | None) -> Table:
    """The rows of a data set; the forms of `spec` are listed in `sae.data.documents`.

    Raises:
        DataError: there is none of that name, or it cannot be read.
    """
    if spec == "demo" or spec.startswith("demo:"):
        return _DemoTable(spec.partition(":")[2] or "en")
    path = Path(spec).expanduser()
    if path.is_dir():
        return _open_folder(path.absolute())
    if path.is_file():
        if (kind := kind_of(path)) is None:
            raise DataError(
                f"{spec}: unknown ending; expected one of {', '.join(READERS)} (all but .parquet also with .gz or .zst)"
            )
        return FileTable(path.absolute(), [path.absolute()], kind)
    match = _HUB_NAME.fullmatch(spec)
    if match is None or kind_of(path) or spec.startswith("."):
        raise DataError(f"{spec}: no such file or folder.{_near(path)}")
    from sae.data.hub import HubTable

    try:
        return HubTable(match["name"], match["config"], revision)
    except DataError as error:
        raise DataError(f"{error}{_near(path)}") from error


def _open_folder(path: Path) -> Table:
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        from sae.data.hub import SavedTable

        return SavedTable(path)
    kinds: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if not hidden and file.is_file() and (kind := kind_of(file)):
            kinds.setdefault(kind, []).append(file)
    if len(kinds) != 1:
        listing = " and ".join(f"{len(files)} {kind}" for kind, files in kinds.items()) or "none"
        raise DataError(f"{path}: expected files of one kind out of {', '.join(READERS)}; it holds {listing}")
    ((kind, files),) = kinds.items()
    return FileTable(path, files, kind)


def _near(path: Path) -> str:
    """A sentence that names files near a path that does not exist; empty if there are none."""
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    wanted = path.name if folder == path.parent else path.relative_to(folder).parts[0]
    close = difflib.get_close_matches(wanted, names, n=5, cutoff=0.4)
    return f" In {folder.absolute()} there is {', '.join(close)}." if close else ""
