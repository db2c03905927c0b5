"""Documents of a data set, in a fixed order, from any position on, split into training and held-out ones.

    for document in open_documents("demo", split="heldout"):
        print(document.index, document.label, document.text[:60])

A data set is named by
- `demo`, `demo:fr`, `demo:es`: the demo's Wikipedia summaries, in a fixed shuffled order, labelled by topic;
- a .jsonl, .json, .csv, .tsv, .parquet or .txt file (all but .parquet also with .gz or .zst), or a folder holding files
  of one such kind;
- a folder that `datasets` saved;
- a data set on the hub, `name` or `name:configuration`, whose `train` split is streamed.

A .txt file holds one document per paragraph (separated by blank lines), or per line if it has no blank lines.

One column is read (`columns` chooses it): text, conversations (rendered by the tokenizer's chat template, with the
tools of a column `tools`; see `chat`), or token ids, which are used unchanged. Conversations and token ids need the
tokenizer: `Documents.with_tokenizer`.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sae.data.chat import ChatTemplate, Span, Unusable, plain_text, read_tools
from sae.data.columns import CHAT, EMPTY, IDS, OBJECTS, TEXT, DataError, choose_column, passed_over
from sae.data.content import identity, parse
from sae.data.rows import Table
from sae.data.specs import open_table

if TYPE_CHECKING:
    import numpy as np

Split = Literal["train", "heldout", "all"]
SPLITS = ("train", "heldout", "all")
TRIAL_ROWS = 1000  # rows after which a data set is refused if most of them are unusable
ROLE_ROWS = 200  # rows in which --roles must occur
TOOLS = "tools"  # the column of conversations' tools
_SPLIT_SALT = b"sparsight-split"
_HASHED = {TEXT: "text", CHAT: "conversation as JSON", IDS: "ids as int64"}


class Document(NamedTuple):
    """One document of a data set: a text, a conversation, or token ids."""

    index: int
    """Number of its row in the data set, counting unusable rows and those of the other split."""
    text: str
    """The text; a conversation as its template renders it (before `with_tokenizer`: for people); "" for token ids."""
    label: str | None = None
    """The demo's topic; None elsewhere."""
    spans: tuple[Span, ...] = ()
    """The role of every part of a conversation's text; empty for other text, or if roles cannot be told."""
    ids: np.ndarray | None = None
    """Token ids [T] int64, at least one, if the data set holds token ids."""


