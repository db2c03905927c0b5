"""Documents of a data set, in a fixed order, from any position on, split into training and held-out ones.

    for document in open_documents("demo", split="heldout"):
        print(document.index, document.label, document.text[:60])

A data set is named by
- `demo`, `demo:fr`, `demo:es`: the demo's Wikipedia summaries, in a fixed shuffled order, labelled by topic;
- a .jsonl, .json, .parquet or .txt file (all but .parquet also with .gz), or a folder holding files of one such kind;
- a folder that `datasets` saved;
- a data set on the hub, `name` or `name:configuration`, whose `train` split is streamed.

A .txt file holds one document per paragraph (parted by blank lines), or per line where it has no blank lines.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sae.data.rows import READERS, TEXT_LIMIT, DataError, FileRows, Rows, TooLong, kind_of

Split = Literal["train", "heldout", "all"]
SPLITS = ("train", "heldout", "all")
# rows after which a data set with mostly unusable ones is given up
TRIAL_ROWS = 1000
_SPLIT_SALT = b"sparsight-split"
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?")


class Document(NamedTuple):
    """One text of a data set."""

    index: int
    """Position in the data set, counting every row, usable or not, of either split."""
    text: str
    """Never empty."""
    label: str | None = None
    """The demo's topic; None elsewhere."""


class Documents:
    """A data set's documents of one split; see `open_documents`."""

    def __init__(self, rows: Rows, field: str, split: Split, heldout: float, provenance: dict[str, Any]) -> None:
        self._rows, self._field, self._split, self._heldout = rows, field, split, heldout
        self.provenance = provenance
        """What the documents are: spec, path and files' hashes or hub name and revision, text field, split rule."""
        self.skipped: dict[str, int] = {}
        """Reason -> rows left out for it so far; a row met again by a second iteration counts once."""
        self._counted = 0

    def __iter__(self) -> Iterator[Document]:
        return self.iterate()

    def iterate(self, start: int = 0) -> Iterator[Document]:
        """Yield the documents whose index is `start` or more, in order; the same ones every time.

        Raises:
            DataError: most rows are unusable, no document falls into the split, or the data cannot be read on.
        """
        seen = unusable = given = 0
        for index, (value, label) in enumerate(self._rows.read(self._field, start), start):
            seen += 1
            if reason := _fault(value):
                unusable += 1
                self._count(index, reason)
            elif self._split == "all" or is_heldout(str(value), self._heldout) == (self._split == "heldout"):
                given += 1
                yield Document(index, str(value), label)
            if seen == TRIAL_ROWS and unusable > TRIAL_ROWS // 2:
                raise DataError(f"{self._spec}: {unusable} of {seen} rows are unusable: {_counts(self.skipped)}")
        if start == 0 and not given:
            raise DataError(
                f"{self._spec}: none of {seen} rows is a document of the split {self._split!r} "
                f"(heldout={self._heldout}; unusable rows: {_counts(self.skipped) or 'none'})"
            )

    def describe(self) -> str:
        """One line for people: which data, which field, which split."""
        share = {
            "all": "all",
            "train": f"{1 - self._heldout:.0%} for training",
            "heldout": f"{self._heldout:.0%} held out",
        }
        return f"{self._spec}, column {self._field!r}, {share[self._split]}"

    @property
    def _spec(self) -> str:
        return self.provenance["spec"]

    def _count(self, index: int, reason: str) -> None:
        if index >= self._counted:
            self._counted = index + 1
            self.skipped[reason] = self.skipped.get(reason, 0) + 1


def open_documents(
    spec: str | Path,
    *,
    text_field: str | None = None,
    split: Split = "train",
    heldout: float = 0.1,
    revision: str | None = None,
) -> Documents:
    """Open a data set and check what can be checked without reading it all: existence, column, a usable row.

    Args:
        spec: which data set; the forms are listed at the top of this module. A path that exists comes first.
        text_field: the column that holds the text; default `text`, else the only text column.
        split: "train", "heldout" or "all". A document's side depends on its text alone, so duplicates fall on one
            side and the order of the rows does not matter.
        heldout: share of distinct texts that are held out, in [0, 1).
        revision: a commit, tag or branch of a data set on the hub; default the newest commit, which the provenance
            records.

    Raises:
        DataError: naming what was given, what was expected and what there is.
    """
    if split not in SPLITS:
        raise DataError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    if not 0 <= heldout < 1:
        raise DataError(f"heldout: {heldout} is not in [0, 1)")
    if split == "heldout" and heldout == 0:
        raise DataError("split: 'heldout' is empty with heldout=0")
    rows = _open_rows(str(spec), revision)
    field = _choose_field(str(spec), rows.columns, text_field)
    _check_usable(str(spec), rows, field)
    rule = {"split": split, "heldout": heldout, "by": f"blake2b(text, salt={_SPLIT_SALT.decode()!r})"}
    return Documents(
        rows, field, split, heldout, {"spec": str(spec), **rows.provenance, "text_field": field, "split_rule": rule}
    )


