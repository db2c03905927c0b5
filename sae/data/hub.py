"""Rows of data sets that the `datasets` library reads: folders that it saved, and streams from the hub.

A stream that breaks is opened again at the row it had reached, a few times, so that no row is lost or repeated.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sae.data.columns import Column, DataError, columns_of
from sae.data.rows import PEEKED_ROWS, Row, recorded_tokenizer, stamp

T = TypeVar("T")

# seconds before each new try; `datasets` itself has tried for minutes by the time an error arrives here
PAUSES = (1.0, 4.0, 15.0, 60.0)
# errors that a second try would only repeat
_LASTING = (ValueError, TypeError, LookupError, AttributeError, AssertionError, NotImplementedError, MemoryError)


class SavedTable:
    """A folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk` (its `train` split, or its only one)."""

    labels: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        dataset = load_saved(path)
        self._dataset = dataset.with_format(None)
        first = self._dataset.select_columns(_plain_columns(dataset.features)).select(
            range(min(PEEKED_ROWS, len(dataset)))
        )
        self.columns = _columns_of([dict(row) for row in first], dataset.features)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        self.provenance: dict[str, Any] = {"path": str(path), "files": [stamp(file, path) for file in files]}
        if recorded := recorded_tokenizer(path):
            self.provenance["tokenizer"] = recorded

    def read(self, names: Sequence[str], start: int) -> Iterator[Row]:
        rows = self._dataset.select_columns(list(names))
        for first in range(start, len(rows), 64):
            values = rows[first : first + 64]
            yield from (dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True))


class HubTable:
    """The `train` split of a data set on the hub, streamed at one revision."""

    labels: tuple[str, ...] = ()

    def __init__(self, name: str, config: str | None, revision: str | None) -> None:
        self._name, self._config = name, config
        self._revision = resolve_revision(name, revision)
        stream = self._open()
        features = stream.features
        plain = stream if features is None else stream.select_columns(_plain_columns(features))
        self.columns = _columns_of(list(itertools.islice(plain, PEEKED_ROWS)), features)
        self.provenance: dict[str, Any] = {"hub": name, "config": config, "split": "train", "revision": self._revision}

    def read(self, names: Sequence[str], start: int) -> Iterator[Row]:
        def open_at(row: int) -> Iterator[Row]:
            stream = self._open().select_columns(list(names))
            return iter(stream.skip(row) if row else stream)

        return read_on(open_at, start, self._name)

    def _open(self):
        return load(self._name, self._config, split="train", streaming=True, revision=self._revision)


def read_on(
    open_at: Callable[[int], Iterator[T]],
    start: int,
    name: str,
    pauses: tuple[float, ...] = PAUSES,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[T]:
    """Yield rows `start`, `start + 1`, ... of `open_at(start)`, opened again at the next row where it breaks.

    Args:
        open_at: opens the data set at a row.
        pauses: seconds to wait before each try; they start again from the first after a row has arrived.

    Raises:
        DataError: all tries failed, or the rows themselves cannot be read.
    """
    row, failures = start, 0
    while True:
        try:
            for value in open_at(row):
                row, failures = row + 1, 0
                yield value
            return
        except DataError:
            raise
        except _LASTING as error:
            raise DataError(f"{name}: row {row} cannot be read ({type(error).__name__}: {error})") from error
        except Exception as error:  # network libraries share no base class
            if failures == len(pauses):
                raise DataError(
                    f"{name}: the connection failed at row {row}, and {failures} more times "
                    f"({type(error).__name__}: {error}). Nothing is lost: the run can be resumed from there."
                ) from error
            sleep(pauses[failures])
            failures += 1


def resolve_revision(name: str, revision: str | None) -> str:
    """The commit that `revision` (default: the newest) names; fails at once if there is no network."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().dataset_info(name, revision=revision).sha or "main"
    except GatedRepoError as error:
        raise DataError(f"{name}: the hub asks to accept its terms first, then to log in (`hf auth login`)") from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{name}: no local file or folder, and the hub has no such data set (a private one needs `hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(f"{name}: the hub has no revision {revision!r} of it") from error
    except Exception as error:  # network libraries share no base class
        raise DataError(
            f"{name}: no local file or folder, and the hub cannot be reached ({type(error).__name__}: {error}). "
            "Without a network use `demo` or a local file: .jsonl, .json, .csv, .parquet, .txt"
        ) from error


def load(name: str, config: str | None, **options: Any) -> Any:
    """`datasets.load_dataset` of a data set on the hub.

    Raises:
        DataError: it has no such configuration or split.
    """
    from datasets import load_dataset

    try:
        return load_dataset(name, config, **options)
    except ValueError as error:  # no such configuration or split; the message lists them
        hint = "" if config else f" A configuration is given as {name}:NAME."
        raise DataError(f"{name}: {error}.{hint}") from error


def load_saved(path: Path, part: str | None = None) -> Any:
    """The `datasets.Dataset` in a folder; of a DatasetDict the split `part`, default `train`, or the only one.

    Raises:
        DataError: a damaged folder, or no such split.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # `datasets` raises many types for a damaged folder; the user must learn which one
        raise DataError(f"{path}: `datasets` cannot load this folder ({type(error).__name__}: {error})") from error
    if not isinstance(dataset, DatasetDict):
        if part is not None:
            raise DataError(f"{path}: holds one data set without splits, so part={part!r} cannot be chosen")
        return dataset
    splits = [str(split) for split in dataset]
    part = part or ("train" if "train" in splits else splits[0] if len(splits) == 1 else None)
    if part is None:
        raise DataError(
            f"{path}: has no split `train` but {', '.join(splits)}; name the folder of one: {path / splits[0]}"
        )
    if part not in splits:
        raise DataError(f"{path}: has no split {part!r} but {', '.join(splits)}")
    return dataset[part]


def _plain_columns(features) -> list[str]:
    """Columns that hold JSON-like values; those of images, sounds and videos would be decoded."""
    return [name for name, feature in features.items() if type(feature).__name__ not in ("Image", "Audio", "Video")]


def _columns_of(first: list[dict[str, Any]], features) -> dict[str, Column]:
    others = {} if features is None else {name: type(f).__name__.lower() for name, f in features.items()}
    columns = columns_of(first, () if features is None else _plain_columns(features))
    return columns | {name: Column(f"{kind}s", ()) for name, kind in others.items() if name not in columns}