class Documents:
    """A data set's documents of one split; see `open_documents`."""

    def __init__(
        self, table: Table, field: str, kind: str, split: Split, heldout: float, provenance: dict[str, Any]
    ) -> None:
        self._table, self._field, self._split, self._heldout = table, field, split, heldout
        self.kind = kind
        """TEXT, CHAT or IDS."""
        self.provenance = provenance
        """What identifies the documents: spec, path and files' hashes or hub name and revision, column, split rule."""
        self.skipped: dict[str, int] = {}
        """Reason -> rows left out for it so far; a row read again by a second iteration counts once."""
        self.notes: list[str] = []
        """What a person should know about how the data are read."""
        if others := passed_over(table.columns, field):
            self.notes.append(f"{', '.join(others)} could be read instead, with --text-field")
        self._tools = _reads_tools(table, kind)
        if kind == CHAT and TOOLS in table.columns and not self._tools:
            self.notes.append(f"column {TOOLS!r} holds {table.columns[TOOLS].kind}, not tools, and is not read")
        self._counted = 0
        self._template: ChatTemplate | None = None
        self._roles: tuple[str, ...] = ()
        self._ids_below: int | None = None
        self._share = (0, 1)

    def __iter__(self) -> Iterator[Document]:
        return self.iterate()

    def iterate(self, start: int = 0) -> Iterator[Document]:
        """Yield the documents whose index is `start` or more, in order; the same ones every time.

        Raises:
            DataError: most rows are unusable, no document falls into the split, a token id is not one of the model's,
                or the rest of the data cannot be read.
        """
        seen = unusable = given = 0
        names = [self._field, *([TOOLS] if self._tools else []), *self._table.labels]
        for index, record in enumerate(self._table.read(names, start), start):
            if index % self._share[1] != self._share[0]:
                continue
            seen += 1
            try:
                content = parse(record.get(self._field), self.kind)
                if self._split == "all" or is_heldout(identity(content), self._heldout) == (self._split == "heldout"):
                    document = self._document(index, content, record)
                    given += 1
                    yield document
            except Unusable as reason:
                unusable += 1
                self._count(index, str(reason))
            if seen == TRIAL_ROWS and unusable > TRIAL_ROWS // 2:
                raise DataError(f"{self._spec}: {unusable} of {seen} rows are unusable: {_counts(self.skipped)}")
        if start == 0 and not given:
            raise DataError(
                f"{self._spec}: none of {seen} rows is a document of the split {self._split!r} "
                f"(heldout={self._heldout}; unusable rows: {_counts(self.skipped) or 'none'})"
            )

    def shared(self, part: int, parts: int) -> Documents:
        """Every `parts`-th document, from number `part` (from 0) on: parts have no document in common."""
        mine = copy.copy(self)
        mine.skipped, mine._counted, mine._share = {}, 0, (part, parts)
        return mine

    def with_tokenizer(self, tokenizer: Any, *, ids_below: int | None, roles: Sequence[str] | None = None) -> Documents:
        """The same documents for a model: conversations rendered by its template, token ids checked against it.

        Documents that were prepared already are returned as they are.

        Args:
            tokenizer: of transformers.
            ids_below: rows of the model's table of embeddings; None if it has none.
            roles: the roles whose tokens are wanted, if not all: then conversations whose roles cannot be told are
                left out.

        Raises:
            DataError: the tokenizer has no chat template, or its template refuses the first conversations; the token
                ids are another tokenizer's.
        """
        if self.kind == TEXT or self._template is not None or self._ids_below is not None:
            return self
        prepared = copy.copy(self)
        prepared.skipped, prepared._counted, prepared.notes = {}, 0, list(self.notes)
        if self.kind == CHAT:
            prepared._template = ChatTemplate(tokenizer, f"{self._spec}, column {self._field!r}")
            prepared._roles = tuple(roles or ())
            digest = hashlib.sha256(prepared._template.template.encode()).hexdigest()
            prepared.provenance = {**self.provenance, "chat_template_sha256": digest}
        else:
            known = 1 + max(tokenizer.get_vocab().values())
            prepared._ids_below = known if ids_below is None else min(ids_below, known)
            _check_tokenizer(self.provenance.get("tokenizer"), tokenizer, self._spec, prepared.notes)
        next(iter(prepared))
        return prepared

    def describe(self) -> str:
        """One line for people: which data, which field, which split."""
        share = {
            "all": "all",
            "train": f"{1 - self._heldout:.0%} for training",
            "heldout": f"{self._heldout:.0%} held out",
        }
        kind = {TEXT: "text", CHAT: "chat", IDS: "token ids"}[self.kind]
        return f"{self._spec}, column {self._field!r} ({kind}), {share[self._split]}"

    @property
    def _spec(self) -> str:
        return self.provenance["spec"]

    def _document(self, index: int, content: Any, record: Mapping[str, Any]) -> Document:
        label = next((record[name] for name in self._table.labels), None)
        if self.kind == TEXT:
            return Document(index, content, label)
        if self.kind == IDS:
            self._check_ids(index, content)
            return Document(index, "", label, ids=content)
        if self._template is None:
            return Document(index, plain_text(content), label)
        tools = read_tools(record.get(TOOLS)) if self._tools else None
        text, spans = self._template.render(content, tools=tools)
        if self._roles and not spans:
            raise Unusable("roles that cannot be told from the chat template's text")
        if not text.strip():
            raise Unusable("nothing left by the chat template")
        return Document(index, text, label, spans)

    def _check_ids(self, index: int, ids: np.ndarray) -> None:
        worst = int(ids.min()) if ids.min() < 0 else int(ids.max())
        if worst < 0 or (self._ids_below is not None and worst >= self._ids_below):
            known = "a model's" if self._ids_below is None else f"the model's, 0 to {self._ids_below - 1}"
            raise DataError(
                f"{self._spec}: row {index} of column {self._field!r} holds the token id {worst}, which is none of "
                f"{known}: the ids are of another tokenizer; choose its model, or name a column of text with "
                "--text-field"
            )

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
    roles: Sequence[str] | None = None,
) -> Documents:
    """Open a data set and check what can be checked without reading it all: existence, column, a usable row.

    Args:
        spec: which data set; the forms are listed at the top of this module. A path that exists comes first.
        text_field: the column to read, of text, conversations or token ids; by default one with a well-known name.
        split: "train", "heldout" or "all". A document's split depends on its content alone (for a conversation, all of
            it), so duplicates are in one split and the order of the rows does not matter.
        heldout: share of distinct documents that are held out, in [0, 1).
        revision: a commit, tag or branch of a data set on the hub; by default the newest commit, which the provenance
            records.
        roles: roles that must occur in the first conversations, as in `HarvestConfig.roles`.

    Raises:
        DataError: names what was given, what was expected and what there is.
    """
    if split not in SPLITS:
        raise DataError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    if not 0 <= heldout < 1:
        raise DataError(f"heldout: {heldout} is not in [0, 1)")
    if split == "heldout" and heldout == 0:
        raise DataError("split: 'heldout' is empty with heldout=0")
    table = open_table(str(spec), revision)
    field, kind = choose_column(str(spec), table.columns, text_field)
    _check_usable(str(spec), table, field, kind)
    if roles is not None:
        _check_roles(str(spec), table, field, kind, roles)
    rule = {"split": split, "heldout": heldout, "by": f"blake2b({_HASHED[kind]}, salt={_SPLIT_SALT.decode()!r})"}
    more = {} if kind == TEXT else {"kind": kind}
    more |= {"tools_field": TOOLS} if _reads_tools(table, kind) else {}
    provenance = {"spec": str(spec), **table.provenance, "text_field": field, **more, "split_rule": rule}
    return Documents(table, field, kind, split, heldout, provenance)