def is_heldout(text: str, share: float) -> bool:
    """Whether a text belongs to the held-out share (in [0, 1)) of all texts."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=_SPLIT_SALT).digest()
    return int.from_bytes(digest, "big") < share * 2**64


class _DemoRows:
    """The demo's text. The file is sorted by topic, which would make any part of it one-sided: so shuffled."""

    columns = {"text": True}  # noqa: RUF012

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

    def read(self, field: str, start: int) -> Iterator[tuple[object, str | None]]:
        articles = json.loads(self._path.read_text(encoding="utf-8"))
        order = sorted(articles, key=lambda title: hashlib.blake2b(title.encode(), digest_size=8).digest())
        for title in order[start:]:
            yield articles[title]["extract"], articles[title]["topic"]


def _open_rows(spec: str, revision: str | None) -> Rows:
    if spec == "demo" or spec.startswith("demo:"):
        return _DemoRows(spec.partition(":")[2] or "en")
    path = Path(spec).expanduser()
    if path.is_dir():
        return _open_folder(path.absolute())
    if path.is_file():
        if (kind := kind_of(path)) is None:
            raise DataError(f"{spec}: unknown ending; expected one of {', '.join(READERS)} (.gz too, but for .parquet)")
        return FileRows(path.absolute(), [path.absolute()], kind)
    match = _HUB_NAME.fullmatch(spec)
    if match is None or kind_of(path) or spec.startswith("."):
        raise DataError(f"{spec}: no such file or folder.{_near(path)}")
    from sae.data.hub import HubRows

    try:
        return HubRows(match["name"], match["config"], revision)
    except DataError as error:
        raise DataError(f"{error}{_near(path)}") from error


def _open_folder(path: Path) -> Rows:
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        from sae.data.hub import SavedRows

        return SavedRows(path)
    kinds: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if not hidden and file.is_file() and (kind := kind_of(file)):
            kinds.setdefault(kind, []).append(file)
    if len(kinds) != 1:
        held = " and ".join(f"{len(files)} {kind}" for kind, files in kinds.items()) or "none"
        raise DataError(f"{path}: expected files of one kind out of {', '.join(READERS)}; it holds {held}")
    ((kind, files),) = kinds.items()
    return FileRows(path, files, kind)


def _choose_field(spec: str, columns: dict[str, bool], asked: str | None) -> str:
    listing = ", ".join(f"{name} ({'text' if is_text else 'not text'})" for name, is_text in columns.items())
    if not columns:
        raise DataError(f"{spec}: is empty")
    if asked is not None:
        if asked not in columns:
            raise DataError(f"text_field: {spec} has no column {asked!r}; it has {listing}")
        return asked
    texts = [name for name, is_text in columns.items() if is_text]
    if "text" in columns:
        return "text"
    if len(texts) == 1:
        return texts[0]
    raise DataError(f"text_field: {spec} has no column `text` and {len(texts)} that hold text; name one of {listing}")


def _check_usable(spec: str, rows: Rows, field: str) -> None:
    faults: dict[str, int] = {}
    for (value, _), _ in zip(rows.read(field, 0), range(TRIAL_ROWS), strict=False):
        if (reason := _fault(value)) is None:
            return
        faults[reason] = faults.get(reason, 0) + 1
    if not faults:
        raise DataError(f"{spec}: is empty")
    raise DataError(
        f"{spec}: no usable text in column {field!r} of the first {sum(faults.values())} rows: {_counts(faults)}"
    )


def _fault(value: object) -> str | None:
    """Why a row cannot be used; None where it can."""
    if value is None:
        return "null"
    if isinstance(value, TooLong):
        return "too long"
    if not isinstance(value, str):
        return f"not text ({type(value).__name__})"
    if not value.strip():
        return "empty"
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "not Unicode"  # half a surrogate pair, which JSON can spell but no tokenizer takes
    return "too long" if size > TEXT_LIMIT else None


def _counts(faults: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in faults.items())


def _near(path: Path) -> str:
    """A sentence naming what lies beside a path that does not exist; empty where nothing does."""
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    wanted = path.name if folder == path.parent else path.relative_to(folder).parts[0]
    close = difflib.get_close_matches(wanted, names, n=5, cutoff=0.4)
    return f" In {folder.absolute()} there is {', '.join(close)}." if close else ""
