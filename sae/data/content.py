"""One value of a data set's row as the content of a document: a text, a conversation, or token ids.

parse(["role", "content"], CHAT)      # raises Unusable: such rows are left out and counted by their reason
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae.data.chat import Message, Unusable, canonical, read_messages
from sae.data.columns import IDS, TEXT, TooLong
from sae.data.rows import TEXT_LIMIT

if TYPE_CHECKING:
    import numpy as np


def parse(value: object, kind: str) -> Any:
    """A value of a row as a document's content: a text, messages, or ids int64 [T].

    Args:
        kind: TEXT, CHAT or IDS.

    Raises:
        Unusable: it is not of this kind, empty, or too long.
    """
    if value is None:
        raise Unusable("null")
    if isinstance(value, TooLong):
        raise Unusable("too long")
    if kind == IDS:
        return _parse_ids(value)
    if kind == TEXT and not isinstance(value, str):
        raise Unusable(f"not text ({type(value).__name__})")
    content = value if isinstance(value, str) and kind == TEXT else read_messages(value)
    if isinstance(value, str) and not value.strip():
        raise Unusable("empty")
    try:
        size = len(identity(content).encode())
    except UnicodeEncodeError:
        # half a surrogate pair: valid in JSON, but no tokenizer accepts it
        raise Unusable("not Unicode") from None
    if size > TEXT_LIMIT:
        raise Unusable("too long")
    return content


def _parse_ids(value: object) -> np.ndarray:
    import numpy as np

    if not isinstance(value, (list, tuple, np.ndarray)):
        raise Unusable(f"not token ids ({type(value).__name__})")
    if len(value) == 0:
        raise Unusable("empty")
    if len(value) > TEXT_LIMIT:
        raise Unusable("too long")
    try:
        ids = np.asarray(value)
    except ValueError:
        raise Unusable("not token ids (lists of lists)") from None
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise Unusable(f"not token ids (list of {type(value[0]).__name__})")
    return ids.clip(max=np.iinfo(np.int64).max).astype(np.int64)


def identity(content: str | tuple[Message, ...] | np.ndarray) -> Any:
    """What tells a document from others: the text, the conversation in JSON, the ids' bytes (int64, little-endian)."""
    if isinstance(content, str):
        return content
    return canonical(content) if isinstance(content, tuple) else content.astype("<i8").tobytes()