def is_heldout(content: str | bytes, share: float) -> bool:
    """Whether a document with this `identity` belongs to the held-out share (in [0, 1)) of all."""
    data = content if isinstance(content, bytes) else content.encode()
    digest = hashlib.blake2b(data, digest_size=8, salt=_SPLIT_SALT).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _check_usable(spec: str, table: Table, field: str, kind: str) -> None:
    faults: Counter[str] = Counter()
    for value in _first_values(table, field, TRIAL_ROWS):
        try:
            parse(value, kind)
            return
        except Unusable as reason:
            faults[str(reason)] += 1
    if not faults:
        raise DataError(f"{spec}: is empty")
    what = {TEXT: "text", CHAT: "conversation", IDS: "token ids"}[kind]
    raise DataError(
        f"{spec}: no usable {what} in column {field!r} of the first {sum(faults.values())} rows: {_counts(faults)}"
    )


def _check_roles(spec: str, table: Table, field: str, kind: str, roles: Sequence[str]) -> None:
    asked = ", ".join(roles)
    if kind != CHAT:
        raise DataError(
            f"--roles {asked}: column {field!r} of {spec} holds {kind}, where no token has a role; expected "
            "conversations (--text-field names their column); text is trained on without --roles"
        )
    messages_of: Counter[str] = Counter()
    for value in _first_values(table, field, ROLE_ROWS):
        try:
            messages_of.update(message["role"] for message in parse(value, kind))
        except Unusable:
            continue
    if missing := [role for role in roles if role not in messages_of]:
        known = ", ".join(f"{role} ({count:,} messages)" for role, count in messages_of.most_common())
        raise DataError(
            f"--roles {asked}: {', '.join(missing)} does not occur in the first conversations of {spec}; "
            f"those hold {known}"
        )


def _check_tokenizer(recorded: str | None, tokenizer: Any, spec: str, notes: list[str]) -> None:
    """Compare the tokenizer that the data name with the model's; add a note if it is not on this machine."""
    if recorded is None or recorded == tokenizer.name_or_path:
        return
    from transformers import AutoTokenizer

    try:
        other = AutoTokenizer.from_pretrained(recorded, local_files_only=True)
    except Exception:  # network, hub and damaged files raise many types; without the tokenizer nothing can be compared
        notes.append(f"the data name {recorded} as the tokenizer of their ids; it is not on this machine to compare")
        return
    if other.get_vocab() != tokenizer.get_vocab():
        raise DataError(
            f"{spec}: its token ids are of the tokenizer {recorded}, whose vocabulary is another than the model's "
            f"({tokenizer.name_or_path}); choose that model, or name a column of text with --text-field"
        )


def _first_values(table: Table, field: str, count: int) -> Iterator[object]:
    return (record.get(field) for record in itertools.islice(table.read([field], 0), count))


def _reads_tools(table: Table, kind: str) -> bool:
    readable = (f"lists of {OBJECTS}", "empty lists", TEXT, EMPTY)
    return kind == CHAT and TOOLS in table.columns and table.columns[TOOLS].kind in readable


def _counts(faults: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in faults.items())
